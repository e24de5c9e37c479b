"""gpt-oss: sinks, biases, a window in every second layer, YaRN, and experts with clamped gate and up.

Published expert weights are MXFP4 and are decoded when they are read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, MoEConfig, NormConfig
from glassformer.errors import ConfigError
from glassformer.families import llama
from glassformer.families.common import experts
from glassformer.families.common.family import ConfigFields, Family, linear, rule
from glassformer.families.common.rope import read_rope, write_scaling

THEIRS, OURS = "model.layers.{i}.mlp.experts", "blocks.{i}.mlp.experts.{j}"
RULES = (
    *experts.without_mlp(llama.RULES),
    rule("model.layers.{i}.self_attn.sinks", "blocks.{i}.attn.sinks"),
    *linear("model.layers.{i}.mlp.router", "blocks.{i}.mlp.router"),
    rule(f"{THEIRS}.gate_up_proj", f"{OURS}.gate.weight", f"{OURS}.up.weight", transposed=True, interleaved_rows=True),
    rule(f"{THEIRS}.gate_up_proj_bias", f"{OURS}.gate.bias", f"{OURS}.up.bias", interleaved_rows=True),
    rule(f"{THEIRS}.down_proj", f"{OURS}.down.weight", transposed=True),
    rule(f"{THEIRS}.down_proj_bias", f"{OURS}.down.bias"),
)
PACKED = (
    rule(f"{THEIRS}.gate_up_proj_blocks", f"{OURS}.gate.weight", f"{OURS}.up.weight", interleaved_rows=True),
    rule(f"{THEIRS}.down_proj_blocks", f"{OURS}.down.weight"),
)


def read(raw: ConfigFields) -> ModelConfig:
    n_layers, n_heads, head_dim = raw.size("num_hidden_layers"), raw.size("num_attention_heads"), raw.size("head_dim")
    context, top_k = raw.size("max_position_embeddings", 131072), raw.size("num_experts_per_tok", 4)
    norm, bias = NormConfig("rms", raw.number("rms_norm_eps", 1e-5), "float32"), raw.flag("attention_bias", True)
    if raw.raw.get("rope_parameters") is None and raw.raw.get("rope_scaling") is None:
        raise ConfigError(f"{raw.source}: the key 'rope_parameters' or 'rope_scaling' is missing")
    attention = AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=raw.size("num_key_value_heads", 8),
        head_dim=head_dim,
        bias=bias,
        out_bias=bias,
        rope=read_rope(raw, head_dim, context, theta=150_000.0),
        sinks=True,
    )
    check_older_keys(raw)
    raw.expect("hidden_act", "silu")  # files state silu, but the model computes quick_gelu
    raw.expect("swiglu_alpha", 1.702)
    limit = raw.number("swiglu_limit", 7.0)
    mlp = MLPConfig(raw.size("intermediate_size"), "quick_gelu", bias=True, limit=limit, up_plus_one=True)
    moe = MoEConfig(raw.size("num_local_experts", 128), top_k, router_bias=True)
    windows = raw.layer_windows(n_layers, raw.optional("sliding_window", 128), [i % 2 == 0 for i in range(n_layers)])
    layer = LayerConfig(attention, mlp, norm, experts=moe)
    return ModelConfig(
        family="gpt_oss",
        vocab_size=raw.size("vocab_size"),
        d_model=raw.size("hidden_size"),
        context_length=context,
        layers=tuple(replace(layer, attention=replace(attention, window=window)) for window in windows),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", False),
    )


def check_older_keys(raw: ConfigFields) -> None:
    """Check redundant keys of older files."""
    rope = raw.raw.get("rope_parameters") or raw.raw.get("rope_scaling")
    raw.expect("experts_per_token", raw.raw.get("num_experts_per_tok"))
    raw.expect("initial_context_length", isinstance(rope, dict) and rope.get("original_max_position_embeddings"))


def write(config: ModelConfig) -> dict[str, Any]:
    raw, (layer, moe, mlp) = llama.write(config), experts.expert_parts(config)
    for name in ("mlp_bias", "rope_theta", "rope_scaling"):
        del raw[name]
    rope, windows = layer.attention.rope, [layer.attention.window for layer in config.layers]
    if rope is not None:
        scaling = write_scaling(rope.scaling) or {"rope_type": "default"}
        raw["rope_parameters"] = {"rope_theta": rope.theta, **scaling}
    return raw | {
        "hidden_act": "silu",
        "swiglu_limit": mlp.limit,
        "sliding_window": next((window for window in windows if window is not None), 128),
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
        "num_local_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
    }


FAMILY = Family("gpt_oss", "GptOssForCausalLM", read, write, rules=RULES, alternatives=PACKED)
