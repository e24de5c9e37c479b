"""The parity cases of each family: variants of our tiny configurations, and configurations of `transformers`.

A change is a path of `change`; a path that begins with `*.` applies to every layer.
"""

import math
from dataclasses import replace

import transformers
from tiny_families import CONFIGS

from glassformer.config import LongScaling, RopeConfig, YarnScaling

QWEN3_ROUTED, *_, QWEN3_PLAIN = CONFIGS["qwen3_moe"]().layers
V2_PLAIN, V2_ROUTED, _ = CONFIGS["deepseek_v2"]().layers
V3_PLAIN, V3_ROUTED, _ = CONFIGS["deepseek_v3"]().layers
YARN = YarnScaling(4.0, 16, beta_fast=2.5, beta_slow=0.1, attention_factor=1.2)
SHARPER = (0.1 * 0.43 * math.log(4.0) + 1) ** 2 / math.sqrt(14)

# Changes to the tiny model. transformers must read each from config.json and apply it.
VARIANTS = {
    "qwen3": [
        {},
        {"layers.0.attention.window": 5, "layers.2.attention.window": 5},
        {"layers.1.attention.window": None},
        {"tied_head": True},
        {"*.attention.rope.theta": 50.0},
        {"*.attention.n_kv_heads": 4},
        {"*.attention.n_kv_heads": 1},
        {"*.attention.head_dim": 6},
        {"*.attention.bias": False, "*.attention.out_bias": False},
        {"*.mlp.activation": "gelu"},
        {"*.mlp.activation": "gelu_tanh"},
    ],
    "llama": [
        {},
        {"tied_head": False},
        {"*.attention.rope.theta": 50.0},
        {"*.attention.n_kv_heads": 2},
        {"*.attention.bias": False, "*.attention.out_bias": False},
        {"*.mlp.bias": False},
        {"*.mlp.activation": "gelu_tanh"},
        {"*.mlp.activation": "relu"},
    ],
    "gpt2": [
        {},
        {"tied_head": False},
        {"*.attention.scale": 1.0},
        {"*.mlp.activation": "gelu"},
        {"*.mlp.activation": "relu"},
        {"*.mlp.activation": "silu"},
    ],
    "mistral": [
        {},
        {"*.attention.window": None},
        {"tied_head": True},
        {"*.attention.head_dim": 12, "*.attention.n_kv_heads": 1},
        {"*.mlp.activation": "gelu"},
    ],
    "qwen2": [
        {},
        {"*.attention.window": None},
        {"layers.0.attention.window": 5, "layers.1.attention.window": None},
        {"tied_head": True, "*.attention.n_kv_heads": 4},
        {"*.attention.rope.scaling": YARN},
    ],
    "gpt_neox": [
        {},
        {"*.parallel": False},
        {"*.attention.rope.dim": None},
        {"*.attention.rope.dim": 2, "tied_head": True},
        {"*.attention.bias": False, "*.attention.out_bias": False},
        {"*.mlp.activation": "gelu_tanh"},
    ],
    "gemma": [
        {},
        {"tied_head": False},
        {"*.attention.bias": False, "*.attention.out_bias": False},
        {"*.attention.n_kv_heads": 4, "*.attention.head_dim": 12},
        {"*.mlp.activation": "silu"},
    ],
    "gemma2": [
        {},
        {"logit_softcap": None},
        {"*.attention.softcap": None},
        {"*.attention.scale": 20**-0.5},
        {"*.attention.window": None},
        {"tied_head": False, "*.mlp.activation": "gelu"},
    ],
    "gemma3_text": [
        {},
        {"logit_softcap": None},
        {"layers.1.attention.rope.scaling": None},
        {"layers.1.attention.window": 5, "layers.1.attention.rope": RopeConfig(100.0)},
        {"*.attention.window": None, "*.attention.rope": RopeConfig(70.0)},
        {"tied_head": False, "*.attention.bias": False, "*.attention.out_bias": False},
    ],
    "phi3": [
        {},
        {"*.attention.window": None},
        {"*.attention.rope": RopeConfig(100.0)},
        {"*.attention.rope": RopeConfig(100.0, 6), "tied_head": True},
        {"*.attention.rope": RopeConfig(100.0, 2, LongScaling((1.3,), (2.0,), 24, 1.1)), "*.attention.n_kv_heads": 4},
    ],
    "phi": [
        {},
        {"*.attention.qk_norm": None},
        {"*.attention.rope.dim": None, "*.attention.n_kv_heads": 4},
        {"*.mlp.activation": "gelu"},
    ],
    "olmo": [
        {},
        {"*.attention.clip": None},
        {"tied_head": True, "*.attention.n_kv_heads": 4},
        {"*.attention.bias": False, "*.attention.out_bias": False},
    ],
    "olmo2": [
        {},
        {"tied_head": True, "*.attention.n_kv_heads": 4},
        {"*.attention.bias": False, "*.attention.out_bias": False},
        {"*.mlp.activation": "relu"},
    ],
    "smollm3": [
        {},
        {"layers.2.attention.window": None},
        {"layers.0.attention.rope": None, "layers.2.attention.rope": RopeConfig(100.0)},
        {"layers.0.attention.window": 7, "tied_head": False, "*.mlp.bias": False},
        {"*.attention.bias": False, "*.attention.out_bias": False},
    ],
    "falcon": [
        {},
        {"*.attention.n_kv_heads": 4},
        {"*.shared_norm": False, "*.parallel": False},
        {"*.attention.bias": False, "*.attention.out_bias": False, "*.mlp.bias": False},
        {"tied_head": False, "*.mlp.activation": "gelu_tanh"},
    ],
    "stablelm": [
        {},
        {"*.shared_norm": False, "*.parallel": False},
        {"*.attention.qk_norm_over": "head", "*.attention.qk_norm": None},
        {"*.attention.bias": False, "*.attention.n_kv_heads": 4},
        {"*.attention.rope.dim": None, "tied_head": True},
    ],
    "mixtral": [
        {},
        {"*.attention.window": None, "tied_head": True},
        {"*.experts.top_k": 1},
        {"*.experts.n_experts": 3, "*.attention.head_dim": 12},
        {"*.mlp.activation": "gelu"},
    ],
    "qwen3_moe": [
        {},
        {"layers.0.experts.normed": True, "layers.1.experts.normed": True},
        {"layers.0": QWEN3_PLAIN, "layers.2": QWEN3_ROUTED},
        {"layers.2": QWEN3_ROUTED, "*.attention.window": None},
        {"*.attention.bias": False, "*.attention.out_bias": False, "tied_head": True},
    ],
    "olmoe": [
        {},
        {"*.experts.normed": True, "*.attention.n_kv_heads": 4},
        {"*.attention.bias": False, "*.attention.out_bias": False, "tied_head": True},
        {"*.experts.top_k": 6},
    ],
    "gpt_oss": [
        {},
        {"*.attention.window": None, "tied_head": True},
        {"*.attention.rope.scaling": None, "layers.1.attention.window": 5},
        {"*.attention.bias": False, "*.attention.out_bias": False, "*.experts.top_k": 1},
        {"*.mlp.limit": 7.0, "*.attention.n_kv_heads": 4},
    ],
    "deepseek_v2": [
        {},
        {"*.attention.latent.q_rank": None, "*.attention.scale": None},
        {"*.attention.rope": RopeConfig(100.0, 8), "*.attention.scale": None, "tied_head": True},
        {"*.attention.bias": False, "*.attention.out_bias": False, "*.attention.scale": SHARPER},
        {
            "*.attention.head_dim": 22,
            "*.attention.scale": None,
            "*.attention.latent.v_dim": 24,
            "*.attention.latent.rank": 6,
        },
        {f"layers.{i}.experts": replace(V2_ROUTED.experts, n_groups=1, top_groups=1) for i in (1, 2)},
        {"layers.0": V2_ROUTED, "layers.1.experts.scale": 1.7},
        {"layers.1": V2_PLAIN, "*.mlp.activation": "gelu"},
    ],
    "deepseek_v3": [
        {},
        {"*.attention.latent.q_rank": None, "*.attention.scale": None},
        {"*.attention.rope": RopeConfig(100.0, 8), "*.attention.scale": None, "tied_head": True},
        {"*.attention.bias": False, "*.attention.out_bias": False, "*.attention.scale": SHARPER},
        {"layers.1.experts.normed": False, "layers.2.experts.normed": False},
        {"layers.0": V3_ROUTED, "layers.1.experts.top_k": 3},
        {f"layers.{i}.experts": replace(V3_ROUTED.experts, n_groups=1, top_groups=1, group_best=1) for i in (1, 2)},
        {"layers.1": V3_PLAIN, "layers.2.experts.shared_d_ff": 72},
    ],
}


def expand_layers(changes, n_layers):
    """Expand `*` in the paths of changes to every layer."""
    return {
        path.replace("*", f"layers.{i}"): value
        for path, value in changes.items()
        for i in (range(n_layers) if "*" in path else [0])
    }


CASES = [(f, expand_layers(v, CONFIGS[f]().n_layers)) for f in CONFIGS for v in VARIANTS[f]]
NAMES = [f"{f}-{' '.join(f'{k}={v}' for k, v in c.items())[:60] or 'default'}" for f in CONFIGS for c in VARIANTS[f]]

SIZES = {
    "vocab_size": 89, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 48,
}  # fmt: skip

LATENT = {
    "kv_lora_rank": 16, "qk_nope_head_dim": 10, "qk_rope_head_dim": 8, "v_head_dim": 7, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}  # fmt: skip

HF_CONFIGS = {
    "qwen3": lambda: transformers.Qwen3Config(
        **SIZES, num_key_value_heads=2, head_dim=10, use_sliding_window=True, sliding_window=6,
        max_window_layers=2, rope_parameters={"rope_type": "default", "rope_theta": 200.0}, attention_bias=True,
    ),
    "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=2, mlp_bias=True, tie_word_embeddings=True),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=89, n_embd=32, n_layer=2, n_head=4, n_positions=48, activation_function="gelu_new",
    ),
    "mistral": lambda: transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=7),
    "qwen2": lambda: transformers.Qwen2Config(
        **SIZES, num_key_value_heads=2, use_sliding_window=True, sliding_window=6, max_window_layers=1,
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SIZES, rotary_pct=0.5, rotary_emb_base=300),
    "gemma": lambda: transformers.GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=12),
    "gemma2": lambda: transformers.Gemma2Config(
        **SIZES, num_key_value_heads=2, head_dim=12, query_pre_attn_scalar=5, attn_logit_softcapping=4.0,
        final_logit_softcapping=6.0, sliding_window=6,
    ),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(
        **SIZES, num_key_value_heads=2, head_dim=12, query_pre_attn_scalar=5, sliding_window=6,
        sliding_window_pattern=2, rope_theta=1000.0, rope_local_base_freq=50.0,
        rope_scaling={"rope_type": "linear", "factor": 2.0},
    ),
    "phi3": lambda: transformers.Phi3Config(
        **SIZES, num_key_value_heads=2, partial_rotary_factor=0.75, original_max_position_embeddings=24,
        pad_token_id=None, sliding_window=20,
        rope_scaling={"type": "longrope", "short_factor": [1.0, 1.1, 1.2], "long_factor": [1.5, 2.5, 4.0]},
    ),
    "phi": lambda: transformers.PhiConfig(**SIZES, num_key_value_heads=2, qk_layernorm=True),
    "olmo": lambda: transformers.OlmoConfig(**SIZES, num_key_value_heads=2, clip_qkv=1.5),
    "olmo2": lambda: transformers.Olmo2Config(**SIZES, num_key_value_heads=2),
    "smollm3": lambda: transformers.SmolLM3Config(
        **SIZES, num_key_value_heads=2, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=6,
        pad_token_id=None,
    ),
    "falcon": lambda: transformers.FalconConfig(**{
        name: value for name, value in SIZES.items() if name != "intermediate_size"
    }),
    "stablelm": lambda: transformers.StableLmConfig(
        **SIZES, num_key_value_heads=2, use_qkv_bias=True, qk_layernorm=True, partial_rotary_factor=0.5,
    ),
    "mixtral": lambda: transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=5),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SIZES, num_key_value_heads=2, head_dim=10, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24,
        decoder_sparse_step=2, norm_topk_prob=True,
    ),
    "olmoe": lambda: transformers.OlmoeConfig(**SIZES, num_experts=5, num_experts_per_tok=2),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **SIZES, num_key_value_heads=2, head_dim=12, num_local_experts=5, num_experts_per_tok=2, sliding_window=6,
        swiglu_limit=1.5,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 12,
            "truncate": False, "beta_fast": 2.0, "beta_slow": 0.1,
        },
    ),
    "deepseek_v2": lambda: transformers.DeepseekV2Config(
        **SIZES, **LATENT, q_lora_rank=None, n_routed_experts=6, first_k_dense_replace=1, topk_method="greedy",
        n_shared_experts=2,
        rope_scaling={
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12, "beta_fast": 2.0, "beta_slow": 0.1,
            "mscale": 1.5, "mscale_all_dim": 1.5,
        },
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **SIZES, **LATENT, q_lora_rank=20, n_routed_experts=8, n_group=4, topk_group=2, first_k_dense_replace=2,
        num_key_value_heads=4,
        rope_scaling={
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12, "beta_fast": 2.0, "beta_slow": 0.1,
            "mscale": 1.0, "mscale_all_dim": 0.7,
        },
    ),
}  # fmt: skip
