"""A tensor on its way to a picture: the slice that is drawn, max-pooled to its size, in as many bits as it needs.

    4 bytes: length of the header, little-endian  |  header, JSON, padded with spaces  |  numbers, little-endian

The header says what was done: axes, shape, dtype, and for u8 the scale (value = zero + scale · byte); `pool` is how
many cells each one stands for, `bound` how far a number may be from the tensor's own (pooling aside: a pooled one is
the largest of its cells, because a mean hides spikes).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.inspect.trace.trace import Trace, Value
from glassformer.inspect.views.result import dump, plain

Kind = Literal["f32", "f16", "u8"]
MOST = 1 << 24  # numbers of one answer
LEVELS = 255


@dataclass(frozen=True)
class SlicePart:
    """What is taken of one axis: one place, which leaves the axis out, or those from `start` to `stop`."""

    axis: str
    size: int
    start: int
    stop: int | None = None

    @property
    def length(self) -> int:
        return 1 if self.stop is None else self.stop - self.start

    @property
    def whole(self) -> bool:
        return self.stop is not None and self.length == self.size

    @property
    def places(self) -> int | list[int] | None:
        """As a trace takes places: None is all of them."""
        return None if self.whole else self.start if self.stop is None else list(range(self.start, self.stop))


def parts_of(text: str, axes: Sequence[str], shape: Sequence[int]) -> list[SlicePart]:
    """ "3,7,:" or "0:256" as parts of the axes; those not named are whole. RequestError where a place is not there."""
    asked = [one.strip() for one in text.split(",")] if text.strip() else []
    if len(asked) > len(axes):
        raise RequestError(
            f"slice has {len(asked)} parts, and the tensor {len(axes)} axes: {', '.join(axes)}", param="slice"
        )
    asked += [":"] * (len(axes) - len(asked))
    return [_part(one, axis, size) for one, axis, size in zip(asked, axes, shape, strict=True)]


def _part(text: str, axis: str, size: int) -> SlicePart:
    if re.fullmatch(r"-?\d{1,18}", text):
        at = int(text)
        if not -size <= at < size:
            raise RequestError(f"slice: axis {axis} has the places 0 to {size - 1}, got {at}", param="slice")
        return SlicePart(axis, size, at % size)
    found = re.fullmatch(r"(-?\d{1,18})?:(-?\d{1,18})?", text)
    if found is None:
        raise RequestError(f"slice: {text[:40]!r} is neither a place nor places, as in 3 or 0:256 or :", param="slice")
    start, stop, _ = slice(*(None if one is None else int(one) for one in found.groups())).indices(size)
    if start >= stop:
        raise RequestError(f"slice: {text!r} leaves nothing of axis {axis}, which has {size} places", param="slice")
    return SlicePart(axis, size, start, stop)


def read(trace: Trace, name: str, text: str) -> Value:
    """The slice of a point, computed for no more than it needs. Axes of which one place is taken are left out."""
    axes = trace.axes(name)
    parts = parts_of(text, axes, trace.shape(name))
    if (n := math.prod(part.length for part in parts)) > MOST:
        raise RequestError(
            f"this slice has {n:,} numbers, and at most {MOST:,} are sent: take less of it", param="slice"
        )
    done = 0  # of the first axes, already taken
    if name.endswith((".scores", ".probs")) and axes[0] == "H":
        value = trace.rows(name, head=parts[0].places, query=parts[1].places)
        done = 2
    elif axes[0] == "T" and not parts[0].whole:
        value = trace.at(name, parts[0].places)
        done = 1
    else:
        value = trace[name]
    index: list[Any] = [slice(None)] * sum(part.stop is not None for part in parts[:done])
    index += [part.start if part.stop is None else slice(part.start, part.stop) for part in parts[done:]]
    left = tuple(part.axis for part in parts if part.stop is not None)
    return Value(name, value.tensor[tuple(index)], left, value.error, value.identity)


def pooled(x: Tensor, most: int) -> tuple[Tensor, list[int]]:
    """The last two axes (or the last) with at most so many cells each, the largest of what each stands for."""
    n_axes = min(x.ndim, 2)
    cells = [-(-size // most) for size in x.shape[x.ndim - n_axes :]]
    if n_axes == 0 or all(n == 1 for n in cells):
        return x, cells
    rows = x.reshape(-1, *([1] if n_axes == 1 else []), *x.shape[x.ndim - n_axes :])  # [N, rows, columns]
    kernel = (1, cells[0]) if n_axes == 1 else (cells[0], cells[1])
    small = F.max_pool2d(rows[:, None].float(), kernel, ceil_mode=True)[:, 0]
    return small.reshape(*x.shape[: x.ndim - n_axes], *small.shape[3 - n_axes :]), cells


def encoded(value: Value, kind: Kind, pool: int | None) -> bytes:
    """The answer's bytes."""
    x, cells = value.tensor.detach().float().cpu(), None
    if pool is not None:
        x, cells = pooled(x, pool)
    head: dict[str, Any] = {"name": value.name, "axes": value.axes, "shape": list(x.shape), "dtype": kind}
    head |= {"scale": None, "zero": None, "pool": cells}
    if kind == "f32":
        data, bound = x.numpy().astype("<f4").tobytes(), 0.0
    elif kind == "f16":
        small = x.half()
        if bool((small.isinf() & ~x.isinf()).any()):
            raise RequestError(f"{value.name} has numbers that f16 cannot hold: ask for f32", param="dtype")
        data, bound = small.numpy().astype("<f2").tobytes(), _off(small, x)
    else:
        if not bool(x.isfinite().all()):
            raise RequestError(f"{value.name} has numbers that are not finite here: ask for f32", param="dtype")
        zero = x.min().item()
        scale = (x.max().item() - zero) / LEVELS
        levels = torch.zeros_like(x) if scale == 0 else ((x.double() - zero) / scale).round().clamp(0, LEVELS)
        data, bound = levels.to(torch.uint8).numpy().tobytes(), _off(zero + scale * levels.double(), x)
        head |= {"scale": scale, "zero": zero}
    head |= {"bound": bound, "error": value.error, "identity": value.identity}
    said = dump(plain(head))
    said += b" " * (-(4 + len(said)) % 8)  # so that the numbers begin where any type of them may
    return struct.pack("<I", len(said)) + said + data


def _off(seen: Tensor, real: Tensor) -> float:
    """How far what is sent may be from the tensor's own numbers."""
    finite = real.isfinite()
    return (seen.double() - real.double())[finite].abs().max().item() if bool(finite.any()) else 0.0


def read_options(given: Mapping[str, str]) -> dict[str, Any]:
    """What `answer` takes, from texts. RequestError for what it does not take."""
    for name in given:
        if name not in ("slice", "pool", "dtype"):
            raise RequestError(f"unknown parameter {name[:64]!r}; known: slice, pool, dtype", param=name[:64])
    pool, kind = given.get("pool"), given.get("dtype", "f32")
    if pool is not None and not re.fullmatch(r"\d{1,9}", pool):
        raise RequestError(f"pool must be a whole number from 1 to 4096, got {pool!r:.40}", param="pool")
    if kind not in get_args(Kind):
        raise RequestError(f"dtype must be one of {', '.join(get_args(Kind))}, got {kind!r:.40}", param="dtype")
    return {"slice": given.get("slice", ""), "pool": None if pool is None else int(pool), "dtype": kind}


def answer(trace: Trace, name: str, *, slice: str = "", pool: int | None = None, dtype: Kind = "f32") -> bytes:
    """The slice of a point, as it is sent. RequestError for one that is not there."""
    check_pool(pool)
    return encoded(read(trace, name, slice), dtype, pool)


def check_pool(pool: int | None) -> None:
    if pool is not None and not 1 <= pool <= 4096:
        raise RequestError(f"pool must be a whole number from 1 to 4096, got {pool}", param="pool")
