"""Configuration of multi-head latent attention (MLA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glassformer.errors import ConfigError


@dataclass(frozen=True)
class LatentConfig:
    """Keys and values of all heads, projected from one latent vector per token (DeepSeek-V2, section 2.1).

    `rank` is the width of the latent, `v_dim` that of a head's values. The first `rope.dim` dimensions of a head's
    queries and keys are rotary; those of the key are shared by all heads and cached with the latent. `q_rank`: queries
    are projected from a latent of this width; None: from x. `eps` is that of the RMSNorms over both latents.
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
            raise ConfigError(f"eps of the latent norms must be above 0, got {self.eps}")

    def check(self, attention: Any, rotary: int) -> None:
        """Raise ConfigError if an `AttentionConfig` cannot have latents. `rotary`: rotary dimensions of a head."""
        others = (attention.qk_norm, attention.clip, attention.softcap, attention.window, attention.sinks)
        if any(others) or not attention.causal or attention.n_kv_heads != attention.n_heads:
            raise ConfigError(
                "latent attention must be causal, with n_kv_heads = n_heads and without qk_norm, clip, softcap, window "
                f"or sinks, got {attention}"
            )
        if not 0 < rotary < attention.head_dim:
            raise ConfigError(
                f"latent attention needs a rope dim below head_dim {attention.head_dim}, got {attention.rope}"
            )
