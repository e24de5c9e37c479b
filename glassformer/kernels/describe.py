"""How a model runs: every choice and its reason, as `show` and `/health` report them."""

from __future__ import annotations

from glassformer.config import EncoderConfig, ModelConfig, RecurrentConfig
from glassformer.kernels.attention import choose_attention
from glassformer.kernels.linear import choose_linear
from glassformer.kernels.native.library import choose_library
from glassformer.kernels.placement import Choice, Placement

BATCH = 128  # sequences that a translator decodes at a time


def describe(config: ModelConfig | EncoderConfig | RecurrentConfig, placement: Placement) -> tuple[Choice, ...]:
    """Return the choices of device, dtype, weights, kernels, attention and linear layers for inference."""
    prepacked = isinstance(config, ModelConfig) and config.encoder is not None  # others keep their weights as they are
    linear = choose_linear(placement.device, placement.dtype, BATCH if prepacked else 1, placement.packed)
    if placement.device.type == "cpu":
        kernels = choose_library()
    else:
        kernels = Choice("kernels", "torch", "the native kernels run on a CPU only")
    return (*placement.choices, kernels, choose_attention(config, placement.device, placement.dtype), linear)
