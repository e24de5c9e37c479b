"""One file per model family: config.json <-> ModelConfig, and how tensors are named, as plain data."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from glassformer.config import ModelConfig, RecurrentConfig
from glassformer.errors import ConfigError
from glassformer.families import (
    bart,
    bert,
    deepseek_v2,
    deepseek_v3,
    distilbert,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    gpt_oss,
    llama,
    marian,
    mistral,
    mixtral,
    olmo,
    olmo2,
    olmoe,
    phi,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    roberta,
    seq2seq,
    smollm3,
    stablelm,
    t5,
)
from glassformer.families.common.family import AnyConfig, ConfigFields, Family
from glassformer.families.common.shape import ShapeConfig

DECODERS = (
    deepseek_v2, deepseek_v3,
    falcon, gemma, gemma2, gemma3, gpt2, gpt_neox, gpt_oss, llama, mistral, mixtral, olmo, olmo2, olmoe, phi,
    phi3, qwen2, qwen3, qwen3_moe, smollm3, stablelm,
)  # fmt: skip
ENCODER_DECODERS = (bart, marian, t5)
ENCODERS = (bert, distilbert, roberta)
VARIANTS = (seq2seq.ENCODER_DECODER, seq2seq.RECURRENT, roberta.XLM_ROBERTA)  # from the same files as others
FAMILIES: dict[str, Family] = {
    f.name: f for f in (*(one.FAMILY for one in (*DECODERS, *ENCODER_DECODERS, *ENCODERS)), *VARIANTS)
}


def find_family(name: object) -> Family:
    """The family of this name (config.json's `model_type`). ConfigError names the nearest one known."""
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    near = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.3) if isinstance(name, str) else []
    hint = f"; the nearest one known is {near[0]!r}" if near else ""
    raise ConfigError(f"unknown model_type {name!r}{hint}. Known: {', '.join(sorted(FAMILIES))}")


def family_of(config: AnyConfig) -> Family:
    """The family that a model of this configuration is saved under."""
    return seq2seq.RECURRENT if isinstance(config, RecurrentConfig) else find_family(config.family)


def read_config(raw: dict[str, Any], source: str, ignore: tuple[str, ...] = ()) -> AnyConfig:
    """config.json to a configuration. Every key is taken, or ignored by name; ConfigError lists those that are not."""
    fields = ConfigFields(raw, source, ignore)
    config = find_family(fields.take("model_type", None)).read(fields)
    fields.close()
    return config


def write_config(config: AnyConfig, names: Collection[str] = ()) -> dict[str, Any]:
    """A configuration to config.json. ConfigError where the family's format cannot say what the config says.

    `names`: of the tensors that are written beside it, which say which heads an encoder has.
    """
    entry = family_of(config)
    raw = {"model_type": entry.name, "architectures": [entry.architecture], **entry.write(config)}
    if entry.detect_heads(read_config(raw, "config.json"), names) != config:
        raise ConfigError(f"a {entry.architecture} config.json cannot describe this model: {config}")
    return raw


def expand(shape: ShapeConfig, vocab_size: int = 0) -> ModelConfig:
    """The few numbers a person typed, as a whole configuration; `vocab_size` is the tokenizer's."""
    return find_family(shape.family).shape(shape.fill(vocab_size))
