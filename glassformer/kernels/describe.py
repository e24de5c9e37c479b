"""What runs a model: every choice and its reason, as `show` and `/health` print them."""

from __future__ import annotations

from glassformer.config import EncoderConfig, ModelConfig, RecurrentConfig
from glassformer.kernels.attention import choose_attention
from glassformer.kernels.placement import Choice, Placement


def describe(config: ModelConfig | EncoderConfig | RecurrentConfig, placement: Placement) -> tuple[Choice, ...]:
    """Return the choices of device, dtype and attention for inference with this model."""
    return (*placement.choices, choose_attention(config, placement.device, placement.dtype))
