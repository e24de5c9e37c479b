"""One file per model family: config.json to ModelConfig and back, and tensor names, as data."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from types import MappingProxyType
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
from glassformer.families.common.neutral import neutral_values
from glassformer.families.common.shape import ShapeConfig

DECODERS = (
    deepseek_v2, deepseek_v3,
    falcon, gemma, gemma2, gemma3, gpt2, gpt_neox, gpt_oss, llama, mistral, mixtral, olmo, olmo2, olmoe, phi,
    phi3, qwen2, qwen3, qwen3_moe, smollm3, stablelm,
)  # fmt: skip
ENCODER_DECODERS = (bart, marian, t5)
ENCODERS = (bert, distilbert, roberta)
# Families that share a file with another.
VARIANTS = (gemma3.MULTIMODAL, seq2seq.ENCODER_DECODER, seq2seq.RECURRENT, roberta.XLM_ROBERTA)
FAMILIES: dict[str, Family] = {
    f.name: f for f in (*(one.FAMILY for one in (*DECODERS, *ENCODER_DECODERS, *ENCODERS)), *VARIANTS)
}


def find_family(name: object, raw: Mapping[str, Any] = MappingProxyType({})) -> Family:
    """Return the family of a `model_type`.

    Raises:
        ConfigError: the name is unknown; the message gives the family that reads the keys of `raw` best.
    """
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    near = nearest_family(raw)
    hint = "" if near is None else f"; the keys are most like those of {near.name!r}"
    raise ConfigError(f"unknown model_type {name!r:.100}{hint}. Known: {', '.join(sorted(FAMILIES))}")


def nearest_family(raw: Mapping[str, Any]) -> Family | None:
    """Return the family of the stated architecture, or the one whose own config.json has the most similar keys.

    None: no family can read it.
    """
    stated, distances = raw.get("architectures"), {}
    for family in FAMILIES.values():
        if isinstance(stated, list) and family.architecture in stated:
            return family
        fields = ConfigFields({key: value for key, value in raw.items() if key != "model_type"}, "config.json")
        with contextlib.suppress(ConfigError):
            config = family.read(fields)
            neutral = neutral_values(config)
            unknown = sum(raw[key] not in (None, *neutral.get(key, ())) for key in fields.unread)
            distances[family.name] = unknown, len(family.write(config).keys() - raw.keys())
    return FAMILIES[min(distances, key=lambda name: distances[name])] if distances else None


def family_of(config: AnyConfig) -> Family:
    """Return the family that a model of this configuration is saved as."""
    return seq2seq.RECURRENT if isinstance(config, RecurrentConfig) else find_family(config.family)


def read_config(raw: dict[str, Any], source: str, ignore: tuple[str, ...] = ()) -> AnyConfig:
    """Convert config.json to a configuration. ConfigError: lists the unknown keys."""
    fields = ConfigFields(raw, source, ignore)
    with fields.naming_source():
        config = find_family(fields.take("model_type", None), raw).read(fields)
    fields.close(neutral_values(config))
    return config


def write_config(config: AnyConfig, names: Collection[str] = ()) -> dict[str, Any]:
    """Convert a configuration to config.json.

    Args:
        names: the names of the stored tensors, from which the heads of an encoder are detected.

    Raises:
        ConfigError: the family's config.json cannot describe the configuration.
    """
    entry = family_of(config)
    raw = {"model_type": entry.name, "architectures": [entry.architecture], **entry.write(config)}
    if entry.detect_heads(read_config(raw, "config.json"), names) != config:
        raise ConfigError(f"a {entry.architecture} config.json cannot describe this model: {config}")
    return raw


def expand(shape: ShapeConfig, vocab_size: int = 0) -> ModelConfig:
    """Return the full configuration of a shape; `vocab_size` is the tokenizer's."""
    return find_family(shape.family).shape(shape.fill(vocab_size))
