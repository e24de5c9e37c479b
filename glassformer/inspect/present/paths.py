"""Paths of the inspection API, and the cache key of a path."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from glassformer.errors import RequestError
from glassformer.inspect.views.registry import VIEWS


def model_view_path(model: str, view: str, **parameters: Any) -> str:
    return f"/v1/models/{quote(model, safe='')}/views/{view}{_query(parameters)}"


def trace_view_path(id: str, view: str, **parameters: Any) -> str:
    return f"/v1/traces/{id}/views/{view}{_query(parameters)}"


def tensor_path(id: str, name: str, **parameters: Any) -> str:
    return f"/v1/traces/{id}/tensors/{name}{_query(parameters)}"


def format_value(value: Any) -> str:
    """Return a parameter's value as query text, which `ViewSpec.read` parses."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(format_value, value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def parse_query(text: str) -> dict[str, str]:
    """Parse a query string. RequestError if a parameter occurs twice."""
    found: dict[str, str] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        if name in found:
            raise RequestError(f"the parameter {name!r} occurs twice: give it once", param=name)
        found[name] = value
    return found


def cache_key(path: str) -> str:
    """Return a path with its parameters sorted and without defaults. `keyOf` in web/src/baked.ts is equivalent."""
    route, _, query = path.partition("?")
    defaults = DEFAULTS.get(route.rsplit("/", 1)[-1], {}) if "/views/" in route else DEFAULTS["tensor"]
    given = (item for item in parse_qsl(query, keep_blank_values=True) if item not in defaults.items())
    return f"{unquote(route)}?{'&'.join(sorted(f'{name}={value}' for name, value in given))}"


def _query(parameters: dict[str, Any]) -> str:
    parts = [f"{name}={quote(format_value(value), safe='')}" for name, value in parameters.items() if value is not None]
    return "?" + "&".join(parts) if parts else ""


DEFAULTS: dict[str, dict[str, str]] = {
    name: {
        p.name: format_value(p.default)
        for p in view.parameters.values()
        if p.default is not p.empty and p.default is not None
    }
    for name, view in VIEWS.items()
} | {"tensor": {"dtype": "f32", "slice": ""}}
