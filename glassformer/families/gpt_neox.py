"""GPT-NeoX and Pythia: LayerNorm, biases, partial rotary positions, parallel branches.

Checkpoints store q, k and v as one tensor: for each head the rows of its query, its key and its value.
"""

from __future__ import annotations

from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig
from glassformer.families.common.family import ACTIVATION_NAMES, ConfigFields, Family, linear, rule
from glassformer.families.common.rope import read_rope, write_rope

LAYER, ATTENTION = "gpt_neox.layers.{i}", "blocks.{i}.attn"
RULES = (
    rule("gpt_neox.embed_in.weight", "embed.weight"),
    *linear(f"{LAYER}.input_layernorm", "blocks.{i}.attn_norm"),
    *linear(f"{LAYER}.post_attention_layernorm", "blocks.{i}.mlp_norm"),
    *linear(f"{LAYER}.attention.query_key_value", *(f"{ATTENTION}.{part}" for part in "qkv"), grouped_by_kv_head=True),
    *linear(f"{LAYER}.attention.dense", f"{ATTENTION}.o"),
    *linear(f"{LAYER}.mlp.dense_h_to_4h", "blocks.{i}.mlp.up"),
    *linear(f"{LAYER}.mlp.dense_4h_to_h", "blocks.{i}.mlp.down"),
    *linear("gpt_neox.final_layer_norm", "norm"),
    rule("embed_out.weight", "head.weight"),
)


def read(raw: ConfigFields) -> ModelConfig:
    d_model, n_heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    head_dim, context = max(1, d_model // n_heads), raw.size("max_position_embeddings", 2048)
    norm = NormConfig("layer", raw.number("layer_norm_eps", 1e-5))
    bias = raw.flag("attention_bias", True)
    raw.rename("rope_theta", "rotary_emb_base")
    raw.rename("partial_rotary_factor", "rotary_pct")
    attention = AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=head_dim,
        bias=bias,
        out_bias=bias,
        rope=read_rope(raw, head_dim, context, rotary_share=0.25, keys=("rotary_emb_base", "rotary_pct")),
    )
    mlp = MLPConfig(raw.size("intermediate_size"), raw.activation("hidden_act", "gelu"), gated=False, bias=True)
    layer = LayerConfig(attention, mlp, norm, parallel=raw.flag("use_parallel_residual", True))
    return ModelConfig(
        family="gpt_neox",
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=context,
        layers=(layer,) * raw.size("num_hidden_layers"),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    attention, mlp = layer.attention, layer.mlp
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": attention.n_heads,
        "intermediate_size": mlp.d_ff,
        "hidden_act": ACTIVATION_NAMES[mlp.activation],
        "max_position_embeddings": config.context_length,
        "layer_norm_eps": layer.norm.eps,
        **write_rope(attention.rope, attention.head_dim, "rotary_emb_base", "rotary_pct"),
        "attention_bias": attention.bias,
        "use_parallel_residual": layer.parallel,
        "tie_word_embeddings": config.tied_head,
    }


BUFFERS = (r"layers\.\d+\.attention\.(bias|masked_bias)",)
FAMILY = Family("gpt_neox", "GPTNeoXForCausalLM", read, write, rules=RULES, prefix="gpt_neox.", ignored=BUFFERS)
