"""Rotary positions: "RoFormer" (Su et al. 2021), equation 34, in the half-split layout of Llama's checkpoints."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.config import BandScaling, LinearScaling, LongScaling, RopeConfig, Scaling, YarnScaling


def rotation(
    rope: RopeConfig,
    head_dim: int,
    positions: Int[Tensor, "*#B T"],
    lengths: Int[Tensor, "*#B #T"] | None = None,
) -> tuple[Float[Tensor, "*#B T 1 R"], Float[Tensor, "*#B T 1 R"]]:
    """cos and sin of each position's angles, in float32, for as many pairs R as turn.

    `lengths`: how many tokens the text of each position has, by which a `LongScaling` chooses; None: `positions` are
    of one text in each row, whole or up to its last token so far.
    """
    dim = rope.dim or head_dim
    pairs = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device)
    frequencies = 1.0 / rope.theta ** (pairs / dim)  # [R]
    if isinstance(rope.scaling, LongScaling):
        lengths = positions.amax(-1, keepdim=True) + 1 if lengths is None else lengths
        short, long = (frequencies / frequencies.new_tensor(f) for f in (rope.scaling.short, rope.scaling.long))
        frequencies = torch.where(lengths[..., None, None] > rope.scaling.original_context, long, short)  # [B, T, 1, R]
    elif rope.scaling is not None:
        frequencies = scaled(frequencies, rope, rope.scaling)
    angles = positions[..., None, None].float() * frequencies  # [B, T, 1, R]
    cos, sin = angles.cos(), angles.sin()
    factor = getattr(rope.scaling, "attention_factor", 1.0)
    return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


def scaled(frequencies: Float[Tensor, "R"], rope: RopeConfig, scaling: Scaling) -> Float[Tensor, "R"]:
    """The angles per position after a scaling that is the same for texts of all lengths: see `rope_scaling.py`."""
    stretched = frequencies / getattr(scaling, "factor", 1.0)
    if isinstance(scaling, LinearScaling):
        return stretched
    if isinstance(scaling, BandScaling):
        turns = scaling.original_context * frequencies / (2 * math.pi)  # of a pair, within the original context
        kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    else:
        assert isinstance(scaling, YarnScaling), "a LongScaling depends on the text"
        kept = 1 - yarn_ramp(scaling, rope.theta, len(frequencies)).to(frequencies)
    return stretched * (1 - kept) + frequencies * kept


def yarn_ramp(scaling: YarnScaling, theta: float, n_pairs: int) -> Float[Tensor, "R"]:
    """How far each pair is stretched, from 0 to 1, over its number: YaRN (Peng et al. 2023), equations 22 and 23.

    A pair turns n times within the original context where its number is the inverse of that: `pair_of(n)`.
    """

    def pair_of(turns: float) -> float:
        return n_pairs * math.log(scaling.original_context / (turns * 2 * math.pi)) / math.log(theta)

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * n_pairs - 1)
    ramp = (torch.arange(n_pairs, dtype=torch.float32) - low) / (high - low if high != low else 0.001)
    return ramp.clamp(0, 1)


def rotate(
    x: Float[Tensor, "*B T H Dh"], cos: Float[Tensor, "*#B T 1 R"], sin: Float[Tensor, "*#B T 1 R"]
) -> Float[Tensor, "*B T H Dh"]:
    """Turn the pair (x[i], x[i + R]) of every head by its position's i-th angle; what is past 2R stays."""
    turned = 2 * cos.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat([rotate(x[..., :turned], cos, sin), x[..., turned:]], -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
