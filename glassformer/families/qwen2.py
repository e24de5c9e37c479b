"""Qwen2 and 2.5: Llama with biases on queries, keys and values, and an optional window in the upper layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig
from glassformer.families import llama
from glassformer.families.common.family import ConfigFields, Family
from glassformer.families.common.rope import read_rope
from glassformer.families.qwen3 import read_windows, write_windows


def read(raw: ConfigFields) -> ModelConfig:
    d_model, n_heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    n_layers, context = raw.size("num_hidden_layers"), raw.size("max_position_embeddings", 32768)
    head_dim = raw.size("head_dim", max(1, d_model // n_heads))
    norm = NormConfig("rms", raw.number("rms_norm_eps", 1e-6))
    attention = AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=raw.size("num_key_value_heads", 32),
        head_dim=head_dim,
        bias=True,
        rope=read_rope(raw, head_dim, context),
    )
    mlp = MLPConfig(raw.size("intermediate_size"), raw.activation("hidden_act", "silu"))
    windows = read_windows(raw, n_layers)
    return ModelConfig(
        family="qwen2",
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=context,
        layers=tuple(LayerConfig(replace(attention, window=window), mlp, norm) for window in windows),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    raw = llama.write(config)
    del raw["attention_bias"], raw["mlp_bias"]
    return raw | write_windows(config)


FAMILY = Family("qwen2", "Qwen2ForCausalLM", read, write, rules=llama.RULES)
