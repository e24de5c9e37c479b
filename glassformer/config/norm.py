"""Configuration of normalization layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glassformer.config.checks import require


@dataclass(frozen=True)
class NormConfig:
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019) over the last axis.

    `scale`, the factor of the normalized x: "weight" in x's dtype; "float32": the weight, in float32, before the cast
    back; "float32 1+": 1 + the weight, likewise; None: no factor, and no bias.
    """

    kind: Literal["layer", "rms"] = "rms"
    eps: float = 1e-6
    scale: Literal["weight", "float32", "float32 1+"] | None = "weight"

    def __post_init__(self):
        scales = {"layer": ("weight", None), "rms": ("weight", "float32", "float32 1+")}
        require(self.kind in ("layer", "rms"), f"norm kind must be 'layer' or 'rms', got {self.kind!r}")
        require(self.eps > 0, f"norm eps must be above 0, got {self.eps}")
        allowed = scales[self.kind]
        require(self.scale in allowed, f"scale of a {self.kind} norm must be one of {allowed}, got {self.scale!r}")
