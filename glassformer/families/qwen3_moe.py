"""Qwen3-MoE: Qwen3 with experts in all or most layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, MoEConfig, NormConfig
from glassformer.errors import ConfigError
from glassformer.families import llama, qwen3
from glassformer.families.common import experts
from glassformer.families.common.family import ConfigFields, Family
from glassformer.families.common.rope import read_rope

RULES = (*qwen3.RULES, experts.ROUTER, *experts.EXPERTS)


def read(raw: ConfigFields) -> ModelConfig:
    d_model, n_heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    n_layers, context = raw.size("num_hidden_layers"), raw.size("max_position_embeddings", 32768)
    norm = NormConfig("rms", raw.number("rms_norm_eps", 1e-6))
    head_dim, bias = raw.size("head_dim", max(1, d_model // n_heads)), raw.flag("attention_bias", False)
    window = raw.size("sliding_window", 4096) if raw.flag("use_sliding_window", False) else None
    raw.take("sliding_window", None)
    attention = AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=raw.size("num_key_value_heads", 4),
        head_dim=head_dim,
        bias=bias,
        out_bias=bias,
        qk_norm=norm,
        rope=read_rope(raw, head_dim, context),
        window=window,
    )
    n_experts = experts.read_n_experts(raw, "num_experts", "num_local_experts", 128)
    moe = MoEConfig(n_experts, raw.size("num_experts_per_tok", 8), normed=raw.flag("norm_topk_prob", False))
    mlp = MLPConfig(raw.size("intermediate_size", 6144), raw.activation("hidden_act", "silu"))
    plain = LayerConfig(attention, mlp, norm)
    routed = replace(plain, mlp=replace(mlp, d_ff=raw.size("moe_intermediate_size", 768)), experts=moe)
    return ModelConfig(
        family="qwen3_moe",
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=context,
        layers=tuple(routed if has else plain for has in read_expert_layers(raw, n_layers)),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", False),
    )


def read_expert_layers(raw: ConfigFields, n_layers: int) -> list[bool]:
    """Return which layers have experts: every `decoder_sparse_step`-th except `mlp_only_layers`."""
    every, plain = raw.size("decoder_sparse_step", 1), raw.take("mlp_only_layers", None)
    plain = [] if plain is None else plain
    if not isinstance(plain, list) or any(type(i) is not int for i in plain):
        raise ConfigError(f"{raw.source}: mlp_only_layers must be numbers of layers, got {plain!r}")
    return [(i + 1) % every == 0 and i not in plain for i in range(n_layers)]


def write(config: ModelConfig) -> dict[str, Any]:
    raw, window = llama.write(config), config.layers[0].attention.window
    del raw["mlp_bias"]
    routed, moe, plain = experts.expert_parts(config)
    return raw | {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "intermediate_size": plain.d_ff,
        "moe_intermediate_size": routed.mlp.d_ff,
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "norm_topk_prob": moe.normed,
        "mlp_only_layers": [i for i, layer in enumerate(config.layers) if layer.experts is None],
    }


FAMILY = Family("qwen3_moe", "Qwen3MoeForCausalLM", read, write, rules=RULES, alternatives=experts.FUSED_EXPERTS)
