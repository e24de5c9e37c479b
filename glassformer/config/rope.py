"""Configuration of rotary positions."""

from __future__ import annotations

from dataclasses import dataclass

from glassformer.config.checks import require
from glassformer.config.rope_scaling import Scaling, YarnScaling


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (Su et al. 2021): pair i of R/2 rotates by position * theta^(-2i/R).

    `dim` is R: the first R dimensions of a head rotate; None: all. `scaling` changes the angles.
    """

    theta: float = 10_000.0
    dim: int | None = None
    scaling: Scaling | None = None

    def __post_init__(self):
        least = 1 if isinstance(self.scaling, YarnScaling) else 0
        require(self.theta > least, f"rope theta must be above {least}, got {self.theta}")
        ok = self.dim is None or (self.dim >= 2 and self.dim % 2 == 0)
        require(ok, f"rope dim must be even and at least 2, got {self.dim}")
