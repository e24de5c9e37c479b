"""Positions added to the embedding (learned, sinusoidal), and positions as a bias of the attention scores (T5)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glassformer.config import EncoderConfig, ModelConfig, RelativeConfig


class LearnedPositions(nn.Module):
    """Learned positions (GPT-2): row `offset` + position of a table. Padding (-1) has the vector of position 0."""

    def __init__(self, context_length: int, d_model: int, offset: int = 0):
        super().__init__()
        self.offset = offset
        self.weight = nn.Parameter(torch.zeros(context_length + offset, d_model))

    def forward(self, positions: Int[Tensor, "*B T"]) -> Float[Tensor, "*B T D"]:
        return F.embedding(positions.clamp(min=0) + self.offset, self.weight)


class SinusoidalPositions(nn.Module):
    """sin and cos of position / 10000^(2i / D), interleaved: "Attention Is All You Need", section 3.5.

    `halves`: all sines first, then all cosines (Marian; the same up to the order of dimensions).
    """

    def __init__(self, d_model: int, halves: bool = False):
        super().__init__()
        self.d_model, self.halves = d_model, halves

    def forward(self, positions: Int[Tensor, "*B T"]) -> Float[Tensor, "*B T D"]:
        pairs = torch.arange(0, self.d_model, 2, dtype=torch.float32, device=positions.device)
        angles = positions[..., None].float() * torch.exp(pairs * (-math.log(10_000.0) / self.d_model))  # [B, T, D/2]
        if self.halves:
            return torch.cat([angles.sin(), angles[..., : self.d_model // 2].cos()], -1)
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[..., : self.d_model]


class RelativePositions(nn.Module):
    """A learned bias of each head's scores by the distance of key and query (T5: Raffel et al. 2020, section 2.1).

    Each distance below E has its own bucket; a distance d >= E falls into bucket
    E + floor(E log(d / E) / log(max_distance / E)), at most 2E - 1. In causal attention E is n_buckets / 2; otherwise
    keys before a query have one half of the buckets, keys after it the other, and E is n_buckets / 4.
    """

    def __init__(self, config: RelativeConfig, n_heads: int, causal: bool):
        super().__init__()
        self.config, self.causal = config, causal
        self.weight = nn.Parameter(torch.zeros(config.n_buckets, n_heads))

    def forward(self, queries: Int[Tensor, "#B T"], keys: Int[Tensor, "#B S"]) -> Float[Tensor, "#B H T S"]:
        back = queries[..., :, None] - keys[..., None, :]  # [B, T, S]
        return F.embedding(self.buckets(back), self.weight).permute(0, 3, 1, 2)

    def buckets(self, back: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
        """Return the buckets of keys that are `back` tokens before their query."""
        sides = 1 if self.causal else 2
        size = self.config.n_buckets // sides
        exact = size // 2
        distance = back.clamp(min=0) if self.causal else back.abs()
        wider = (distance.clamp(min=1).float() / exact).log() / math.log(self.config.max_distance / exact)
        far = (exact + (wider * (size - exact)).long()).clamp(max=size - 1)
        return torch.where(distance < exact, distance, far) + (0 if self.causal else (back < 0) * size)


def make_positions(config: EncoderConfig | ModelConfig) -> nn.Module | None:
    """Return the module that adds a configuration's positions; None without added positions."""
    match config.positions:
        case None:
            return None
        case "learned":
            return LearnedPositions(config.context_length, config.d_model, config.position_offset)
        case kind:
            return SinusoidalPositions(config.d_model, halves=kind == "sinusoidal halves")
