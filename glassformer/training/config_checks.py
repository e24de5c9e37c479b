"""Checks of configuration values: types, finite numbers, ranges. All raise ConfigError that names the field."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, Literal

from glassformer.config.checks import require
from glassformer.errors import ConfigError

KINDS = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a string", type(None): "None"}


def require_range(
    config: Any,
    names: str | Iterable[str],
    low: float,
    high: float | None = None,
    *,
    open_low: bool = False,
    prefix: str = "",
) -> None:
    """Check that each named field is None or from `low` to `high`; with `open_low` it must be above `low`."""
    for name in names.split() if isinstance(names, str) else names:
        value = getattr(config, name)
        if value is None:
            continue
        if high is not None and open_low:
            allowed = f"above {low:g} and at most {high:,g}"
        elif high is not None:
            allowed = f"from {low:,g} to {high:,g}" if high < 1e6 else f"from {low} to {high}"
        else:
            allowed = f"{'above' if open_low else 'at least'} {low:g}"
        ok = value >= low and (not open_low or value > low) and (high is None or value <= high)
        require(ok, f"{prefix}{name} must be {allowed}, got {value}")


def require_types(config: Any, prefix: str = "") -> None:
    """Check the type of every field of a dataclass, and that its numbers are finite; also in a dataclass within it."""
    hints = typing.get_type_hints(type(config))
    for f in fields(config):
        value = getattr(config, f.name)
        require_type(value, hints[f.name], prefix + f.name)
        if is_dataclass(value) and not isinstance(value, type):
            require_types(value, f"{prefix}{f.name}.")


def require_type(value: Any, hint: Any, name: str) -> None:
    """Check a value against the type annotation of its field."""
    if _fits(value, hint):
        return
    literals = [arg for kind in _alternatives(hint) if typing.get_origin(kind) is Literal for arg in _args(kind)]
    if literals:
        raise ConfigError(f"{name} must be one of {', '.join(map(str, literals))}, got {value!r}")
    shown = type(value).__name__ if is_dataclass(value) else repr(value)
    hint_to_user = f": write ({value!r},)" if isinstance(value, str) and typing.get_origin(hint) is tuple else ""
    raise ConfigError(f"{name} must be {' or '.join(map(_words, _alternatives(hint)))}, got {shown}{hint_to_user}")


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), _args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, kind) for kind in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin is tuple:
        kinds = [args[0]] * len(value) if isinstance(value, tuple) and args[-1] is Ellipsis else args
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if hint in KINDS:
        return type(value) is hint
    return isinstance(value, hint)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return _args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _words(hint: Any) -> str:
    if typing.get_origin(hint) is tuple:
        args = _args(hint)
        count = "" if args[-1] is Ellipsis else f"{len(args)} "
        return f"a tuple of {count}{_words(args[0]).removeprefix('a ').removeprefix('finite ')}s"
    return KINDS.get(hint) or f"{'an' if hint.__name__[0] in 'AEIOU' else 'a'} {hint.__name__}"


def _args(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint)
