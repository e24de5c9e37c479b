"""SmolLM3: Llama without positions in some layers, by default every fourth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig, RopeConfig
from glassformer.errors import ConfigError
from glassformer.families import llama, qwen3
from glassformer.families.common.family import ConfigFields, Family
from glassformer.families.common.rope import read_rope, write_rope


def read(raw: ConfigFields) -> ModelConfig:
    d_model, n_heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    n_layers, context = raw.size("num_hidden_layers"), raw.size("max_position_embeddings", 32768)
    head_dim = raw.size("head_dim", max(1, d_model // n_heads))
    norm = NormConfig("rms", raw.number("rms_norm_eps", 1e-6))
    bias = raw.flag("attention_bias", False)
    attention = AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=raw.size("num_key_value_heads", 4),
        head_dim=head_dim,
        bias=bias,
        out_bias=bias,
        rope=read_rope(raw, head_dim, context, theta=2e6),
    )
    activation = raw.activation("hidden_act", "silu")
    mlp = MLPConfig(raw.size("intermediate_size"), activation, bias=raw.flag("mlp_bias", False))
    rotary = read_rope_layers(raw, n_layers)
    window = raw.optional("sliding_window") if raw.flag("use_sliding_window", False) else None
    raw.take("sliding_window", None)
    windows = raw.layer_windows(n_layers, window, [not rotates for rotates in rotary])
    attentions = [
        replace(attention, rope=attention.rope if rotates else None, window=window)
        for rotates, window in zip(rotary, windows, strict=True)
    ]
    return ModelConfig(
        family="smollm3",
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=context,
        layers=tuple(LayerConfig(one, mlp, norm) for one in attentions),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", True),
    )


def read_rope_layers(raw: ConfigFields, n_layers: int) -> list[bool]:
    """Return which layers have rotary positions: in spite of its name, `no_rope_layers` has a 1 for them."""
    every = raw.size("no_rope_layer_interval", 4)
    flags = raw.take("no_rope_layers", None)
    if flags is None:
        return [(i + 1) % every > 0 for i in range(n_layers)]
    if (
        not isinstance(flags, list)
        or len(flags) < n_layers
        or any(type(f) is not int or f not in (0, 1) for f in flags)
    ):
        raise ConfigError(f"{raw.source}: no_rope_layers must have a 0 or 1 for each of {n_layers} layers, got {flags}")
    return [bool(flag) for flag in flags[:n_layers]]


def write(config: ModelConfig) -> dict[str, Any]:
    ropes: list[RopeConfig | None] = [layer.attention.rope for layer in config.layers]
    rope = next((one for one in ropes if one is not None), None)
    raw = llama.write(config) | write_rope(rope, config.layers[0].attention.head_dim) | qwen3.write_windows(config)
    del raw["max_window_layers"]
    return raw | {"no_rope_layers": [int(one is not None) for one in ropes], "pad_token_id": None}


FAMILY = Family("smollm3", "SmolLM3ForCausalLM", read, write, rules=llama.RULES)
