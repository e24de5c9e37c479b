"""Convert a configuration to JSON and back, for Glassformer's own model families.

Equal adjacent layers are stored once: "layers": [{"repeat": 6, "attention": {"n_heads": 8, ...}, ...}] is six layers.
"""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from itertools import groupby
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from glassformer.errors import ConfigError

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def to_json(config: Any) -> Any:
    """Convert a frozen configuration to JSON values. Equal adjacent objects in a tuple are stored once."""
    if is_dataclass(config):
        return {f.name: to_json(getattr(config, f.name)) for f in fields(config)}
    if not isinstance(config, tuple):
        return config
    if not any(map(is_dataclass, config)):
        return list(config)
    return [{"repeat": len(list(same))} | to_json(one) for one, same in groupby(config)]


def from_json(kind: Any, value: Any, where: str) -> Any:
    """Convert the result of `to_json` to an object of type `kind`.

    Raises:
        ConfigError: names the key as a path: `where`.layers[0].mlp.d_ff.
    """
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in options:
            return None
        kinds = [option for option in options if option is not NoneType]
        named = [k for k in kinds if is_dataclass(k) and isinstance(value, dict) and value.keys() == _names(k)]
        if len(kinds) > 1 and not named:
            shown = " or ".join(f"{k.__name__} ({', '.join(sorted(_names(k)))})" for k in kinds)
            raise ConfigError(f"{where} must be an object with the keys of one of: {shown}; got {value!r:.100}")
        return from_json((named or kinds)[0], value, where)
    if origin is Literal:
        if value not in options:
            raise ConfigError(f"{where} must be one of {', '.join(map(repr, options))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} must be a list, got {value!r:.100}")
        return tuple(one for i, part in enumerate(value) for one in _repeated(options[0], part, f"{where}[{i}]"))
    if is_dataclass(kind):
        return _config(kind, value, where)
    if type(value) is int and kind is float:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{where} must be {WORDS[kind]}, got {value!r:.100}")
    return value


def _names(kind: Any) -> set[str]:
    return {f.name for f in fields(kind)}


def _repeated(kind: Any, value: Any, where: str) -> list[Any]:
    if not is_dataclass(kind) or not isinstance(value, dict):
        return [from_json(kind, value, where)]
    times = value.get("repeat", 1)
    if type(times) is not int or not 1 <= times <= 10_000:
        raise ConfigError(f"{where}.repeat must be a whole number from 1 to 10000, got {times!r}")
    return [from_json(kind, {key: v for key, v in value.items() if key != "repeat"}, where)] * times


def _config(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be an object, got {value!r:.100}")
    hints, own = get_type_hints(kind), {f.name: f for f in fields(kind)}
    if unknown := sorted(value.keys() - own.keys()):
        raise ConfigError(f"{where}: unknown keys for {kind.__name__}: {', '.join(unknown)}")
    needed = {name for name, f in own.items() if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(needed - value.keys()):
        raise ConfigError(f"{where}: missing keys: {', '.join(missing)}")
    values = {name: from_json(hints[name], part, f"{where}.{name}") for name, part in value.items()}
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
