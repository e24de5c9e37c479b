"""Rotary frequencies after scaling, for texts longer than those of pretraining."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.config import BandScaling, LinearScaling, RopeConfig, Scaling, YarnScaling


def scaled(frequencies: Float[Tensor, "R"], rope: RopeConfig, scaling: Scaling) -> Float[Tensor, "R"]:
    """Return the frequencies after a scaling that is the same for all texts: see `config/rope_scaling.py`."""
    stretched = frequencies / getattr(scaling, "factor", 1.0)
    if isinstance(scaling, LinearScaling):
        return stretched
    if isinstance(scaling, BandScaling):
        turns = scaling.original_context * frequencies / (2 * math.pi)  # of a pair, within the original context
        unscaled = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    else:
        assert isinstance(scaling, YarnScaling), "a LongScaling depends on the length of the text"
        unscaled = 1 - yarn_ramp(scaling, rope.theta, len(frequencies)).to(frequencies)
    return stretched * (1 - unscaled) + frequencies * unscaled


def yarn_ramp(scaling: YarnScaling, theta: float, n_pairs: int) -> Float[Tensor, "R"]:
    """Return how far each pair is stretched, from 0 to 1 (YaRN: Peng et al. 2023, equations 22 and 23).

    `pair_of(n)` is the index of the pair that turns n times within the original context.
    """

    def pair_of(turns: float) -> float:
        return n_pairs * math.log(scaling.original_context / (turns * 2 * math.pi)) / math.log(theta)

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * n_pairs - 1)
    ramp = (torch.arange(n_pairs, dtype=torch.float32) - low) / (high - low if high != low else 0.001)
    return ramp.clamp(0, 1)
