"""Results of views: frozen data with a receipt, and their conversion to JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

from torch import Tensor

from glassformer.inspect.trace.trace import Language, token_text

T = TypeVar("T")


def last(rows: Generator[Any, None, T]) -> T:
    """Run the generator of a view to its end; return the view's result."""
    while True:
        try:
            next(rows)
        except StopIteration as end:
            return end.value


@dataclass(frozen=True)
class Named:
    """A token of the vocabulary with a value: a probability, a cosine or a logit, depending on the field."""

    id: int
    text: str
    value: float


def named(lm: Language, ids: Tensor, values: Tensor) -> tuple[Named, ...]:
    """Return tokens of the vocabulary, each with its value."""
    return tuple(Named(i, token_text(lm.tokenizer, i), x) for i, x in zip(ids.tolist(), values.tolist(), strict=True))


def plain(value: Any) -> Any:
    """Return a view's result as JSON values. A number that is not finite becomes "NaN", "Infinity" or "-Infinity".

    Numbers of tensors have nine significant digits, which identify every float32.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else _non_finite(value)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Tensor):
        return _numbers(value.tolist(), value.ndim)
    if isinstance(value, tuple) and (as_dict := getattr(value, "_asdict", None)):
        value = as_dict()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    return value


def _numbers(rows: list[Any], ndim: int) -> list[Any]:
    """Return the numbers of a tensor with `ndim` axes; a fast path, because most of a view's data are tensors."""
    if ndim > 1:
        return [_numbers(row, ndim - 1) for row in rows]
    rounded = [float(f"{x:.9g}") for x in rows]
    return rounded if all(map(math.isfinite, rounded)) else [plain(x) for x in rounded]


def _non_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def dump(value: Any) -> bytes:
    """Return JSON values as one line. A lone surrogate is escaped; a NaN, which `plain` removes, raises ValueError."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def off(a: Tensor, b: Tensor) -> float:
    """Return max |a - b|."""
    return (a.double() - b.double()).abs().max().item()
