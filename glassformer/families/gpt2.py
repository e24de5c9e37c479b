"""GPT-2: LayerNorm, learned positions, biases, plain feed-forward, tied head.

Checkpoints store linear weights transposed, [in, out], and q, k, v as one tensor.
"""

from __future__ import annotations

from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig
from glassformer.families.common.family import ACTIVATION_NAMES, ConfigFields, Family, linear, rule
from glassformer.families.common.shape import ShapeConfig

RULES = (
    rule("transformer.wte.weight", "embed.weight"),
    rule("transformer.wpe.weight", "positions.weight"),
    *linear("transformer.h.{i}.ln_1", "blocks.{i}.attn_norm"),
    *linear(
        "transformer.h.{i}.attn.c_attn", "blocks.{i}.attn.q", "blocks.{i}.attn.k", "blocks.{i}.attn.v", transposed=True
    ),
    *linear("transformer.h.{i}.attn.c_proj", "blocks.{i}.attn.o", transposed=True),
    *linear("transformer.h.{i}.ln_2", "blocks.{i}.mlp_norm"),
    *linear("transformer.h.{i}.mlp.c_fc", "blocks.{i}.mlp.up", transposed=True),
    *linear("transformer.h.{i}.mlp.c_proj", "blocks.{i}.mlp.down", transposed=True),
    *linear("transformer.ln_f", "norm"),
    rule("lm_head.weight", "head.weight"),
)


def read(raw: ConfigFields) -> ModelConfig:
    d_model, n_heads = raw.size("n_embd", 768), raw.size("n_head", 12)
    norm = NormConfig("layer", raw.number("layer_norm_epsilon", 1e-5))
    raw.expect("scale_attn_by_inverse_layer_idx", False)
    raw.expect("add_cross_attention", False)
    attention = AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        scale=None if raw.flag("scale_attn_weights", True) else 1.0,
        bias=True,
        out_bias=True,
    )
    mlp = MLPConfig(
        d_ff=raw.size("n_inner", 4 * d_model),
        activation=raw.activation("activation_function", "gelu_new"),
        gated=False,
        bias=True,
    )
    return ModelConfig(
        family="gpt2",
        vocab_size=raw.size("vocab_size", 50257),
        d_model=d_model,
        context_length=raw.size("n_positions", 1024),
        layers=(LayerConfig(attention, mlp, norm),) * raw.size("n_layer", 12),
        final_norm=norm,
        positions="learned",
        tied_head=raw.flag("tie_word_embeddings", True),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": layer.attention.n_heads,
        "n_inner": layer.mlp.d_ff,
        "n_positions": config.context_length,
        "activation_function": ACTIVATION_NAMES[layer.mlp.activation],
        "layer_norm_epsilon": layer.norm.eps,
        "scale_attn_weights": layer.attention.scale is None,
        "tie_word_embeddings": config.tied_head,
    }


def shape(s: ShapeConfig) -> ModelConfig:
    attention = AttentionConfig(s.n_heads, s.n_heads, s.head_dim, bias=True, out_bias=True)
    norm = NormConfig("layer", 1e-5)
    layer = LayerConfig(attention, MLPConfig(s.d_ff, "gelu_tanh", gated=False, bias=True), norm)
    return ModelConfig(
        family="gpt2",
        vocab_size=s.vocab_size,
        d_model=s.d_model,
        context_length=s.context,
        layers=(layer,) * s.n_layers,
        final_norm=norm,
        positions="learned",
        tied_head=s.tied_head,
    )


FAMILY = Family(
    "gpt2", "GPT2LMHeadModel", read, write, shape, RULES, "transformer.", (r"h\.\d+\.attn\.(masked_)?bias",)
)
