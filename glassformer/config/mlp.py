"""Configuration of feed-forward layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glassformer.config.checks import require

Activation = Literal["relu", "gelu", "gelu_tanh", "quick_gelu", "silu"]


@dataclass(frozen=True)
class MLPConfig:
    """The feed-forward layer: down(act(up x)), or gated, down(act(gate x) * up x) (Shazeer 2020).

    `limit` l: gate x is clamped to at most l, up x to [-l, l]. `up_plus_one`: act(gate x) is multiplied by 1 + up x
    (gpt-oss has both).
    """

    d_ff: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    limit: float | None = None
    up_plus_one: bool = False

    def __post_init__(self):
        require(self.d_ff >= 1, f"d_ff must be at least 1, got {self.d_ff}")
        known = ("relu", "gelu", "gelu_tanh", "quick_gelu", "silu")
        require(self.activation in known, f"activation must be one of {', '.join(known)}, got {self.activation!r}")
        require(self.limit is None or self.limit > 0, f"limit must be above 0, got {self.limit}")
        require(
            self.gated or (self.limit is None and not self.up_plus_one),
            "limit and up_plus_one require a gated feed-forward layer, got gated False",
        )
