"""Configuration of one Transformer block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glassformer.config.attention import AttentionConfig
from glassformer.config.checks import require
from glassformer.config.mlp import MLPConfig
from glassformer.config.moe import MoEConfig
from glassformer.config.norm import NormConfig


@dataclass(frozen=True)
class LayerConfig:
    """One block: x -> post(x + out(f(pre(x)))) for attention, then for the feed-forward layer.

    `norm_at` names the norms that exist: ("pre",) in GPT-2 and Llama, ("post",) in Vaswani et al. 2017. `cross` is
    cross-attention, between the two. `parallel`: both branches take the same x as input and are added to it ("GPT-J",
    Wang & Komatsuzaki 2021); with `shared_norm` through the same norm. `experts`: a mixture of feed-forward layers like
    `mlp`.
    """

    attention: AttentionConfig
    mlp: MLPConfig
    norm: NormConfig = NormConfig()  # noqa: RUF009 (frozen)
    norm_at: tuple[Literal["pre", "out", "post"], ...] = ("pre",)
    cross: AttentionConfig | None = None
    parallel: bool = False
    shared_norm: bool = False
    experts: MoEConfig | None = None

    def __post_init__(self):
        known = {"pre", "out", "post"}
        require(
            len(self.norm_at) > 0 and set(self.norm_at) <= known and len(set(self.norm_at)) == len(self.norm_at),
            f"norm_at must name one or more of pre, out and post, each once, got {self.norm_at!r}",
        )
        require(
            self.cross is None or not (self.cross.causal or self.cross.rope or self.cross.sinks),
            f"cross-attention must have causal False, rope None and no sinks, got {self.cross}",
        )
        require(
            not self.parallel or (self.norm_at == ("pre",) and self.cross is None),
            "a parallel block must have norm_at ('pre',) and no cross-attention, "
            f"got norm_at {self.norm_at} and cross {self.cross}",
        )
        require(self.parallel or not self.shared_norm, "shared_norm requires a parallel block, got parallel False")
