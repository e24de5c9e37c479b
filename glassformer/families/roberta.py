"""RoBERTa (Liu et al. 2019) and XLM-RoBERTa (Conneau et al. 2020).

BERT whose positions begin in row `pad_token_id` + 1 of their table, and whose head always uses GELU.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from glassformer.config import TextEncoderConfig
from glassformer.families import bert
from glassformer.families.common.family import ConfigFields, Family, linear, rule


def read(raw: ConfigFields) -> TextEncoderConfig:
    return bert.read_stack(raw, "roberta", raw.size("pad_token_id", 1, minimum=0) + 1)


def detect_heads(config: TextEncoderConfig, names: Collection[str]) -> TextEncoderConfig:
    return bert.detect_heads_by_prefix(config, names, "lm_head.", "gelu")


def write(config: TextEncoderConfig) -> dict[str, Any]:
    return bert.write_stack(config, "Roberta") | {"pad_token_id": config.position_offset - 1}


def read_xlm(raw: ConfigFields) -> TextEncoderConfig:
    return replace(read(raw), family="xlm-roberta")


def write_xlm(config: TextEncoderConfig) -> dict[str, Any]:
    return bert.write_stack(config, "XLMRoberta") | {"pad_token_id": config.position_offset - 1}


FAMILY = Family(
    "roberta", "RobertaModel", read, write, prefix="roberta.", detect_heads=detect_heads,
    rules=(
        *bert.rules("roberta."), *linear("lm_head.dense", "head.dense"), *linear("lm_head.layer_norm", "head.norm"),
        rule("lm_head.bias", "head.output.bias"),
    ),
    ignored=(r"embeddings\.position_ids",),
    embedding_copies=("lm_head.decoder.weight",),
    duplicates=(("lm_head.decoder.bias", "lm_head.bias"),),
)  # fmt: skip
XLM_ROBERTA = replace(FAMILY, name="xlm-roberta", architecture="XLMRobertaModel", read=read_xlm, write=write_xlm)
