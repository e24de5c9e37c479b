"""Which architecture of GGUF each family is, and what its metadata say: a few lines a family, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from glassformer.config import ModelConfig, TextEncoderConfig
from glassformer.families.common.family import TensorRule
from glassformer.formats.gguf.latent import LatentKeys
from glassformer.formats.gguf.metadata_keys import DIVISORS, LONG, SHORT, Rope, Windows
from glassformer.formats.gguf.tensor_names import (
    BEHIND,
    COMMON,
    FUSED,
    HALVES,
    LATENT,
    OTHER_EXPERTS,
    OTHER_LATENT,
    PAIRS,
    RELATIVE,
    SIDES,
    TYPES,
    but,
    plus_one,
)

Keys = Mapping[str, Any]


TURNING = Rope()


@dataclass(frozen=True)
class GgufArchitecture:
    """One architecture. `rules`: tensors to parameters; `others` may stand in their place in files that we read.

    `keys`: a metadata key, after the architecture's name, and the key of config.json that it is. `fixed`: what
    config.json says of the only thing that programs which read the format compute. `only`: metadata of which only one
    value is computed. `unread`: metadata that are written, and that tensors say better. `present`, `absent`: keys of
    config.json that are true where a tensor is there, or is not. `derived`: more keys of config.json, from those read.
    `silent`: what a key of metadata is in a file that does not say it. `same`: what must be said as the model has it.
    `needs`: a tensor without which a file is of another family. `types`: config.json's key of how many types of tokens
    there are, which the tokenizer's metadata say. `beside`: keys that say nothing of the configuration. `unused`:
    tensors that a file may have, and nothing computes with.
    """

    architecture: str
    rules: tuple[TensorRule, ...]
    keys: Mapping[str, str]
    fixed: Keys = field(default_factory=dict)
    only: Keys = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    present: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    derived: Callable[[dict[str, Any]], dict[str, Any]] = lambda raw: {}
    rope: Rope | None = TURNING
    windows: Windows | None = None
    latent: LatentKeys | None = None
    silent: Keys = field(default_factory=dict)
    same: Mapping[str, Callable[[ModelConfig | TextEncoderConfig], Any]] = field(default_factory=lambda: SAME)
    others: tuple[TensorRule, ...] = ()
    needs: str | None = None
    types: str | None = None
    beside: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


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
WIDE = NORMED | {"attention.key_length": "head_dim"}  # whose heads may be wider than d_model / n_heads
OPTIONAL = ("attention.head_count_kv", "attention.key_length", "attn_logit_softcapping", "final_logit_softcapping",
            "attention.clamp_kqv", "decoder_block_count")  # fmt: skip
USED = {"expert_used_count": "num_experts_per_tok"}
MIXED = USED | {"expert_count": "num_local_experts"}
ROUTED = USED | {"expert_count": "num_experts"}
CAP = {"final_logit_softcapping": "final_logit_softcapping"}
SILU, GELU = {"hidden_act": "silu"}, {"hidden_activation": "gelu_pytorch_tanh"}
UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}

# What any architecture may say of itself, and must then say as its configuration does.
SAME: Mapping[str, Callable[[ModelConfig | TextEncoderConfig], Any]] = {
    "attention.head_count_kv": lambda config: config.layers[0].attention.n_kv_heads,
    "attention.key_length": lambda config: config.layers[0].attention.head_dim,
    "attention.value_length": lambda config: config.layers[0].attention.head_dim,
    "vocab_size": lambda config: config.vocab_size,
}


def _scale(wide: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The scale of Gemma's scores, which the format does not say: another one in the largest, known by its layers."""

    def derived(raw: dict[str, Any]) -> dict[str, Any]:
        by_width = raw["num_hidden_layers"] == wide
        width = raw["hidden_size"] // raw["num_attention_heads"]
        return {"query_pre_attn_scalar": width if by_width else raw["head_dim"]}

    return derived


def _queries(raw: dict[str, Any]) -> dict[str, Any]:
    """Falcon's config.json says of key/value heads that there is one."""
    return {"multi_query": raw["num_kv_heads"] == 1}


def _method(raw: dict[str, Any]) -> dict[str, Any]:
    """DeepSeek-V2's config.json has a name for how experts are chosen."""
    return {"topk_method": "group_limited_greedy" if raw["n_group"] > 1 else "greedy"}


def _gated(raw: dict[str, Any]) -> dict[str, Any]:
    """T5's config.json has a name for the feed-forward layer; of each kind programs compute one."""
    return {"feed_forward_proj": "gated-gelu" if raw["is_gated_act"] else "relu"}


LLAMA = GgufArchitecture(
    "llama",
    (*COMMON, *PAIRS),
    WIDE,
    fixed=SILU,
    present={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"},
    rope=Rope(tensors=(DIVISORS, SHORT, LONG)),
)
DEEPSEEK = GgufArchitecture(
    "deepseek2",
    (*COMMON, *PAIRS, *LATENT),
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
    fixed=SILU | {"attention_bias": False, "moe_layer_freq": 1},
    only={RMS: 1e-6, "expert_gating_func": 1},  # of norms of latents it is no other
    derived=_method,
    rope=Rope(latent=True),
    latent=LatentKeys(),
    silent={
        "leading_dense_block_count": 0,
        "expert_weights_scale": 1.0,
        "expert_weights_norm": False,
        "expert_group_count": 1,
        "expert_group_used_count": 1,
    },
    same={"vocab_size": SAME["vocab_size"]},
    others=(*OTHER_LATENT, *OTHER_EXPERTS),
)
GEMMA = GgufArchitecture("gemma", plus_one((*COMMON, *HALVES)), WIDE, fixed={"hidden_act": "gelu_pytorch_tanh"} | TIED)

BERT = GgufArchitecture(
    "bert",
    (*COMMON, *HALVES, *BEHIND),
    SIZES | {LAYER: "layer_norm_eps"},
    fixed={"hidden_act": "gelu"},
    only={"attention.causal": False},
    rope=None,
    others=FUSED,
    needs=TYPES,
    types="type_vocab_size",
    beside=("pooling_type",),
)

GGUF: dict[str, GgufArchitecture] = {
    "bert": BERT,
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": replace(DEEPSEEK, only={RMS: 1e-6, "expert_gating_func": 2}, derived=lambda raw: {}),
    "distilbert": replace(
        BERT,
        keys={
            "block_count": "n_layers",
            "context_length": "max_position_embeddings",
            "embedding_length": "dim",
            "feed_forward_length": "hidden_dim",
            "attention.head_count": "n_heads",
        },
        fixed={"activation": "gelu"},
        only={"attention.causal": False, LAYER: 1e-12},
        needs=None,
        types=None,
    ),
    "falcon": GgufArchitecture(
        "falcon",
        (*COMMON, *FUSED),
        {
            **SIZES,
            "feed_forward_length": "ffn_hidden_size",
            "attention.head_count_kv": "num_kv_heads",
            LAYER: "layer_norm_epsilon",
        },
        fixed={"activation": "gelu", "bias": False, "parallel_attn": True},
        only={"tensor_data_layout": "jploski"},
        present={"new_decoder_architecture": "blk.0.attn_norm_2.weight"},
        derived=_queries,
    ),
    "gemma": GEMMA,
    "gemma2": replace(
        GEMMA,
        architecture="gemma2",
        keys=WIDE | CAP | {"attn_logit_softcapping": "attn_logit_softcapping"},
        fixed=GELU | TIED,
        derived=_scale(46),
        windows=Windows(2, 4096, needed=True),
    ),
    "gemma3_text": replace(
        GEMMA,
        architecture="gemma3",
        keys=WIDE | CAP,
        fixed=GELU,
        derived=_scale(62),
        rope=Rope(local="rope_local_base_freq"),
        windows=Windows(6),
    ),
    "gpt2": GgufArchitecture(
        "gpt2",
        (*COMMON, *FUSED),
        {
            "block_count": "n_layer",
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            LAYER: "layer_norm_epsilon",
        },
        fixed={"activation_function": "gelu_new", "scale_attn_weights": True},
        rope=None,
    ),
    "gpt_neox": GgufArchitecture(
        "gptneox",
        (*COMMON, *FUSED),
        SIZES | {LAYER: "layer_norm_eps", "use_parallel_residual": "use_parallel_residual"},
        fixed={"hidden_act": "gelu", "attention_bias": True} | UNTIED,
        rope=Rope("rotary_emb_base", "rotary_pct"),
    ),
    "gpt_oss": GgufArchitecture(
        "gpt-oss",
        (
            *but((*COMMON, *HALVES), "ffn_norm", "post_attention_norm"),
            TensorRule("blk.{i}.post_attention_norm.weight", ("blocks.{i}.mlp_norm.weight",)),
        ),
        {**WIDE, **MIXED, "expert_feed_forward_length": "intermediate_size"},
        fixed={"swiglu_limit": 7.0, "attention_bias": True} | UNTIED,
        unread={"feed_forward_length": "intermediate_size"},
        rope=Rope(truncate=False),
        windows=Windows(2, needed=True),
    ),
    "llama": LLAMA,
    "mixtral": replace(LLAMA, keys=WIDE | MIXED, present={}, others=OTHER_EXPERTS),
    "olmo": GgufArchitecture(
        "olmo",
        (*COMMON, *PAIRS),
        GROUPED | {"attention.clamp_kqv": "clip_qkv"},
        fixed=SILU | {"attention_bias": False},
        only={LAYER: 1e-5},
    ),
    "olmo2": GgufArchitecture(
        "olmo2", (*COMMON, *HALVES), NORMED, fixed=SILU | UNTIED | {"attention_bias": False}, others=FUSED
    ),
    "olmoe": GgufArchitecture(
        "olmoe",
        (*COMMON, *HALVES),
        SIZES | ROUTED | {RMS: "rms_norm_eps"},
        fixed=SILU | UNTIED | {"attention_bias": False, "norm_topk_prob": False},
        others=(*FUSED, *OTHER_EXPERTS),
    ),
    "phi": GgufArchitecture(
        "phi2",
        (*COMMON, *HALVES),
        GROUPED | {LAYER: "layer_norm_eps"},
        fixed={"hidden_act": "gelu_new", "qk_layernorm": False} | UNTIED,
        rope=Rope(part="partial_rotary_factor"),
        others=FUSED,
    ),
    "phi3": GgufArchitecture(
        "phi3",
        (
            *but(COMMON, "ffn_gate", "ffn_up"),
            *FUSED,
            TensorRule("blk.{i}.ffn_up.weight", ("blocks.{i}.mlp.gate.weight", "blocks.{i}.mlp.up.weight")),
        ),
        NORMED,
        fixed=SILU,
        rope=Rope(part="partial_rotary_factor", tensors=(SHORT, LONG)),
        windows=Windows(),
        others=HALVES,
    ),
    "qwen2": GgufArchitecture("qwen2", (*COMMON, *HALVES), NORMED, fixed=SILU, others=FUSED),
    "qwen3": GgufArchitecture("qwen3", (*COMMON, *HALVES), WIDE, fixed=SILU, others=FUSED),
    "qwen3_moe": GgufArchitecture(
        "qwen3moe",
        (*COMMON, *HALVES),
        {**WIDE, **ROUTED, "expert_feed_forward_length": "moe_intermediate_size"},
        fixed=SILU | {"norm_topk_prob": True, "mlp_only_layers": []},
        others=(*FUSED, *OTHER_EXPERTS),
    ),
    "smollm3": GgufArchitecture(
        "smollm3", (*COMMON, *PAIRS), WIDE, fixed=SILU | {"attention_bias": False, "mlp_bias": False}
    ),
    "stablelm": GgufArchitecture(
        "stablelm",
        (*COMMON, *HALVES),
        GROUPED | {LAYER: "layer_norm_eps"},
        fixed=SILU | UNTIED,
        unread={"use_parallel_residual": "use_parallel_residual"},
        present={"use_qkv_bias": "blk.0.attn_q.bias", "qk_layernorm": "blk.0.attn_q_norm.weight"},
        absent={"use_parallel_residual": "blk.0.ffn_norm.weight"},
        rope=Rope(part="partial_rotary_factor"),
        others=FUSED,
    ),
    "t5": GgufArchitecture(
        "t5",
        SIDES,
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
        fixed={"relative_attention_max_distance": 128},
        present={"is_gated_act": "dec.blk.0.ffn_gate.weight"},
        derived=_gated,
        rope=None,
        same=SAME | {LAYER: lambda config: config.layers[0].norm.eps},
        beside=("decoder_start_token_id",),
        unused=(rf"dec\.blk\.\d+\.cross_{RELATIVE}",),
    ),
}  # fmt: skip

# families that are, as far as the format goes, another
AS = {"mistral": "llama", "roberta": "bert", "xlm-roberta": "bert"}
# and those of which there is none, for what reason
NO_FORM = {
    "bart": "llama.cpp, whose format it is, runs T5 of all encoder-decoders, and no BART",
    "marian": "llama.cpp, whose format it is, runs T5 of all encoder-decoders, and no Marian",
}
