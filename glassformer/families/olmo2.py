"""OLMo 2: norms on the output of each branch; query and key norms over all heads together."""

from __future__ import annotations

from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig
from glassformer.families import llama, qwen3
from glassformer.families.common.family import ConfigFields, Family, rule
from glassformer.families.common.rope import read_rope

RULES = (
    *(one for one in qwen3.RULES if "layernorm" not in one.tensor_name),
    rule("model.layers.{i}.post_attention_layernorm.weight", "blocks.{i}.attn_out_norm.weight"),
    rule("model.layers.{i}.post_feedforward_layernorm.weight", "blocks.{i}.mlp_out_norm.weight"),
)


def read(raw: ConfigFields) -> ModelConfig:
    d_model, n_heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    head_dim, context = max(1, d_model // n_heads), raw.size("max_position_embeddings", 2048)
    norm = NormConfig("rms", raw.number("rms_norm_eps", 1e-5), "float32")
    bias = raw.flag("attention_bias", False)
    attention = AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=raw.size("num_key_value_heads", n_heads),
        head_dim=head_dim,
        bias=bias,
        out_bias=bias,
        qk_norm=norm,
        qk_norm_over="width",
        rope=read_rope(raw, head_dim, context),
    )
    mlp = MLPConfig(raw.size("intermediate_size"), raw.activation("hidden_act", "silu"))
    return ModelConfig(
        family="olmo2",
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=context,
        layers=(LayerConfig(attention, mlp, norm, ("out",)),) * raw.size("num_hidden_layers"),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    raw = llama.write(config)
    del raw["mlp_bias"], raw["head_dim"]
    return raw


FAMILY = Family("olmo2", "Olmo2ForCausalLM", read, write, rules=RULES)
