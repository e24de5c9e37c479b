"""Positions that are added to the embedding: learned, or sinusoidal."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class LearnedPositions(nn.Module):
    """One learned vector per position (GPT-2). Padding, at -1, takes the first."""

    def __init__(self, context_length: int, d_model: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(context_length, d_model))

    def forward(self, positions: Int[Tensor, "*B T"]) -> Float[Tensor, "*B T D"]:
        return F.embedding(positions.clamp(min=0), self.weight)


class SinusoidalPositions(nn.Module):
    """sin and cos of position / 10000^(2i / D), interleaved: "Attention Is All You Need", section 3.5."""

    def __init__(self, d_model: int):
        super().__init__()
        self.d_model = d_model

    def forward(self, positions: Int[Tensor, "*B T"]) -> Float[Tensor, "*B T D"]:
        pairs = torch.arange(0, self.d_model, 2, dtype=torch.float32, device=positions.device)
        angles = positions[..., None].float() * torch.exp(pairs * (-math.log(10_000.0) / self.d_model))  # [B, T, D/2]
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[..., : self.d_model]
