"""BART: the 2017 Transformer with learned positions and a norm after the embedding (Lewis et al. 2020).

Positions begin in row 2 of their table. `final_logits_bias` is added to the logits, also with a tied head; a checkpoint
saved without a head lacks it, which means zeros. An untied head raises ConfigError: no published model has one.
"""

from __future__ import annotations

import math
from typing import Any

from glassformer.config import (
    AttentionConfig,
    EncoderConfig,
    LayerConfig,
    MLPConfig,
    ModelConfig,
    NormConfig,
    Positions,
)
from glassformer.errors import ConfigError
from glassformer.families.common.family import ACTIVATION_NAMES, ConfigFields, Family, linear, rule

OFFSET = 2  # row of the first position


def layer_rules(theirs: str, ours: str, cross_attention: bool) -> tuple[Any, ...]:
    """Return the rules of one stack's layers."""
    attentions = [("self_attn", "attn"), *([("encoder_attn", "cross")] if cross_attention else [])]
    return (
        *(
            one
            for name, short in attentions
            for part, letter in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "o"))
            for one in linear(f"{theirs}.{name}.{part}", f"{ours}.{short}.{letter}")
        ),
        *(
            one
            for name, short in attentions
            for one in linear(f"{theirs}.{name}_layer_norm", f"{ours}.{short}_post_norm")
        ),
        *linear(f"{theirs}.fc1", f"{ours}.mlp.up"),
        *linear(f"{theirs}.fc2", f"{ours}.mlp.down"),
        *linear(f"{theirs}.final_layer_norm", f"{ours}.mlp_post_norm"),
    )


STACKS = (
    *layer_rules("model.encoder.layers.{i}", "encoder.blocks.{i}", cross_attention=False),
    *layer_rules("model.decoder.layers.{i}", "blocks.{i}", cross_attention=True),
    rule("final_logits_bias", "head.bias", row_vector=True, zeros_if_missing=True),
)
SHARED = (rule("model.shared.weight", "embed.weight"), *STACKS)
RULES = (
    *SHARED,
    rule("model.encoder.embed_positions.weight", "encoder.positions.weight"),
    rule("model.decoder.embed_positions.weight", "positions.weight"),
    *linear("model.encoder.layernorm_embedding", "encoder.embed_norm"),
    *linear("model.decoder.layernorm_embedding", "embed_norm"),
)
COPIES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")


def read_stacks(
    raw: ConfigFields,
    family: str,
    activation: str,
    positions: Positions,
    embed_norm: bool,
    separate_embeddings: bool = False,
) -> ModelConfig:
    """Read what BART's and Marian's config.json share.

    Args:
        embed_norm: whether a norm follows the embedding.
        separate_embeddings: whether each side has its own embedding, and the head possibly a third.
    """
    d_model, context = raw.size("d_model", 1024), raw.size("max_position_embeddings", 1024)
    norm = NormConfig("layer", 1e-5)
    kind = raw.activation("activation_function", activation)
    scale = math.sqrt(d_model) if raw.flag("scale_embedding", False) else 1.0
    for name, only in (
        ("normalize_before", False), ("add_final_layer_norm", False), ("add_bias_logits", False),
        ("normalize_embedding", embed_norm), ("static_position_embeddings", positions != "learned"),
        ("is_decoder", False), ("is_encoder_decoder", True),
    ):  # fmt: skip
        raw.expect(name, only, None)

    def layers(side: str, causal: bool) -> tuple[LayerConfig, ...]:
        n_heads = raw.size(f"{side}_attention_heads", 16)
        if d_model % n_heads:
            raise ConfigError(f"{raw.source}: d_model {d_model} must be a multiple of {side}_attention_heads {n_heads}")
        attention, cross = (
            AttentionConfig(n_heads, n_heads, d_model // n_heads, bias=True, out_bias=True, causal=causal)
            for causal in (causal, False)
        )
        mlp = MLPConfig(raw.size(f"{side}_ffn_dim", 4096), kind, gated=False, bias=True)
        layer = LayerConfig(attention, mlp, norm, ("post",), cross if causal else None)
        return (layer,) * raw.size(f"{side}_layers", 12)

    vocab_size = raw.size("vocab_size")
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "context_length": context,
        "final_norm": None,
        "positions": positions,
        "embed_scale": scale,
        "embed_norm": norm if embed_norm else None,
        "position_offset": OFFSET if positions == "learned" else 0,
    }
    encoder = EncoderConfig(layers=layers("encoder", causal=False), **shared)
    raw.expect("num_hidden_layers", encoder.n_layers, None)
    if not separate_embeddings:
        raw.expect("tie_word_embeddings", True)
    return ModelConfig(
        family=family,
        layers=layers("decoder", causal=True),
        tied_head=raw.flag("tie_word_embeddings", True),
        head_bias=True,
        encoder=encoder,
        shared_embedding=not separate_embeddings,
        **shared,
    )


def read(raw: ConfigFields) -> ModelConfig:
    return read_stacks(raw, "bart", "gelu", "learned", embed_norm=True)


def write(config: ModelConfig) -> dict[str, Any]:
    assert config.encoder is not None
    stacks = {"encoder": config.encoder.layers, "decoder": config.layers}
    sizes = {
        f"{side}_{name}": value
        for side, layers in stacks.items()
        for name, value in (
            ("layers", len(layers)),
            ("attention_heads", layers[0].attention.n_heads),
            ("ffn_dim", layers[0].mlp.d_ff),
        )
    }
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        **sizes,
        "activation_function": ACTIVATION_NAMES[config.layers[0].mlp.activation],
        "max_position_embeddings": config.context_length,
        "scale_embedding": config.embed_scale != 1,
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.tied_head,
    }


FAMILY = Family(
    "bart",
    "BartForConditionalGeneration",
    read,
    write,
    rules=RULES,
    prefix="model.",
    embedding_copies=COPIES,
    adds_special_tokens=True,
)
