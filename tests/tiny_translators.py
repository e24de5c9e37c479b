"""A tiny configuration of each encoder-decoder family of transformers, with all its features."""

from collections.abc import Callable
from dataclasses import replace

from glassformer.config import (
    AttentionConfig,
    EncoderConfig,
    LayerConfig,
    MLPConfig,
    ModelConfig,
    NormConfig,
    RelativeConfig,
)

LAYER = NormConfig("layer", 1e-5)
V, D, T = 97, 48, 64  # vocab_size, d_model, context_length


def bart() -> ModelConfig:
    attention = AttentionConfig(4, 4, 12, bias=True, out_bias=True)
    wide = AttentionConfig(3, 3, 16, bias=True, out_bias=True, causal=False)
    mlp = MLPConfig(72, "gelu", gated=False, bias=True)
    encoder_layer = LayerConfig(wide, replace(mlp, d_ff=56), LAYER, ("post",))
    decoder_layer = LayerConfig(attention, mlp, LAYER, ("post",), replace(attention, causal=False))
    embedding = {"positions": "learned", "embed_scale": D**0.5, "embed_norm": LAYER, "position_offset": 2}
    encoder = EncoderConfig(V, D, T, (encoder_layer,) * 3, None, **embedding)
    return ModelConfig(
        "bart", V, D, T, (decoder_layer,) * 2, None, tied_head=True, head_bias=True, encoder=encoder,
        shared_embedding=True, **embedding,
    )  # fmt: skip


def marian() -> ModelConfig:
    config = bart()
    other = {"positions": "sinusoidal halves", "embed_norm": None, "position_offset": 0}
    return replace(config, family="marian", encoder=replace(config.encoder, **other), **other)


def t5() -> ModelConfig:
    norm, relative = NormConfig("rms", 1e-2), RelativeConfig(16, 24)
    attention = AttentionConfig(3, 3, 12, scale=1.0, causal=False)
    encoder_layer = LayerConfig(attention, MLPConfig(72, "relu", gated=False), norm)
    decoder_layer = replace(encoder_layer, attention=replace(attention, causal=True), cross=attention)
    encoder = EncoderConfig(V, D, T, (encoder_layer,) * 3, norm, relative=relative)
    return ModelConfig(
        "t5", V, D, T, (decoder_layer,) * 2, norm, tied_head=True, relative=relative, head_scale=D**-0.5,
        encoder=encoder, shared_embedding=True,
    )  # fmt: skip


def flan() -> ModelConfig:
    """T5 1.1: gated feed-forward layers and an untied head."""
    config, mlp = t5(), MLPConfig(72, "gelu_tanh")
    encoder_layer, decoder_layer = (
        tuple(replace(layer, mlp=mlp) for layer in layers) for layers in (config.encoder.layers, config.layers)
    )
    encoder = replace(config.encoder, layers=encoder_layer)
    return replace(config, layers=decoder_layer, encoder=encoder, tied_head=False, head_scale=1.0)


FAMILIES = (bart, marian, t5, flan)
CONFIGS: dict[str, Callable[[], ModelConfig]] = {f.__name__: f for f in FAMILIES}
SEQ2SEQ_FAMILIES = tuple(CONFIGS)
