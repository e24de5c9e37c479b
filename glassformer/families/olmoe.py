"""OLMoE: Llama with experts in every layer; query and key norms over all heads together."""

from __future__ import annotations

from typing import Any

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, MoEConfig, NormConfig
from glassformer.families import llama, qwen3
from glassformer.families.common import experts
from glassformer.families.common.family import ConfigFields, Family
from glassformer.families.common.rope import read_rope

RULES = (*experts.without_mlp(qwen3.RULES), experts.ROUTER, *experts.EXPERTS)


def read(raw: ConfigFields) -> ModelConfig:
    d_model, n_heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    head_dim, context = max(1, d_model // n_heads), raw.size("max_position_embeddings", 4096)
    norm, bias = NormConfig("rms", raw.number("rms_norm_eps", 1e-5)), raw.flag("attention_bias", False)
    raw.expect("clip_qkv", None)
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
    n_experts = experts.read_n_experts(raw, "num_experts", "num_local_experts", 64)
    moe = MoEConfig(n_experts, raw.size("num_experts_per_tok", 8), normed=raw.flag("norm_topk_prob", False))
    return ModelConfig(
        family="olmoe",
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        context_length=context,
        layers=(LayerConfig(attention, mlp, norm, experts=moe),) * raw.size("num_hidden_layers"),
        final_norm=norm,
        tied_head=raw.flag("tie_word_embeddings", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    raw, (_, moe, _) = llama.write(config), experts.expert_parts(config)
    for name in ("mlp_bias", "head_dim"):
        del raw[name]
    return raw | {
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "norm_topk_prob": moe.normed,
        "pad_token_id": None,
    }


FAMILY = Family("olmoe", "OlmoeForCausalLM", read, write, rules=RULES, alternatives=experts.FUSED_EXPERTS)
