"""Our own encoder-decoders, the Transformer and the recurrent one, which no other tool opens.

config.json holds the configuration as it is, and tensors have the names of our parameters: there is no second spelling
to keep. `model_type` is "pair" (Vaswani et al. 2017) or "recurrent_pair" (Bahdanau et al. 2015).
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
        raise ConfigError(f"{raw.source}: encoder is missing: a model of this type reads a source")
    return from_json(ModelConfig, values | {"family": "pair"}, raw.source)


def read_recurrent(raw: ConfigFields) -> RecurrentConfig:
    return from_json(RecurrentConfig, {name: raw.take(name) for name in sorted(raw.unread)}, raw.source)


def write_encoder_decoder(config: ModelConfig) -> dict[str, Any]:
    plain = to_json(config)
    del plain["family"]  # model_type says it
    return plain


def shape(s: ShapeConfig) -> ModelConfig:
    raise ConfigError(f"{s.family} is no language model: an encoder-decoder has a shape of its own")


ENCODER_DECODER = Family("pair", "EncoderDecoder", read_encoder_decoder, write_encoder_decoder, shape)
RECURRENT = Family("recurrent_pair", "RecurrentEncoderDecoder", read_recurrent, to_json, shape)
