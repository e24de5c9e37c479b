"""The size of a model that training would create, computed before anything is allocated."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from glassformer.config import ModelConfig, RecurrentConfig
from glassformer.errors import ConfigError
from glassformer.nn.model import Decoder, EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder


def check_model_size(config: ModelConfig | RecurrentConfig) -> None:
    """Raise ConfigError where the weights of a new model, in float32, do not fit the memory of this machine."""
    memory = physical_memory()
    try:
        n = count_parameters(config)
    except RuntimeError as error:  # PyTorch counts in 64 bits
        raise ConfigError("a model of this shape is too large: choose a smaller one") from error
    if memory is not None and 4 * n > memory:
        raise ConfigError(
            f"a model of this shape has {n:,} parameters, which take {4 * n / 2**30:,.0f} GiB; this machine has "
            f"{memory / 2**30:,.0f} GiB of memory: choose a smaller shape"
        )


def count_parameters(config: ModelConfig | RecurrentConfig) -> int:
    """Return the number of parameters of a model whose layers are alike."""
    one, two = (_count(_with_layers(config, n)) for n in (1, 2))
    return one + (config.n_layers - 1) * (two - one)


def physical_memory() -> int | None:
    """Return the memory of this machine, in bytes; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _count(config: ModelConfig | RecurrentConfig) -> int:
    with torch.device("meta"):
        if isinstance(config, RecurrentConfig):
            model = RecurrentEncoderDecoder(config)
        else:
            model = Decoder(config) if config.encoder is None else EncoderDecoder(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _with_layers(config: ModelConfig | RecurrentConfig, n: int) -> ModelConfig | RecurrentConfig:
    """Return the configuration with `n` copies of its first layer."""
    if isinstance(config, RecurrentConfig):
        return replace(config, n_layers=n)
    encoder = config.encoder and replace(config.encoder, layers=config.encoder.layers[:1] * n)
    return replace(config, layers=config.layers[:1] * n, encoder=encoder)
