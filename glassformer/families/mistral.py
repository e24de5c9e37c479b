"""Mistral: Llama with an optional sliding window in all layers, without biases."""

from __future__ import annotations

from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig
from glassformer.families import llama
from glassformer.families.common.family import ConfigFields, Family
from glassformer.families.common.rope import read_rope


def read(raw: ConfigFields, *, eps: float = 1e-6, theta: float = 1e4, window: int | None = 4096) -> ModelConfig:
    """Read config.json; `eps`, `theta` and `window` are the defaults of missing keys."""
    d_model, n_heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    context = raw.size("max_position_embeddings", 131072)
    head_dim = raw.size("head_dim", max(1, d_model // n_heads))
    norm = NormConfig("rms", raw.number("rms_norm_eps", eps))
    attention = AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=raw.size("num_key_value_heads", 8),
        head_dim=head_dim,
        rope=read_rope(raw, head_dim, context, theta=theta),
        window=raw.optional("sliding_window", window),
    )
    mlp = MLPConfig(raw.size("intermediate_size"), raw.activation("hidden_act", "silu"))
    return ModelConfig(
        family="mistral",
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=context,
        layers=(LayerConfig(attention, mlp, norm),) * raw.size("num_hidden_layers"),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    raw = llama.write(config)
    del raw["attention_bias"], raw["mlp_bias"]
    return raw | {"sliding_window": config.layers[0].attention.window}


FAMILY = Family("mistral", "MistralForCausalLM", read, write, rules=llama.RULES)
