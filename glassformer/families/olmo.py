"""OLMo: Llama with LayerNorm without weights; some sizes clip queries, keys and values."""

from __future__ import annotations

from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig
from glassformer.families import llama
from glassformer.families.common.family import ConfigFields, Family
from glassformer.families.common.rope import read_rope

NORM = NormConfig("layer", 1e-5, None)


def read(raw: ConfigFields) -> ModelConfig:
    d_model, n_heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    head_dim, context = max(1, d_model // n_heads), raw.size("max_position_embeddings", 2048)
    bias = raw.flag("attention_bias", False)
    attention = AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=raw.size("num_key_value_heads", n_heads),
        head_dim=head_dim,
        bias=bias,
        out_bias=bias,
        clip=raw.optional("clip_qkv", None, float),
        rope=read_rope(raw, head_dim, context),
    )
    mlp = MLPConfig(raw.size("intermediate_size"), raw.activation("hidden_act", "silu"))
    return ModelConfig(
        family="olmo",
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=context,
        layers=(LayerConfig(attention, mlp, NORM),) * raw.size("num_hidden_layers"),
        final_norm=NORM,
        tied_head=raw.flag("tie_word_embeddings", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    raw = llama.write(config)
    for name in ("mlp_bias", "head_dim", "rms_norm_eps"):
        del raw[name]
    return raw | {"clip_qkv": config.layers[0].attention.clip}


FAMILY = Family("olmo", "OlmoForCausalLM", read, write, rules=llama.RULES)
