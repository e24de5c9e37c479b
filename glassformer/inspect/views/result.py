"""What a view returns: frozen data with a receipt, and how it becomes JSON."""

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
    """Run a view that is computed row by row to its end, and return its result."""
    while True:
        try:
            next(rows)
        except StopIteration as end:
            return end.value


@dataclass(frozen=True)
class Named:
    """A token of the vocabulary, with a number: a probability, a cosine, a logit, as its place says."""

    id: int
    text: str
    value: float


def named(lm: Language, ids: Tensor, values: Tensor) -> tuple[Named, ...]:
    """Tokens of the vocabulary, each with its number."""
    return tuple(Named(i, token_text(lm.tokenizer, i), x) for i, x in zip(ids.tolist(), values.tolist(), strict=True))


def plain(value: Any) -> Any:
    """A view's result as JSON values. A number that is not finite becomes "NaN", "Infinity" or "-Infinity".

    Tensors' numbers have nine digits, which tell any two of float32 apart.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else _spelled(value)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Tensor):
        return _numbers(value.tolist(), value.ndim)
    if isinstance(value, tuple) and (fielded := getattr(value, "_asdict", None)):
        value = fielded()
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    return value


def _numbers(rows: list[Any], ndim: int) -> list[Any]:
    """The numbers of a tensor with so many axes: most of what a picture holds."""
    if ndim > 1:
        return [_numbers(row, ndim - 1) for row in rows]
    short = [float(f"{x:.9g}") for x in rows]
    return short if all(map(math.isfinite, short)) else [plain(x) for x in short]


def _spelled(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def dump(value: Any) -> bytes:
    """JSON on one line, whatever is in it: a lone surrogate is written as its escape, NaN is an error of ours."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def off(a: Tensor, b: Tensor) -> float:
    """max |a - b|."""
    return (a.double() - b.double()).abs().max().item()
