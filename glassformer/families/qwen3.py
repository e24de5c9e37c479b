"""Qwen3: Llama's block with a norm on every head's queries and keys. config.json says `Qwen3ForCausalLM`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig, RopeConfig
from glassformer.errors import ConfigError
from glassformer.families import llama
from glassformer.families.family import Family, Fields, rule
from glassformer.families.shape import ShapeConfig

RULES = (
    *llama.RULES,
    rule("model.layers.{i}.self_attn.q_norm.weight", "blocks.{i}.attn.q_norm.weight"),
    rule("model.layers.{i}.self_attn.k_norm.weight", "blocks.{i}.attn.k_norm.weight"),
)


def read(raw: Fields) -> ModelConfig:
    n_layers = raw.size("num_hidden_layers")
    norm = NormConfig("rms", raw.number("rms_norm_eps", 1e-6))
    bias = raw.flag("attention_bias", False)
    full = AttentionConfig(
        n_heads=raw.size("num_attention_heads"),
        n_kv_heads=raw.size("num_key_value_heads", 32),
        head_dim=raw.size("head_dim", 128),
        bias=bias,
        out_bias=bias,
        qk_norm=norm,
        rope=RopeConfig(raw.rope_theta()),
    )
    mlp = MLPConfig(raw.size("intermediate_size"), raw.activation("hidden_act", "silu"))
    window = raw.size("sliding_window", 4096) if raw.flag("use_sliding_window", False) else None
    raw.take("sliding_window", None)
    first = raw.size("max_window_layers", 28, least=0)
    default = ["sliding_attention" if window and i >= first else "full_attention" for i in range(n_layers)]
    kinds = raw.take("layer_types", None) or default
    attentions = {"full_attention": full, "sliding_attention": replace(full, window=window)}
    if not isinstance(kinds, list) or len(kinds) != n_layers or any(kind not in list(attentions) for kind in kinds):
        raise ConfigError(
            f"{raw.source}: layer_types must name full_attention or sliding_attention for each of {n_layers} layers, "
            f"got {kinds}"
        )
    return ModelConfig(
        family="qwen3",
        vocab_size=raw.size("vocab_size"),
        d_model=raw.size("hidden_size"),
        context_length=raw.size("max_position_embeddings", 32768),
        layers=tuple(LayerConfig(attentions[kind], mlp, norm) for kind in kinds),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    raw = llama.write(config)
    del raw["mlp_bias"]
    windows = [layer.attention.window for layer in config.layers]
    window = next((w for w in windows if w is not None), None)
    return raw | {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": next((i for i, w in enumerate(windows) if w is not None), config.n_layers),
        "layer_types": ["full_attention" if w is None else "sliding_attention" for w in windows],
    }


def shape(s: ShapeConfig) -> ModelConfig:
    config = llama.shape(s)
    attention = replace(config.layers[0].attention, qk_norm=NormConfig())
    return replace(config, family="qwen3", layers=(replace(config.layers[0], attention=attention),) * s.n_layers)


FAMILY = Family("qwen3", "Qwen3ForCausalLM", read, write, shape, RULES)
