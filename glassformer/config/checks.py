"""Validation of configurations."""

from __future__ import annotations

from glassformer.errors import ConfigError

MAX_LAYERS = 10_000  # a configuration holds one object per layer


def require(ok: bool, message: str) -> None:
    """Raise ConfigError(message) unless `ok`."""
    if not ok:
        raise ConfigError(message)
