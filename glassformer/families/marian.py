"""Marian (the OPUS-MT translators): BART with sinusoidal positions, sines first, and no norm behind the embedding.

Models whose two sides have vocabularies of their own are refused.
"""

from __future__ import annotations

from typing import Any

from glassformer.config import ModelConfig
from glassformer.errors import ConfigError
from glassformer.families import bart
from glassformer.families.family import Family, Fields


def read(raw: Fields) -> ModelConfig:
    raw.only("share_encoder_decoder_embeddings", True)
    config = bart.read_stacks(raw, "marian", "gelu", "sinusoidal halves", normed=False)
    written = raw.take("decoder_vocab_size", None)
    if written not in (None, config.vocab_size):
        raise ConfigError(
            f"{raw.source}: decoder_vocab_size must be vocab_size, {config.vocab_size}, where the embedding is shared, "
            f"got {written!r}"
        )
    return config


def write(config: ModelConfig) -> dict[str, Any]:
    last = config.vocab_size - 1  # of its vocabularies it is padding, and what a text begins after
    return bart.write(config) | {
        "share_encoder_decoder_embeddings": True,
        "pad_token_id": last,
        "decoder_start_token_id": last,
    }


TABLES = (r"(encoder|decoder)\.embed_positions\.weight",)
FAMILY = Family(
    "marian", "MarianMTModel", read, write, rules=bart.SHARED, prefix="model.", ignored=TABLES, copies=bart.COPIES,
    framed=True,
)  # fmt: skip
