"""Latent attention, as frozen data: what is kept of a token in the place of its keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glassformer.errors import ConfigError


@dataclass(frozen=True)
class LatentConfig:
    """Keys and values of all heads are made of one short vector per token, its latent (DeepSeek-V2, section 2.1).

    `rank` is the latent's width, `v_dim` that of a head's values. Of a head's queries and keys the first `rope.dim`
    dimensions turn with the position; those of the key are the same in all heads, and are kept beside the latent.
    `q_rank`: queries are made of such a vector too, so wide; None: of x itself. `eps` is of the RMSNorms over both.
    """

    rank: int
    v_dim: int
    q_rank: int | None = None
    eps: float = 1e-6

    def __post_init__(self):
        for name in ("rank", "v_dim", "q_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not self.eps > 0:
            raise ConfigError(f"eps of the norms of latents must be above 0, got {self.eps}")

    def check(self, attention: Any, turned: int) -> None:
        """What holds of an `AttentionConfig` with latents, `turned` dimensions of whose heads turn."""
        others = (attention.qk_norm, attention.clip, attention.softcap, attention.window, attention.sinks)
        if any(others) or not attention.causal or attention.n_kv_heads != attention.n_heads:
            raise ConfigError(
                "latent attention is causal, has as many heads of keys as of queries, and no qk_norm, clip, softcap, "
                f"window or sinks, got {attention}"
            )
        if not 0 < turned < attention.head_dim:
            raise ConfigError(
                f"in latent attention a part of each head turns: rope dim must be below head_dim, got {attention.rope}"
            )
