"""Marian (OPUS-MT): BART with sinusoidal positions, sines first, and no norm after the embedding.

With separate vocabularies each side has its own embedding, and the head is tied to the decoder's or separate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glassformer.config import ModelConfig
from glassformer.errors import ConfigError
from glassformer.families import bart
from glassformer.families.common.family import ConfigFields, Family, TensorRule, rule


def read(raw: ConfigFields) -> ModelConfig:
    separate = not raw.flag("share_encoder_decoder_embeddings", True)
    config = bart.read_stacks(
        raw, "marian", "gelu", "sinusoidal halves", embed_norm=False, separate_embeddings=separate
    )
    if separate:
        return replace(config, vocab_size=raw.size("decoder_vocab_size", config.vocab_size))
    decoder_vocab_size = raw.take("decoder_vocab_size", None)
    if decoder_vocab_size not in (None, config.vocab_size):
        raise ConfigError(
            f"{raw.source}: decoder_vocab_size must be vocab_size, {config.vocab_size}, where the embedding is shared, "
            f"got {decoder_vocab_size!r}"
        )
    return config


def write(config: ModelConfig) -> dict[str, Any]:
    assert config.encoder is not None
    last = min(config.vocab_size, config.encoder.vocab_size) - 1  # padding, which is also the decoder start token
    return bart.write(config) | {
        "vocab_size": config.encoder.vocab_size,
        "decoder_vocab_size": config.vocab_size,
        "share_encoder_decoder_embeddings": config.shared_embedding,
        "pad_token_id": last,
        "decoder_start_token_id": last,
    }


def rules(config: ModelConfig) -> tuple[TensorRule, ...]:
    return bart.SHARED if config.shared_embedding else SEPARATE


SEPARATE = (
    rule("model.encoder.embed_tokens.weight", "encoder.embed.weight"),
    rule("model.decoder.embed_tokens.weight", "embed.weight"),
    rule("lm_head.weight", "head.weight"),
    *bart.STACKS,
)
TABLES = (r"(encoder|decoder)\.embed_positions\.weight",)
FAMILY = Family(
    "marian", "MarianMTModel", read, write, rules=rules, prefix="model.", ignored=TABLES, embedding_copies=bart.COPIES,
    adds_special_tokens=True,
)  # fmt: skip
