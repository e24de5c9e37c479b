"""The GGUF architecture and metadata keys of each family, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from glassformer.config import ModelConfig, TextEncoderConfig
from glassformer.families.common.family import TensorRule
from glassformer.formats.gguf.metadata_keys import DIVISORS, LONG, SHORT, LatentKeys, RopeKeys, WindowKeys
from glassformer.formats.gguf.tensor_names import (
    ALTERNATIVE_EXPERTS,
    COMMON,
    ENCODER,
    ENCODER_DECODER,
    FUSED_LATENT,
    FUSED_QKV,
    INTERLEAVED_QKV,
    LATENT,
    RELATIVE,
    SEPARATE_QKV,
    TOKEN_TYPES,
    norms_plus_one,
    without,
)

Keys = Mapping[str, Any]


DEFAULT_ROPE = RopeKeys()


@dataclass(frozen=True)
class GgufArchitecture:
    """One architecture.

    Attributes:
        rules: tensors to parameters; `alternatives` may replace them in files that are read.
        keys: metadata keys, without the architecture's name, and their keys of config.json.
        implied: config.json values that are the only ones llama.cpp supports.
        required: metadata of which only one value is supported.
        write_only: metadata that is written; when reading, the values are derived from the tensors.
        true_if_present, true_if_absent: config.json keys that are true if a tensor is present, or absent.
        derive: more keys of config.json, from those read.
        defaults: the values of missing metadata keys.
        must_match: metadata that must agree with the configuration.
        required_tensor: a tensor without which the file is of another family.
        token_types_key: config.json's key of the number of token types, which the tokenizer's metadata holds.
        ignored_keys: keys that do not belong to the configuration.
        ignored_tensors: tensors that a file may have and that nothing uses.
    """

    architecture: str
    rules: tuple[TensorRule, ...]
    keys: Mapping[str, str]
    implied: Keys = field(default_factory=dict)
    required: Keys = field(default_factory=dict)
    write_only: Mapping[str, str] = field(default_factory=dict)
    true_if_present: Mapping[str, str] = field(default_factory=dict)
    true_if_absent: Mapping[str, str] = field(default_factory=dict)
    derive: Callable[[dict[str, Any]], dict[str, Any]] = lambda raw: {}
    rope: RopeKeys | None = DEFAULT_ROPE
    windows: WindowKeys | None = None
    latent: LatentKeys | None = None
    defaults: Keys = field(default_factory=dict)
    must_match: Mapping[str, Callable[[ModelConfig | TextEncoderConfig], Any]] = field(
        default_factory=lambda: MUST_MATCH
    )
    alternatives: tuple[TensorRule, ...] = ()
    required_tensor: str | None = None
    token_types_key: str | None = None
    ignored_keys: tuple[str, ...] = ()
    ignored_tensors: tuple[str, ...] = ()


SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
GROUPED = SIZES | {"attention.head_count_kv": "num_key_value_heads"}
LAYER, RMS = "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"
NORMED = GROUPED | {RMS: "rms_norm_eps"}
WIDE = NORMED | {"attention.key_length": "head_dim"}  # heads may be wider than d_model / n_heads
OPTIONAL_KEYS = ("attention.head_count_kv", "attention.key_length", "attn_logit_softcapping", "final_logit_softcapping",
            "attention.clamp_kqv", "decoder_block_count")  # fmt: skip
USED = {"expert_used_count": "num_experts_per_tok"}
MIXED = USED | {"expert_count": "num_local_experts"}
ROUTED = USED | {"expert_count": "num_experts"}
CAP = {"final_logit_softcapping": "final_logit_softcapping"}
SILU, GELU = {"hidden_act": "silu"}, {"hidden_activation": "gelu_pytorch_tanh"}
UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}

# Optional keys of any architecture; if present, they must match the configuration.
MUST_MATCH: Mapping[str, Callable[[ModelConfig | TextEncoderConfig], Any]] = {
    "attention.head_count_kv": lambda config: config.layers[0].attention.n_kv_heads,
    "attention.key_length": lambda config: config.layers[0].attention.head_dim,
    "attention.value_length": lambda config: config.layers[0].attention.head_dim,
    "vocab_size": lambda config: config.vocab_size,
}


def _scale(wide: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Derive Gemma's score scale, which has no key. The model with `wide` layers, the largest, uses another width."""

    def derived(raw: dict[str, Any]) -> dict[str, Any]:
        by_width = raw["num_hidden_layers"] == wide
        width = raw["hidden_size"] // raw["num_attention_heads"]
        return {"query_pre_attn_scalar": width if by_width else raw["head_dim"]}

    return derived


def _queries(raw: dict[str, Any]) -> dict[str, Any]:
    """Derive Falcon's key for a single key/value head."""
    return {"multi_query": raw["num_kv_heads"] == 1}


def _method(raw: dict[str, Any]) -> dict[str, Any]:
    """Derive DeepSeek-V2's name for the selection of experts."""
    return {"topk_method": "group_limited_greedy" if raw["n_group"] > 1 else "greedy"}


def _gated(raw: dict[str, Any]) -> dict[str, Any]:
    """Derive T5's name for the feed-forward layer; llama.cpp supports one gated and one plain kind."""
    return {"feed_forward_proj": "gated-gelu" if raw["is_gated_act"] else "relu"}


LLAMA = GgufArchitecture(
    "llama",
    (*COMMON, *INTERLEAVED_QKV),
    WIDE,
    implied=SILU,
    true_if_present={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"},
    rope=RopeKeys(tensors=(DIVISORS, SHORT, LONG)),
)
DEEPSEEK = GgufArchitecture(
    "deepseek2",
    (*COMMON, *INTERLEAVED_QKV, *LATENT),
    {
        **SIZES,
        **USED,
        "attention.kv_lora_rank": "kv_lora_rank",
        "leading_dense_block_count": "first_k_dense_replace",
        "expert_count": "n_routed_experts",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_count": "n_shared_experts",
        "expert_weights_scale": "routed_scaling_factor",
        "expert_weights_norm": "norm_topk_prob",
        "expert_group_count": "n_group",
        "expert_group_used_count": "topk_group",
    },
    implied=SILU | {"attention_bias": False, "moe_layer_freq": 1},
    required={RMS: 1e-6, "expert_gating_func": 1},  # the only epsilon of latent norms
    derive=_method,
    rope=RopeKeys(latent=True),
    latent=LatentKeys(),
    defaults={
        "leading_dense_block_count": 0,
        "expert_weights_scale": 1.0,
        "expert_weights_norm": False,
        "expert_group_count": 1,
        "expert_group_used_count": 1,
    },
    must_match={"vocab_size": MUST_MATCH["vocab_size"]},
    alternatives=(*FUSED_LATENT, *ALTERNATIVE_EXPERTS),
)
GEMMA = GgufArchitecture(
    "gemma", norms_plus_one((*COMMON, *SEPARATE_QKV)), WIDE, implied={"hidden_act": "gelu_pytorch_tanh"} | TIED
)

BERT = GgufArchitecture(
    "bert",
    (*COMMON, *SEPARATE_QKV, *ENCODER),
    SIZES | {LAYER: "layer_norm_eps"},
    implied={"hidden_act": "gelu"},
    required={"attention.causal": False},
    rope=None,
    alternatives=FUSED_QKV,
    required_tensor=TOKEN_TYPES,
    token_types_key="type_vocab_size",
    ignored_keys=("pooling_type",),
)

ARCHITECTURES: dict[str, GgufArchitecture] = {
    "bert": BERT,
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": replace(DEEPSEEK, required={RMS: 1e-6, "expert_gating_func": 2}, derive=lambda raw: {}),
    "distilbert": replace(
        BERT,
        keys={
            "block_count": "n_layers",
            "context_length": "max_position_embeddings",
            "embedding_length": "dim",
            "feed_forward_length": "hidden_dim",
            "attention.head_count": "n_heads",
        },
        implied={"activation": "gelu"},
        required={"attention.causal": False, LAYER: 1e-12},
        required_tensor=None,
        token_types_key=None,
    ),
    "falcon": GgufArchitecture(
        "falcon",
        (*COMMON, *FUSED_QKV),
        {
            **SIZES,
            "feed_forward_length": "ffn_hidden_size",
            "attention.head_count_kv": "num_kv_heads",
            LAYER: "layer_norm_epsilon",
        },
        implied={"activation": "gelu", "bias": False, "parallel_attn": True},
        required={"tensor_data_layout": "jploski"},
        true_if_present={"new_decoder_architecture": "blk.0.attn_norm_2.weight"},
        derive=_queries,
    ),
    "gemma": GEMMA,
    "gemma2": replace(
        GEMMA,
        architecture="gemma2",
        keys=WIDE | CAP | {"attn_logit_softcapping": "attn_logit_softcapping"},
        implied=GELU | TIED,
        derive=_scale(46),
        windows=WindowKeys(2, 4096, required=True),
    ),
    "gemma3_text": replace(
        GEMMA,
        architecture="gemma3",
        keys=WIDE | CAP,
        implied=GELU,
        derive=_scale(62),
        rope=RopeKeys(local_theta_key="rope_local_base_freq"),
        windows=WindowKeys(6),
    ),
    "gpt2": GgufArchitecture(
        "gpt2",
        (*COMMON, *FUSED_QKV),
        {
            "block_count": "n_layer",
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            LAYER: "layer_norm_epsilon",
        },
        implied={"activation_function": "gelu_new", "scale_attn_weights": True},
        rope=None,
    ),
    "gpt_neox": GgufArchitecture(
        "gptneox",
        (*COMMON, *FUSED_QKV),
        SIZES | {LAYER: "layer_norm_eps", "use_parallel_residual": "use_parallel_residual"},
        implied={"hidden_act": "gelu", "attention_bias": True} | UNTIED,
        rope=RopeKeys("rotary_emb_base", "rotary_pct"),
    ),
    "gpt_oss": GgufArchitecture(
        "gpt-oss",
        (
            *without((*COMMON, *SEPARATE_QKV), "ffn_norm", "post_attention_norm"),
            TensorRule("blk.{i}.post_attention_norm.weight", ("blocks.{i}.mlp_norm.weight",)),
        ),
        {**WIDE, **MIXED, "expert_feed_forward_length": "intermediate_size"},
        implied={"swiglu_limit": 7.0, "attention_bias": True} | UNTIED,
        write_only={"feed_forward_length": "intermediate_size"},
        rope=RopeKeys(truncate=False),
        windows=WindowKeys(2, required=True),
    ),
    "llama": LLAMA,
    "mixtral": replace(LLAMA, keys=WIDE | MIXED, true_if_present={}, alternatives=ALTERNATIVE_EXPERTS),
    "olmo": GgufArchitecture(
        "olmo",
        (*COMMON, *INTERLEAVED_QKV),
        GROUPED | {"attention.clamp_kqv": "clip_qkv"},
        implied=SILU | {"attention_bias": False},
        required={LAYER: 1e-5},
    ),
    "olmo2": GgufArchitecture(
        "olmo2",
        (*COMMON, *SEPARATE_QKV),
        NORMED,
        implied=SILU | UNTIED | {"attention_bias": False},
        alternatives=FUSED_QKV,
    ),
    "olmoe": GgufArchitecture(
        "olmoe",
        (*COMMON, *SEPARATE_QKV),
        SIZES | ROUTED | {RMS: "rms_norm_eps"},
        implied=SILU | UNTIED | {"attention_bias": False, "norm_topk_prob": False},
        alternatives=(*FUSED_QKV, *ALTERNATIVE_EXPERTS),
    ),
    "phi": GgufArchitecture(
        "phi2",
        (*COMMON, *SEPARATE_QKV),
        GROUPED | {LAYER: "layer_norm_eps"},
        implied={"hidden_act": "gelu_new", "qk_layernorm": False} | UNTIED,
        rope=RopeKeys(factor_key="partial_rotary_factor"),
        alternatives=FUSED_QKV,
    ),
    "phi3": GgufArchitecture(
        "phi3",
        (
            *without(COMMON, "ffn_gate", "ffn_up"),
            *FUSED_QKV,
            TensorRule("blk.{i}.ffn_up.weight", ("blocks.{i}.mlp.gate.weight", "blocks.{i}.mlp.up.weight")),
        ),
        NORMED,
        implied=SILU,
        rope=RopeKeys(factor_key="partial_rotary_factor", tensors=(SHORT, LONG)),
        windows=WindowKeys(),
        alternatives=SEPARATE_QKV,
    ),
    "qwen2": GgufArchitecture("qwen2", (*COMMON, *SEPARATE_QKV), NORMED, implied=SILU, alternatives=FUSED_QKV),
    "qwen3": GgufArchitecture("qwen3", (*COMMON, *SEPARATE_QKV), WIDE, implied=SILU, alternatives=FUSED_QKV),
    "qwen3_moe": GgufArchitecture(
        "qwen3moe",
        (*COMMON, *SEPARATE_QKV),
        {**WIDE, **ROUTED, "expert_feed_forward_length": "moe_intermediate_size"},
        implied=SILU | {"norm_topk_prob": True, "mlp_only_layers": []},
        alternatives=(*FUSED_QKV, *ALTERNATIVE_EXPERTS),
    ),
    "smollm3": GgufArchitecture(
        "smollm3", (*COMMON, *INTERLEAVED_QKV), WIDE, implied=SILU | {"attention_bias": False, "mlp_bias": False}
    ),
    "stablelm": GgufArchitecture(
        "stablelm",
        (*COMMON, *SEPARATE_QKV),
        GROUPED | {LAYER: "layer_norm_eps"},
        implied=SILU | UNTIED,
        write_only={"use_parallel_residual": "use_parallel_residual"},
        true_if_present={"use_qkv_bias": "blk.0.attn_q.bias", "qk_layernorm": "blk.0.attn_q_norm.weight"},
        true_if_absent={"use_parallel_residual": "blk.0.ffn_norm.weight"},
        rope=RopeKeys(factor_key="partial_rotary_factor"),
        alternatives=FUSED_QKV,
    ),
    "t5": GgufArchitecture(
        "t5",
        ENCODER_DECODER,
        {
            "block_count": "num_layers",
            "decoder_block_count": "num_decoder_layers",
            "context_length": "n_positions",
            "embedding_length": "d_model",
            "feed_forward_length": "d_ff",
            "attention.head_count": "num_heads",
            "attention.key_length": "d_kv",
            "attention.relative_buckets_count": "relative_attention_num_buckets",
            RMS: "layer_norm_epsilon",
        },
        implied={"relative_attention_max_distance": 128},
        true_if_present={"is_gated_act": "dec.blk.0.ffn_gate.weight"},
        derive=_gated,
        rope=None,
        must_match=MUST_MATCH | {LAYER: lambda config: config.layers[0].norm.eps},
        ignored_keys=("decoder_start_token_id",),
        ignored_tensors=(rf"dec\.blk\.\d+\.cross_{RELATIVE}",),
    ),
}  # fmt: skip

# Families that are stored as another family.
SAME_AS = {"mistral": "llama", "roberta": "bert", "xlm-roberta": "bert"}
# Families that GGUF cannot hold, and the reason.
UNSUPPORTED = {
    "bart": "llama.cpp, which defines the format, supports T5 as the only encoder-decoder, not BART",
    "marian": "llama.cpp, which defines the format, supports T5 as the only encoder-decoder, not Marian",
}
