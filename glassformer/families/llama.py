"""Llama: RMSNorm, rotary positions, grouped queries, gated feed-forward."""

from __future__ import annotations

from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig, RopeConfig
from glassformer.families.common.family import ACTIVATION_NAMES, ConfigFields, Family, linear, rule
from glassformer.families.common.rope import read_rope, write_rope
from glassformer.families.common.shape import ShapeConfig

RULES = (
    rule("model.embed_tokens.weight", "embed.weight"),
    *linear("model.layers.{i}.self_attn.q_proj", "blocks.{i}.attn.q"),
    *linear("model.layers.{i}.self_attn.k_proj", "blocks.{i}.attn.k"),
    *linear("model.layers.{i}.self_attn.v_proj", "blocks.{i}.attn.v"),
    *linear("model.layers.{i}.self_attn.o_proj", "blocks.{i}.attn.o"),
    *linear("model.layers.{i}.mlp.gate_proj", "blocks.{i}.mlp.gate"),
    *linear("model.layers.{i}.mlp.up_proj", "blocks.{i}.mlp.up"),
    *linear("model.layers.{i}.mlp.down_proj", "blocks.{i}.mlp.down"),
    rule("model.layers.{i}.input_layernorm.weight", "blocks.{i}.attn_norm.weight"),
    rule("model.layers.{i}.post_attention_layernorm.weight", "blocks.{i}.mlp_norm.weight"),
    rule("model.norm.weight", "norm.weight"),
    rule("lm_head.weight", "head.weight"),
)


def read(raw: ConfigFields) -> ModelConfig:
    d_model, n_heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    head_dim = raw.size("head_dim", max(1, d_model // n_heads))
    context = raw.size("max_position_embeddings", 2048)
    norm = NormConfig("rms", raw.number("rms_norm_eps", 1e-6))
    bias = raw.flag("attention_bias", False)
    attention = AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=raw.size("num_key_value_heads", n_heads),
        head_dim=head_dim,
        bias=bias,
        out_bias=bias,
        rope=read_rope(raw, head_dim, context, rotary_share=1.0),
    )
    activation = raw.activation("hidden_act", "silu")
    mlp = MLPConfig(raw.size("intermediate_size"), activation, bias=raw.flag("mlp_bias", False))
    return ModelConfig(
        family="llama",
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=context,
        layers=(LayerConfig(attention, mlp, norm),) * raw.size("num_hidden_layers"),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    attention, mlp = layer.attention, layer.mlp
    partial = "partial_rotary_factor" if attention.rope is not None and attention.rope.dim is not None else None
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "intermediate_size": mlp.d_ff,
        "hidden_act": ACTIVATION_NAMES[mlp.activation],
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": layer.norm.eps,
        **write_rope(attention.rope, attention.head_dim, factor_key=partial),
        "attention_bias": attention.bias,
        "mlp_bias": mlp.bias,
        "tie_word_embeddings": config.tied_head,
    }


def shape(s: ShapeConfig) -> ModelConfig:
    attention = AttentionConfig(s.n_heads, s.n_kv_heads, s.head_dim, rope=RopeConfig(s.rope_theta))
    layer = LayerConfig(attention, MLPConfig(s.d_ff))
    return ModelConfig("llama", s.vocab_size, s.d_model, s.context, (layer,) * s.n_layers, tied_head=s.tied_head)


FAMILY = Family("llama", "LlamaForCausalLM", read, write, shape, RULES)
