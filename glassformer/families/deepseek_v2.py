"""DeepSeek-V2 and V2-Lite: latent attention, and routed and shared experts after the first layers.

The last dimensions of a head rotate, in interleaved pairs. With YaRN, `mscale_all_dim` scales the scores.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from glassformer.config import (
    AttentionConfig,
    LatentConfig,
    LayerConfig,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    NormConfig,
    RopeConfig,
    YarnScaling,
)
from glassformer.errors import ConfigError
from glassformer.families import llama
from glassformer.families.common import experts
from glassformer.families.common.family import ConfigFields, Family, linear, rule
from glassformer.families.common.rope import read_rope, write_scaling, yarn_attention_factor

THEIRS, OURS = "model.layers.{i}.self_attn", "blocks.{i}.attn"
RULES = (
    *(one for one in llama.RULES if ".attn." not in one.parameter_names[0]),
    *linear(f"{THEIRS}.q_proj", f"{OURS}.q", interleaved_rope=True),
    *linear(f"{THEIRS}.q_a_proj", f"{OURS}.q.reduce"),
    rule(f"{THEIRS}.q_a_layernorm.weight", f"{OURS}.q.norm.weight"),
    *linear(f"{THEIRS}.q_b_proj", f"{OURS}.q.expand", interleaved_rope=True),
    *linear(f"{THEIRS}.kv_a_proj_with_mqa", f"{OURS}.kv", interleaved_rope=True, single_head=True),
    rule(f"{THEIRS}.kv_a_layernorm.weight", f"{OURS}.kv_norm.weight"),
    *linear(f"{THEIRS}.kv_b_proj", f"{OURS}.expand_k", f"{OURS}.expand_v", grouped_by_kv_head=True),
    *linear(f"{THEIRS}.o_proj", f"{OURS}.o"),
    experts.ROUTER,
    *experts.EXPERTS,
    *experts.SHARED_EXPERTS,
)


def read(raw: ConfigFields) -> ModelConfig:
    raw.expect("mlp_bias", False)
    raw.expect("norm_topk_prob", False)
    raw.expect("scoring_func", "softmax")
    raw.expect("topk_method", "greedy", "group_limited_greedy")
    grouped = raw.raw.get("topk_method") == "group_limited_greedy"
    n_groups, top_groups = (raw.size("n_group"), raw.size("topk_group")) if grouped else (1, 1)
    if not grouped:  # greedy routing has no groups
        raw.expect("n_group", 1, None)
        raw.expect("topk_group", 1, None)
    moe = MoEConfig(
        n_experts=raw.size("n_routed_experts", 64),
        top_k=raw.size("num_experts_per_tok"),
        normed=False,
        scale=raw.number("routed_scaling_factor", 1.0),
        float32_router=True,
        n_groups=n_groups,
        top_groups=top_groups,
    )
    return read_stack(raw, "deepseek_v2", moe, d_expert=1407, n_shared=2, n_plain=0)


def read_stack(
    raw: ConfigFields, family: str, moe: MoEConfig, *, d_expert: int, n_shared: int, n_plain: int
) -> ModelConfig:
    """Read everything but the routing; the sizes are the defaults of missing keys."""
    n_layers, context = raw.size("num_hidden_layers"), raw.size("max_position_embeddings", 2048)
    norm, attention = NormConfig("rms", raw.number("rms_norm_eps", 1e-6)), read_attention(raw, context)
    mlp = MLPConfig(raw.size("intermediate_size"), raw.activation("hidden_act", "silu"))
    plain, d_expert = LayerConfig(attention, mlp, norm), raw.size("moe_intermediate_size", d_expert)
    n_shared = raw.optional("n_shared_experts", n_shared)
    moe = replace(moe, shared_d_ff=n_shared and n_shared * d_expert)
    routed = replace(plain, mlp=replace(mlp, d_ff=d_expert), experts=moe)
    first, every = raw.size("first_k_dense_replace", n_plain, minimum=0), raw.size("moe_layer_freq", 1)
    return ModelConfig(
        family=family,
        vocab_size=raw.size("vocab_size"),
        d_model=raw.size("hidden_size"),
        context_length=context,
        layers=tuple(routed if has else plain for has in expert_layers(n_layers, first, every)),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", False),
    )


def expert_layers(n_layers: int, first: int, every: int) -> tuple[bool, ...]:
    """Return which layers have experts."""
    return tuple(i >= first and i % every == 0 for i in range(n_layers))


def read_attention(raw: ConfigFields, context: int) -> AttentionConfig:
    n_heads, nope_dim, rope_dim = (
        raw.size("num_attention_heads"), raw.size("qk_nope_head_dim", 128), raw.size("qk_rope_head_dim", 64)
    )  # fmt: skip
    raw.expect("num_key_value_heads", n_heads, None)
    raw.expect("head_dim", rope_dim, None)
    raw.expect("qk_head_dim", rope_dim + nope_dim)
    rope, bias = read_rope(raw, rope_dim, context), raw.flag("attention_bias", False)
    return AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=rope_dim + nope_dim,
        scale=read_scale(raw, rope, rope_dim + nope_dim),
        bias=bias,
        out_bias=bias,
        rope=replace(rope, dim=rope_dim),
        latent=LatentConfig(
            rank=raw.size("kv_lora_rank", 512),
            v_dim=raw.size("v_head_dim", 128),
            q_rank=raw.optional("q_lora_rank", 1536),
        ),
    )


def read_scale(raw: ConfigFields, rope: RopeConfig, head_dim: int) -> float | None:
    """Return the score scale if YaRN changes it by `mscale_all_dim`; otherwise None."""
    by = (raw.raw.get("rope_parameters") or raw.raw.get("rope_scaling") or {}).get("mscale_all_dim")
    return scale(rope.scaling, head_dim, by) if isinstance(rope.scaling, YarnScaling) and by else None


def scale(yarn: YarnScaling, head_dim: int, by: float) -> float:
    """Return 1 / sqrt(head_dim) times the square of YaRN's factor, which applies to queries and to keys."""
    return yarn_attention_factor(yarn.factor, by) ** 2 / math.sqrt(head_dim)


def write_scale(attention: AttentionConfig) -> dict[str, float]:
    """Return the shortest `mscale_all_dim` that gives exactly this scale. Not every scale has one."""
    yarn = None if attention.rope is None else attention.rope.scaling
    if attention.scale is None or not isinstance(yarn, YarnScaling) or yarn.factor <= 1:
        return {}
    gain = math.sqrt(attention.scale * math.sqrt(attention.head_dim))
    by = (gain - 1) / (0.1 * math.log(yarn.factor))
    near = [*(round(by, digits) for digits in range(1, 17)), *(by + i * math.ulp(by) for i in range(-8, 9))]
    return {"mscale_all_dim": next((m for m in near if scale(yarn, attention.head_dim, m) == attention.scale), by)}


def write(config: ModelConfig) -> dict[str, Any]:
    _, moe, _ = experts.expert_parts(config)
    groups = {"n_group": moe.n_groups, "topk_group": moe.top_groups}
    method = {"topk_method": "group_limited_greedy", **groups} if moe.n_groups > 1 else {"topk_method": "greedy"}
    return write_stack(config) | method


def write_stack(config: ModelConfig) -> dict[str, Any]:
    raw, (layer, moe, plain) = llama.write(config), experts.expert_parts(config)
    for name in ("mlp_bias", "head_dim", "rope_theta", "rope_scaling", "partial_rotary_factor"):
        del raw[name]
    attention, latent, rope = layer.attention, layer.attention.latent, layer.attention.rope
    if latent is None or rope is None:
        raise ConfigError(f"a model of family {config.family!r} has latent attention, got {attention}")
    rope_dim = attention.cached_per_token - latent.rank
    first, every = expert_pattern(tuple(layer.experts is not None for layer in config.layers))
    return raw | {
        "q_lora_rank": latent.q_rank,
        "kv_lora_rank": latent.rank,
        "qk_nope_head_dim": attention.head_dim - rope_dim,
        "qk_rope_head_dim": rope_dim,
        "v_head_dim": latent.v_dim,
        "rope_parameters": {
            "rope_theta": rope.theta,
            **(write_scaling(rope.scaling) or {"rope_type": "default"}),
            **write_scale(attention),
        },
        "intermediate_size": plain.d_ff,
        "moe_intermediate_size": layer.mlp.d_ff,
        "n_routed_experts": moe.n_experts,
        "n_shared_experts": moe.shared_d_ff and moe.shared_d_ff // layer.mlp.d_ff,
        "num_experts_per_tok": moe.top_k,
        "routed_scaling_factor": moe.scale,
        "first_k_dense_replace": first,
        "moe_layer_freq": every,
    }


def expert_pattern(has: tuple[bool, ...]) -> tuple[int, int]:
    """Return `first_k_dense_replace` and `moe_layer_freq`; `has` states which layers have experts."""
    first, n = has.index(True), len(has)
    return next(((first, every) for every in range(1, n + 1) if expert_layers(n, first, every) == has), (first, 1))


FAMILY = Family("deepseek_v2", "DeepseekV2ForCausalLM", read, write, rules=RULES, alternatives=experts.FUSED_EXPERTS)
