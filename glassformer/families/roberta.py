"""RoBERTa (Liu et al. 2019): BERT whose positions begin behind that of padding, in row `pad_token_id` + 1."""

from __future__ import annotations

from typing import Any

from glassformer.config import EncoderConfig
from glassformer.families import bert
from glassformer.families.family import Family, Fields


def read(raw: Fields) -> EncoderConfig:
    return bert.read_stack(raw, "roberta", raw.size("pad_token_id", 1, least=0) + 1)


def write(config: EncoderConfig) -> dict[str, Any]:
    return bert.write(config) | {"pad_token_id": config.position_offset - 1}


HEADS = (r"(lm_head|pooler|classifier|qa_outputs)\..+", r"embeddings\.position_ids")
FAMILY = Family("roberta", "RobertaModel", read, write, rules=bert.rules("roberta."), prefix="roberta.", ignored=HEADS)
