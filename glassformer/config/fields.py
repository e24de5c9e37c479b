"""Convert any configuration to JSON values, and change one of its fields."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

from glassformer.errors import ConfigError


def as_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON values."""
    return asdict(config)


def change(config: Any, path: str, value: Any) -> Any:
    """Return a copy with one field changed: `change(config, "layers.2.attention.window", 8)`."""
    head, _, rest = path.partition(".")
    if isinstance(config, tuple):
        i = int(head)
        return (*config[:i], change(config[i], rest, value) if rest else value, *config[i + 1 :])
    if not is_dataclass(config) or head not in {f.name for f in fields(config)}:
        raise ConfigError(f"{type(config).__name__} has no field {head!r}")
    new = change(getattr(config, head), rest, value) if rest else value
    return replace(config, **{head: new})  # pyright: ignore[reportArgumentType]
