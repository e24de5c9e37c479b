"""Qwen3: Llama with query and key norms per head, and an optional window in the upper layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig
from glassformer.families import llama
from glassformer.families.common.family import ConfigFields, Family, rule
from glassformer.families.common.rope import read_rope
from glassformer.families.common.shape import ShapeConfig

RULES = (
    *llama.RULES,
    rule("model.layers.{i}.self_attn.q_norm.weight", "blocks.{i}.attn.q_norm.weight"),
    rule("model.layers.{i}.self_attn.k_norm.weight", "blocks.{i}.attn.k_norm.weight"),
)


def read(raw: ConfigFields) -> ModelConfig:
    n_layers = raw.size("num_hidden_layers")
    context = raw.size("max_position_embeddings", 32768)
    norm = NormConfig("rms", raw.number("rms_norm_eps", 1e-6))
    head_dim, bias = raw.size("head_dim", 128), raw.flag("attention_bias", False)
    attention = AttentionConfig(
        n_heads=raw.size("num_attention_heads"),
        n_kv_heads=raw.size("num_key_value_heads", 32),
        head_dim=head_dim,
        bias=bias,
        out_bias=bias,
        qk_norm=norm,
        rope=read_rope(raw, head_dim, context),
    )
    mlp = MLPConfig(raw.size("intermediate_size"), raw.activation("hidden_act", "silu"))
    windows = read_windows(raw, n_layers)
    return ModelConfig(
        family="qwen3",
        vocab_size=raw.size("vocab_size"),
        d_model=raw.size("hidden_size"),
        context_length=context,
        layers=tuple(LayerConfig(replace(attention, window=window), mlp, norm) for window in windows),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", False),
    )


def read_windows(raw: ConfigFields, n_layers: int) -> list[int | None]:
    """Return each layer's window: from layer `max_window_layers` on, or as `layer_types` states."""
    raw.expect("use_mrope", False)  # positions of images
    window = raw.size("sliding_window", 4096) if raw.flag("use_sliding_window", False) else None
    raw.take("sliding_window", None)
    first = raw.size("max_window_layers", 28, minimum=0)
    return raw.layer_windows(n_layers, window, [i >= first for i in range(n_layers)])


def write_windows(config: ModelConfig) -> dict[str, Any]:
    windows = [layer.attention.window for layer in config.layers]
    window = next((w for w in windows if w is not None), None)
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": next((i for i, w in enumerate(windows) if w is not None), config.n_layers),
        "layer_types": ["full_attention" if w is None else "sliding_attention" for w in windows],
    }


def write(config: ModelConfig) -> dict[str, Any]:
    raw = llama.write(config)
    del raw["mlp_bias"]
    return raw | write_windows(config)


def shape(s: ShapeConfig) -> ModelConfig:
    config = llama.shape(s)
    attention = replace(config.layers[0].attention, qk_norm=NormConfig())
    return replace(config, family="qwen3", layers=(replace(config.layers[0], attention=attention),) * s.n_layers)


FAMILY = Family("qwen3", "Qwen3ForCausalLM", read, write, shape, RULES)
