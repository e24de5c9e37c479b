"""Falcon 7B: LayerNorm, one key/value head, parallel branches that share one norm.

q, k and v are one tensor, grouped by key/value head. The 40B and 180B, with two parallel norms, and models with ALiBi
are not supported.
"""

from __future__ import annotations

from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig
from glassformer.families.common.family import ACTIVATION_NAMES, ConfigFields, Family, linear, rule
from glassformer.families.common.rope import read_rope, write_rope

LAYER, ATTENTION = "transformer.h.{i}", "blocks.{i}.attn"
RULES = (
    rule("transformer.word_embeddings.weight", "embed.weight"),
    *linear(f"{LAYER}.input_layernorm", "blocks.{i}.attn_norm"),
    *linear(f"{LAYER}.post_attention_layernorm", "blocks.{i}.mlp_norm"),
    *linear(
        f"{LAYER}.self_attention.query_key_value", *(f"{ATTENTION}.{part}" for part in "qkv"), grouped_by_kv_head=True
    ),
    *linear(f"{LAYER}.self_attention.dense", f"{ATTENTION}.o"),
    *linear(f"{LAYER}.mlp.dense_h_to_4h", "blocks.{i}.mlp.up"),
    *linear(f"{LAYER}.mlp.dense_4h_to_h", "blocks.{i}.mlp.down"),
    *linear("transformer.ln_f", "norm"),
    rule("lm_head.weight", "head.weight"),
)


def read(raw: ConfigFields) -> ModelConfig:
    d_model, n_heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    head_dim, context = max(1, d_model // n_heads), raw.size("max_position_embeddings", 2048)
    norm = NormConfig("layer", raw.number("layer_norm_epsilon", 1e-5))
    for name in ("alibi", "new_decoder_architecture", "apply_residual_connection_post_layernorm"):
        raw.expect(name, False)
    raw.expect("num_ln_in_parallel_attn", None, 1)
    bias, parallel = raw.flag("bias", False), raw.flag("parallel_attn", True)
    multi_query = raw.flag("multi_query", True)
    raw.expect("num_kv_heads", None, n_heads, *([1] if multi_query else []))  # multi_query determines it
    attention = AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=1 if multi_query else n_heads,
        head_dim=head_dim,
        bias=bias,
        out_bias=bias,
        rope=read_rope(raw, head_dim, context),
    )
    d_ff = raw.size("ffn_hidden_size", 4 * d_model)
    mlp = MLPConfig(d_ff, raw.activation("activation", "gelu"), gated=False, bias=bias)
    layer = LayerConfig(attention, mlp, norm, parallel=parallel, shared_norm=parallel)
    return ModelConfig(
        family="falcon",
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=context,
        layers=(layer,) * raw.size("num_hidden_layers"),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", True),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    attention, mlp = layer.attention, layer.mlp
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": attention.n_heads,
        "ffn_hidden_size": mlp.d_ff,
        "activation": ACTIVATION_NAMES[mlp.activation],
        "max_position_embeddings": config.context_length,
        "layer_norm_epsilon": layer.norm.eps,
        "bias": attention.bias,
        "multi_query": attention.n_kv_heads == 1,
        "parallel_attn": layer.parallel,
        **write_rope(attention.rope, attention.head_dim),
        "tie_word_embeddings": config.tied_head,
    }


FAMILY = Family("falcon", "FalconForCausalLM", read, write, rules=RULES, prefix="transformer.")
