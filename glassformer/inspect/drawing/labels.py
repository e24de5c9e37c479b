"""What rows and columns of a drawing are called."""

from __future__ import annotations

from typing import Any

from glassformer.inspect.drawing.panels import visible
from glassformer.inspect.trace.trace import Trace
from glassformer.inspect.views.layer import Which


def names(t: Trace) -> tuple[str, ...]:
    return tuple(map(visible, t.tokens))


def sides(t: Any, attention: Which) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tokens that queries and keys are of."""
    return names(t.source if attention == "encoder" else t), names(t if attention == "attn" else t.source)


def blocks(n: int) -> tuple[str, ...]:
    return tuple(f"block {i}" for i in range(n))


def heads(n: int) -> tuple[str, ...]:
    return tuple(f"head {i}" for i in range(n))


def floors(n: int) -> tuple[str, ...]:
    return ("embedding", *(f"block {i}" for i in range(n - 1)))
