"""Rotary positions: "RoFormer" (Su et al. 2021), equation 34, in the half-split layout of Llama's checkpoints."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.config import RopeConfig


def rotation(
    rope: RopeConfig, head_dim: int, positions: Int[Tensor, "*#B T"]
) -> tuple[Float[Tensor, "*#B T 1 R"], Float[Tensor, "*#B T 1 R"]]:
    """cos and sin of each position's angles, R = head_dim / 2, in float32."""
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    frequencies = 1.0 / rope.theta ** (pairs / head_dim)
    angles = positions[..., None, None].float() * frequencies  # [B, T, 1, R]
    return angles.cos(), angles.sin()


def rotate(
    x: Float[Tensor, "*B T H Dh"], cos: Float[Tensor, "*#B T 1 R"], sin: Float[Tensor, "*#B T 1 R"]
) -> Float[Tensor, "*B T H Dh"]:
    """Turn the pair (x[i], x[i + R]) of every head by its position's i-th angle."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
