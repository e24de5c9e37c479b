"""Configuration of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glassformer.config.checks import require
from glassformer.config.latent import LatentConfig
from glassformer.config.norm import NormConfig
from glassformer.config.rope import RopeConfig
from glassformer.config.rope_scaling import LongScaling


@dataclass(frozen=True)
class RelativeConfig:
    """A learned bias of the scores per head and distance bucket (T5: Raffel et al. 2020, section 2.1).

    Half of the buckets hold one distance each, the others logarithmically more, up to `max_distance`; the last bucket
    holds all larger distances. Without a causal mask, later tokens have half of all buckets.
    """

    n_buckets: int = 32
    max_distance: int = 128

    def __post_init__(self):
        require(
            self.n_buckets >= 4 and self.n_buckets % 4 == 0,
            f"n_buckets must be a multiple of 4, got {self.n_buckets}",
        )
        require(
            self.max_distance > self.n_buckets // 2,
            f"max_distance must be above {self.n_buckets // 2}, half of n_buckets, got {self.max_distance}",
        )


@dataclass(frozen=True)
class AttentionConfig:
    """Multi-head, grouped-query (n_kv_heads < n_heads) or multi-query (n_kv_heads = 1) attention.

    `scale` multiplies q.k; None is 1/sqrt(head_dim), 1.0 the unscaled product. `softcap` c maps a score s to c
    tanh(s/c). `window`: the number of keys that a query sees, its own included; None: all. `bias` is that of q, k and
    v, `out_bias` that of o. `clip` clamps q, k and v to [-clip, clip]. `qk_norm` normalizes q and k: each head with a
    shared weight ("head"), each head with its own weight and no bias ("each"), or all heads as one vector ("width").
    `causal`: a query sees no later key; False in encoders and cross-attention. `sinks`: one learned score per head,
    whose probability is dropped (Xiao et al. 2024; gpt-oss). `latent`: keys and values are projected from a cached
    latent; `bias` is then that of the projections to the latents.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float | None = None
    bias: bool = False
    out_bias: bool = False
    qk_norm: NormConfig | None = None
    qk_norm_over: Literal["head", "each", "width"] = "head"
    clip: float | None = None
    softcap: float | None = None
    rope: RopeConfig | None = None
    window: int | None = None
    causal: bool = True
    sinks: bool = False
    latent: LatentConfig | None = None

    def __post_init__(self):
        for name in ("n_heads", "n_kv_heads", "head_dim"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(
            self.n_heads % self.n_kv_heads == 0,
            f"n_heads must be a multiple of n_kv_heads, got {self.n_heads} and {self.n_kv_heads}",
        )
        rotary = 0 if self.rope is None else self.head_dim if self.rope.dim is None else self.rope.dim
        require(rotary % 2 == 0, f"head_dim must be even with rotary positions, got {self.head_dim}")
        require(rotary <= self.head_dim, f"rope dim must be at most head_dim {self.head_dim}, got {rotary}")
        if self.rope is not None and isinstance(self.rope.scaling, LongScaling):
            n = len(self.rope.scaling.short)
            require(n == rotary // 2, f"rope scaling must have {rotary // 2} factors, one per pair, got {n}")
        for name in ("clip", "softcap"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be above 0, got {value}")
        known = ("head", "each", "width")
        require(self.qk_norm_over in known, f"qk_norm_over must be one of {known}, got {self.qk_norm_over!r}")
        require(
            self.qk_norm is not None or self.qk_norm_over == "head",
            f"qk_norm_over {self.qk_norm_over!r} requires a qk_norm, got None",
        )
        require(self.window is None or self.window >= 1, f"window must be at least 1, got {self.window}")
        require(self.causal or self.window is None, f"a window requires causal attention, got {self}")
        if self.latent is not None:
            self.latent.check(self, rotary)

    @property
    def v_dim(self) -> int:
        """The width of a head's values."""
        return self.head_dim if self.latent is None else self.latent.v_dim

    @property
    def cached_per_token(self) -> int:
        """The number of values that the cache stores per token: keys and values, or a latent and its rotary key."""
        if self.latent is None:
            return 2 * self.n_kv_heads * self.head_dim
        return self.latent.rank + ((self.rope and self.rope.dim) or 0)
