"""How families are written in GGUF: which metadata key says what, and which tensor is which parameters.

A key of metadata stands for one of config.json, so that each family is read by its own reader. The format names tensors
alike in all architectures; what one has of its own is said beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from glassformer.config import ModelConfig
from glassformer.errors import ConfigError
from glassformer.families import FAMILIES, family_of, write_config
from glassformer.families.family import Family, Fields, Rule, linear

EMBED, HEAD = "token_embd.weight", "output.weight"

OUTSIDE = (
    Rule(EMBED, ("embed.weight",)),
    Rule("position_embd.weight", ("positions.weight",)),
    *linear("output_norm", "norm"),
    Rule(HEAD, ("head.weight",)),
)
BLOCK = (
    *linear("blk.{i}.attn_norm", "blocks.{i}.attn_residual.pre"),
    *linear("blk.{i}.attn_output", "blocks.{i}.attn.o"),
    *linear("blk.{i}.ffn_norm", "blocks.{i}.mlp_residual.pre"),
    *linear("blk.{i}.ffn_gate", "blocks.{i}.mlp.gate"),
    *linear("blk.{i}.ffn_up", "blocks.{i}.mlp.up"),
    *linear("blk.{i}.ffn_down", "blocks.{i}.mlp.down"),
)
FUSED = linear("blk.{i}.attn_qkv", "blocks.{i}.attn.q", "blocks.{i}.attn.k", "blocks.{i}.attn.v")
NORMED = (
    *linear("blk.{i}.attn_q_norm", "blocks.{i}.attn.q_norm"),
    *linear("blk.{i}.attn_k_norm", "blocks.{i}.attn.k_norm"),
)


def _separate(interleaved: bool = False) -> tuple[Rule, ...]:
    return (
        *linear("blk.{i}.attn_q", "blocks.{i}.attn.q", interleaved=interleaved),
        *linear("blk.{i}.attn_k", "blocks.{i}.attn.k", interleaved=interleaved),
        *linear("blk.{i}.attn_v", "blocks.{i}.attn.v"),
    )


@dataclass(frozen=True)
class Gguf:
    """One architecture. `rules`: tensors to parameters.

    `keys`: a metadata key, after the architecture's name, and the key of config.json that it is. `same`: keys that must
    say what another key of config.json says already. `fixed`: what config.json says of the only thing that programs
    which read the format compute. `present`: keys of config.json that are true where a tensor is there.
    """

    architecture: str
    rules: tuple[Rule, ...]
    keys: Mapping[str, str]
    same: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    present: Mapping[str, str] = field(default_factory=dict)


ROTARY = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
ONE_HEAD_DIM = {"attention.value_length": "head_dim", "rope.dimension_count": "head_dim", "vocab_size": "vocab_size"}

GGUF: dict[str, Gguf] = {
    "gpt2": Gguf(
        "gpt2",
        (*OUTSIDE, *BLOCK, *FUSED),
        {
            "block_count": "n_layer",
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        same={"attention.head_count_kv": "n_head", "vocab_size": "vocab_size"},
        fixed={"activation_function": "gelu_new", "scale_attn_weights": True},
    ),
    "llama": Gguf(
        "llama",
        (*OUTSIDE, *BLOCK, *_separate(interleaved=True)),
        ROTARY,
        same=ONE_HEAD_DIM,
        fixed={"hidden_act": "silu"},
        present={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"},
    ),
    "qwen3": Gguf(
        "qwen3", (*OUTSIDE, *BLOCK, *_separate(), *NORMED), ROTARY, same=ONE_HEAD_DIM, fixed={"hidden_act": "silu"}
    ),
}  # fmt: skip


def in_gguf(family: Family) -> Family:
    """The family as GGUF lays it out. ConfigError where the format, or this library, does not."""
    if family.name not in GGUF:
        raise ConfigError(f"{family.name} has no GGUF form here; those with one are {', '.join(GGUF)}")
    return replace(family, rules=GGUF[family.name].rules, prefix="", ignored=(), others=())


def read_metadata(
    metadata: Mapping[str, Any], tensors: Collection[str], vocab_size: int, source: str, ignore: tuple[str, ...] = ()
) -> ModelConfig:
    """A file's metadata, the names of its tensors and its embedding's rows as a configuration.

    Every key of the architecture is taken, or ignored by name; ConfigError lists those that are not.
    """
    architecture = metadata.get("general.architecture")
    name = next((name for name, gguf in GGUF.items() if gguf.architecture == architecture), None)
    if name is None:
        known = ", ".join(gguf.architecture for gguf in GGUF.values())
        raise ConfigError(f"{source}: unknown architecture {architecture!r}. Known: {known}")
    gguf, start = GGUF[name], f"{architecture}."
    own = {key.removeprefix(start): value for key, value in metadata.items() if key.startswith(start)}
    unread = sorted(own.keys() - gguf.keys.keys() - gguf.same.keys() - set(ignore))
    if unread:
        raise ConfigError(
            f"{source}: keys this family does not understand: {', '.join(unread)}. "
            "Name those that do not matter with --ignore-key."
        )
    raw = dict(gguf.fixed)
    raw |= {theirs: own[key] for key, theirs in gguf.keys.items() if key in own}
    raw |= {theirs: tensor in tensors for theirs, tensor in gguf.present.items()}
    raw |= {"vocab_size": vocab_size, "tie_word_embeddings": HEAD not in tensors}
    config = FAMILIES[name].read(Fields(raw, source))
    assert isinstance(config, ModelConfig)
    said = FAMILIES[name].write(config)
    for key, theirs in gguf.same.items():
        if key in own and own[key] != said[theirs]:
            raise ConfigError(f"{source}: {start}{key} = {own[key]} is not supported, only {said[theirs]}")
    return config


def write_metadata(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """A configuration as an architecture's name and its keys. ConfigError where they cannot say what it says."""
    family = in_gguf(family_of(config))
    gguf, raw = GGUF[family.name], write_config(config)
    own = {key: raw[theirs] for key, theirs in {**gguf.keys, **gguf.same}.items() if raw.get(theirs) is not None}
    metadata = {"general.architecture": gguf.architecture}
    metadata |= {f"{gguf.architecture}.{key}": value for key, value in own.items()}
    tensors = {tensor for theirs, tensor in gguf.present.items() if raw[theirs]}
    tensors |= set() if config.tied_head else {HEAD}
    again = read_metadata(metadata, tensors, config.vocab_size, "GGUF")
    if again != config:
        raise ConfigError(f"GGUF's {gguf.architecture} cannot describe this model: {config}")
    return gguf.architecture, metadata
