"""One Transformer block, as frozen data."""

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

    `norm_at` says which of the three norms there are: ("pre",) in GPT-2 and Llama, ("post",) in the paper of 2017.
    `cross` stands between the two: attention to an encoder's output. `parallel`: both read the same x, and both are
    added to it ("GPT-J", Wang & Komatsuzaki 2021); with `shared_norm` they read it through one norm. `experts`: there
    are many feed-forward layers like `mlp`, and each token goes through some of them.
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
            "cross-attention sees its whole source, and has no positions in common with it, and no sinks: "
            f"causal must be False and rope None, got {self.cross}",
        )
        require(
            not self.parallel or (self.norm_at == ("pre",) and self.cross is None),
            "the branches of a parallel block are normed before, and none of them reads a source: "
            f"got norm_at {self.norm_at} and cross {self.cross}",
        )
        require(self.parallel or not self.shared_norm, "only the branches of a parallel block share a norm")
