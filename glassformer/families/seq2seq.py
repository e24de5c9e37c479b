"""Glassformer's own encoder-decoders: a Transformer and a recurrent one.

config.json holds the serialized configuration, and tensors have our parameter names.
`model_type` is "pair" (Vaswani et al. 2017) or "recurrent_pair" (Bahdanau et al. 2015).
"""

from __future__ import annotations

from typing import Any

from glassformer.config import ModelConfig, RecurrentConfig
from glassformer.errors import ConfigError
from glassformer.families.common.config_json import from_json, to_json
from glassformer.families.common.family import ConfigFields, Family
from glassformer.families.common.shape import ShapeConfig


def read_encoder_decoder(raw: ConfigFields) -> ModelConfig:
    values = {name: raw.take(name) for name in sorted(raw.unread - {"family"})}
    if values.get("encoder") is None:
        raise ConfigError(f"{raw.source}: the key 'encoder' is missing")
    return from_json(ModelConfig, values | {"family": "pair"}, raw.source)


def read_recurrent(raw: ConfigFields) -> RecurrentConfig:
    return from_json(RecurrentConfig, {name: raw.take(name) for name in sorted(raw.unread)}, raw.source)


def write_encoder_decoder(config: ModelConfig) -> dict[str, Any]:
    plain = to_json(config)
    del plain["family"]  # model_type states it
    return plain


def shape(s: ShapeConfig) -> ModelConfig:
    raise ConfigError(f"{s.family} is an encoder-decoder: use Seq2SeqShape or RecurrentShape")


ENCODER_DECODER = Family("pair", "EncoderDecoder", read_encoder_decoder, write_encoder_decoder, shape)
RECURRENT = Family("recurrent_pair", "RecurrentEncoderDecoder", read_recurrent, to_json, shape)
