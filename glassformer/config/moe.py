"""Configuration of a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glassformer.errors import ConfigError


@dataclass(frozen=True)
class MoEConfig:
    """Each token goes through `top_k` of `n_experts` feed-forward networks (Shazeer et al. 2017).

    A linear router (with `router_bias`) computes a logit per expert, and `scores` maps it to a score from 0 to 1. The
    experts with the best scores are chosen, and their scores are their weights; `normed`: divided by the sum over the
    chosen. `scale` multiplies all weights. `float32_router`: the router computes in float32.

    `score_correction`: a learned number per expert is added to its score when experts are compared, but not to its
    weight (Wang et al. 2024). `n_groups`: the experts form as many groups, and only experts of the best `top_groups`
    can be chosen; the score of a group is the sum of its `group_best` best scores (DeepSeek-V2, section 2.2.2).
    `shared_d_ff`: the width of one more network, which processes every token.
    """

    n_experts: int
    top_k: int
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normed: bool = True
    scale: float = 1.0
    router_bias: bool = False
    float32_router: bool = False
    score_correction: bool = False
    n_groups: int = 1
    top_groups: int = 1
    group_best: int = 1
    shared_d_ff: int | None = None

    def __post_init__(self):
        size = self.n_experts // max(1, self.n_groups)
        most = {"top_k": size * self.top_groups, "top_groups": self.n_groups, "group_best": size}
        for name in ("n_experts", "top_k", "n_groups", "top_groups", "group_best", "shared_d_ff"):
            value, largest = getattr(self, name), most.get(name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
            if value is not None and largest is not None and value > largest:
                raise ConfigError(f"{name} must be at most {largest}, got {value}")
        if self.scores not in ("softmax", "sigmoid"):
            raise ConfigError(f"scores must be 'softmax' or 'sigmoid', got {self.scores!r}")
        if self.n_experts % self.n_groups:
            raise ConfigError(f"n_experts must be a multiple of n_groups, got {self.n_experts} and {self.n_groups}")
        if self.n_groups == 1 and self.group_best > 1:
            raise ConfigError(f"group_best above 1 requires n_groups above 1, got {self.group_best}")
        if not self.scale > 0:
            raise ConfigError(f"scale must be above 0, got {self.scale}")
