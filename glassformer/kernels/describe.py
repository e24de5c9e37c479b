"""How a model runs: every choice and its reason, as `show` and `/health` report them."""

from __future__ import annotations

import torch

from glassformer.config import EncoderConfig, ModelConfig, RecurrentConfig
from glassformer.kernels.attention import choose_attention
from glassformer.kernels.linear import choose_linear
from glassformer.kernels.native.library import choose_library
from glassformer.kernels.native.modules import choose_native
from glassformer.kernels.placement import Choice, Placement

BATCH = 128  # sequences that a translator decodes at a time


def describe(config: ModelConfig | EncoderConfig | RecurrentConfig, placement: Placement) -> tuple[Choice, ...]:
    """Return the choices of device, dtype, weights, kernels, attention and linear layers for inference."""
    device, dtype = placement.device, placement.dtype
    prepacked = isinstance(config, ModelConfig) and config.encoder is not None  # others keep their weights as they are
    linear = choose_linear(device, dtype, BATCH if prepacked else 1, placement.packed)
    native = choose_native(config, device, dtype)
    if native is not None and not placement.packed:
        linear = native
    if device.type == "cpu":
        kernels = choose_library()
    else:
        kernels = Choice("kernels", "torch", "the native kernels run on a CPU only")
    attention = choose_attention(config, device, dtype)
    floats = dtype == torch.float32 or linear.value in ("native", "packed")
    if isinstance(config, ModelConfig) and config.relative is None and floats and kernels.value != "torch":
        attention = Choice("attention", "native", "the native kernels run attention in float32 on a CPU")
    return (*placement.choices, kernels, attention, linear)
