"""Rotary positions, as frozen data."""

from __future__ import annotations

from dataclasses import dataclass

from glassformer.config.checks import require
from glassformer.config.rope_scaling import Scaling, YarnScaling


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (Su et al. 2021): pair i of R/2 turns by position * theta^(-2i/R).

    R is `dim`, the first dimensions of a head, or all of them (None). `scaling` changes the angles.
    """

    theta: float = 10_000.0
    dim: int | None = None
    scaling: Scaling | None = None

    def __post_init__(self):
        least = 1 if isinstance(self.scaling, YarnScaling) else 0
        require(self.theta > least, f"rope theta must be above {least}, got {self.theta}")
        ok = self.dim is None or (self.dim >= 2 and self.dim % 2 == 0)
        require(ok, f"rotary positions turn pairs: rope dim must be even, got {self.dim}")
