"""Rotary positions: "RoFormer" (Su et al. 2021), equation 34, in the half-split layout of Llama's checkpoints."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.config import LongScaling, RopeConfig
from glassformer.nn.rope_scaling import scaled


def rotation(
    rope: RopeConfig,
    head_dim: int,
    positions: Int[Tensor, "*#B T"],
    lengths: Int[Tensor, "*#B #T"] | None = None,
) -> tuple[Float[Tensor, "*#B T 1 R"], Float[Tensor, "*#B T 1 R"]]:
    """Return cos and sin of each position's angles, in float32, for the R rotated pairs.

    Args:
        lengths: the length of each position's text, by which a `LongScaling` chooses its factors. None: each
            sequence is one text, which ends at its largest position.
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


def rotate(
    x: Float[Tensor, "*B T H Dh"], cos: Float[Tensor, "*#B T 1 R"], sin: Float[Tensor, "*#B T 1 R"]
) -> Float[Tensor, "*B T H Dh"]:
    """Rotate the pair (x[i], x[i + R]) of every head by its position's angle i; dimensions from 2R on are unchanged."""
    rotated = 2 * cos.shape[-1]
    if rotated < x.shape[-1]:
        return torch.cat([rotate(x[..., :rotated], cos, sin), x[..., rotated:]], -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
