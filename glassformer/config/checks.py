"""Raise a ConfigError where a configuration breaks a rule."""

from __future__ import annotations

from glassformer.errors import ConfigError


def require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)
