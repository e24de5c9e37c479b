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
    reading = LayerConfig(wide, replace(mlp, d_ff=56), LAYER, ("post",))
    writing = LayerConfig(attention, mlp, LAYER, ("post",), replace(attention, causal=False))
    more = {"positions": "learned", "embed_scale": D**0.5, "embed_norm": LAYER, "position_offset": 2}
    encoder = EncoderConfig(V, D, T, (reading,) * 3, None, **more)
    return ModelConfig(
        "bart", V, D, T, (writing,) * 2, None, tied_head=True, head_bias=True, encoder=encoder, shared_embedding=True,
        **more,
    )  # fmt: skip


def marian() -> ModelConfig:
    config = bart()
    other = {"positions": "sinusoidal halves", "embed_norm": None, "position_offset": 0}
    return replace(config, family="marian", encoder=replace(config.encoder, **other), **other)


def t5() -> ModelConfig:
    norm, relative = NormConfig("rms", 1e-2), RelativeConfig(16, 24)
    seeing = AttentionConfig(3, 3, 12, scale=1.0, causal=False)
    reading = LayerConfig(seeing, MLPConfig(72, "relu", gated=False), norm)
    writing = replace(reading, attention=replace(seeing, causal=True), cross=seeing)
    encoder = EncoderConfig(V, D, T, (reading,) * 3, norm, relative=relative)
    return ModelConfig(
        "t5", V, D, T, (writing,) * 2, norm, tied_head=True, relative=relative, head_scale=D**-0.5, encoder=encoder,
        shared_embedding=True,
    )  # fmt: skip


def flan() -> ModelConfig:
    """T5 1.1: gated feed-forward layers and an untied head."""
    config, mlp = t5(), MLPConfig(72, "gelu_tanh")
    reading, writing = (
        tuple(replace(layer, mlp=mlp) for layer in layers) for layers in (config.encoder.layers, config.layers)
    )
    encoder = replace(config.encoder, layers=reading)
    return replace(config, layers=writing, encoder=encoder, tied_head=False, head_scale=1.0)


EVERY = (bart, marian, t5, flan)
CONFIGS: dict[str, Callable[[], ModelConfig]] = {f.__name__: f for f in EVERY}
PAIR_FAMILIES = tuple(CONFIGS)
