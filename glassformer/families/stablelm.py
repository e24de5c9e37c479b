"""StableLM: Llama with LayerNorm and partial rotary positions; the 12B has parallel branches that share one norm.

Optional query and key norms have weights per head and no bias.
"""

from __future__ import annotations

from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig
from glassformer.families import llama
from glassformer.families.common.family import ConfigFields, Family, linear, rule
from glassformer.families.common.rope import read_rope, write_rope

LAYER = "model.layers.{i}"
RULES = (
    *(one for one in llama.RULES if "norm" not in one.tensor_name),
    *linear(f"{LAYER}.input_layernorm", "blocks.{i}.attn_norm"),
    *linear(f"{LAYER}.post_attention_layernorm", "blocks.{i}.mlp_norm"),
    *(
        rule(f"{LAYER}.self_attn.{part}_layernorm.norms.{{j}}.weight", f"blocks.{{i}}.attn.{part}_norm.{{j}}.weight")
        for part in "qk"
    ),
    *linear("model.norm", "norm"),
)


def read(raw: ConfigFields) -> ModelConfig:
    d_model, n_heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    head_dim, context = max(1, d_model // n_heads), raw.size("max_position_embeddings", 4096)
    norm = NormConfig("layer", raw.number("layer_norm_eps", 1e-5))
    normed, parallel = raw.flag("qk_layernorm", False), raw.flag("use_parallel_residual", False)
    attention = AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=raw.size("num_key_value_heads", 32),
        head_dim=head_dim,
        bias=raw.flag("use_qkv_bias", False),
        qk_norm=norm if normed else None,
        qk_norm_over="each" if normed else "head",
        rope=read_rope(raw, head_dim, context, rotary_share=0.25),
    )
    mlp = MLPConfig(raw.size("intermediate_size"), raw.activation("hidden_act", "silu"))
    layer = LayerConfig(attention, mlp, norm, parallel=parallel, shared_norm=parallel)
    return ModelConfig(
        family="stablelm",
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=context,
        layers=(layer,) * raw.size("num_hidden_layers"),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    raw, layer = llama.write(config), config.layers[0]
    attention = layer.attention
    for name in ("attention_bias", "mlp_bias", "head_dim"):
        del raw[name]
    raw["layer_norm_eps"] = raw.pop("rms_norm_eps")
    return raw | {
        **write_rope(attention.rope, attention.head_dim, factor_key="partial_rotary_factor"),
        "use_qkv_bias": attention.bias,
        "qk_layernorm": attention.qk_norm is not None,
        "use_parallel_residual": layer.parallel,
    }


FAMILY = Family("stablelm", "StableLmForCausalLM", read, write, rules=RULES)
