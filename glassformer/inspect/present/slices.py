"""The binary form of a slice of a tensor, max-pooled and quantized on request.

    4 bytes: length of the header, little-endian  |  header, JSON, padded with spaces  |  numbers, little-endian

The header has the axes, the shape, the dtype and for u8 the scale (value = zero + scale · byte). `pool`: the number of
cells per number, which is their maximum, because a mean would hide spikes. `bound`: the largest quantization error.
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
MAX_NUMBERS = 1 << 24  # of one response
LEVELS = 255


@dataclass(frozen=True)
class SlicePart:
    """The part of one axis: one index (stop is None), which drops the axis, or a range."""

    axis: str
    size: int
    start: int
    stop: int | None = None

    @property
    def length(self) -> int:
        return 1 if self.stop is None else self.stop - self.start

    @property
    def complete(self) -> bool:
        return self.stop is not None and self.length == self.size

    @property
    def positions(self) -> int | list[int] | None:
        """The indices as a trace's methods take them; None is all."""
        return None if self.complete else self.start if self.stop is None else list(range(self.start, self.stop))


def parse_slice(text: str, axes: Sequence[str], shape: Sequence[int]) -> list[SlicePart]:
    """Parse "3,7,:" or "0:256"; other axes are complete. RequestError if an index is out of range."""
    given = [one.strip() for one in text.split(",")] if text.strip() else []
    if len(given) > len(axes):
        raise RequestError(
            f"slice has {len(given)} parts, and the tensor {len(axes)} axes: {', '.join(axes)}", param="slice"
        )
    given += [":"] * (len(axes) - len(given))
    return [_parse_part(one, axis, size) for one, axis, size in zip(given, axes, shape, strict=True)]


def _parse_part(text: str, axis: str, size: int) -> SlicePart:
    if re.fullmatch(r"-?\d{1,18}", text):
        at = int(text)
        if not -size <= at < size:
            raise RequestError(f"slice: axis {axis} has the indices 0 to {size - 1}, got {at}", param="slice")
        return SlicePart(axis, size, at % size)
    found = re.fullmatch(r"(-?\d{1,18})?:(-?\d{1,18})?", text)
    if found is None:
        raise RequestError(f"slice: each part must be like 3, 0:256 or :, got {text[:40]!r}", param="slice")
    start, stop, _ = slice(*(None if one is None else int(one) for one in found.groups())).indices(size)
    if start >= stop:
        raise RequestError(f"slice: {text!r} is empty on axis {axis}, which has size {size}", param="slice")
    return SlicePart(axis, size, start, stop)


def read(trace: Trace, name: str, text: str) -> Value:
    """Return a slice of a point; compute only the values that it needs."""
    axes = trace.axes(name)
    parts = parse_slice(text, axes, trace.shape(name))
    if (n := math.prod(part.length for part in parts)) > MAX_NUMBERS:
        raise RequestError(f"slice has {n:,} numbers; at most {MAX_NUMBERS:,} are allowed", param="slice")
    done = 0  # the number of axes that the trace has sliced
    if name.endswith((".scores", ".probs")) and axes[0] == "H":
        value = trace.rows(name, head=parts[0].positions, query=parts[1].positions)
        done = 2
    elif axes[0] == "T" and not parts[0].complete:
        value = trace.at(name, parts[0].positions)
        done = 1
    else:
        value = trace[name]
    index: list[Any] = [slice(None)] * sum(part.stop is not None for part in parts[:done])
    index += [part.start if part.stop is None else slice(part.start, part.stop) for part in parts[done:]]
    left = tuple(part.axis for part in parts if part.stop is not None)
    return Value(name, value.tensor[tuple(index)], left, value.error, value.identity)


def max_pool(x: Tensor, size: int) -> tuple[Tensor, list[int]]:
    """Max-pool the last two axes (or the last) to at most `size`; return also the number of cells per number."""
    n_axes = min(x.ndim, 2)
    cells = [-(-length // size) for length in x.shape[x.ndim - n_axes :]]
    if n_axes == 0 or all(n == 1 for n in cells):
        return x, cells
    rows = x.reshape(-1, *([1] if n_axes == 1 else []), *x.shape[x.ndim - n_axes :])  # [N, rows, columns]
    kernel = (1, cells[0]) if n_axes == 1 else (cells[0], cells[1])
    small = F.max_pool2d(rows[:, None].float(), kernel, ceil_mode=True)[:, 0]
    return small.reshape(*x.shape[: x.ndim - n_axes], *small.shape[3 - n_axes :]), cells


def encode(value: Value, kind: Kind, pool: int | None) -> bytes:
    """Return the header and the numbers."""
    x, cells = value.tensor.detach().float().cpu(), None
    if pool is not None:
        x, cells = max_pool(x, pool)
    head: dict[str, Any] = {"name": value.name, "axes": value.axes, "shape": list(x.shape), "dtype": kind}
    head |= {"scale": None, "zero": None, "pool": cells}
    if kind == "f32":
        data, bound = x.numpy().astype("<f4").tobytes(), 0.0
    elif kind == "f16":
        small = x.half()
        if bool((small.isinf() & ~x.isinf()).any()):
            raise RequestError(f"{value.name} has numbers that f16 cannot represent: use f32", param="dtype")
        data, bound = small.numpy().astype("<f2").tobytes(), _max_error(small, x)
    else:
        if not bool(x.isfinite().all()):
            raise RequestError(f"{value.name} has numbers that are not finite: use f32", param="dtype")
        zero = x.min().item()
        scale = (x.max().item() - zero) / LEVELS
        levels = torch.zeros_like(x) if scale == 0 else ((x.double() - zero) / scale).round().clamp(0, LEVELS)
        data, bound = levels.to(torch.uint8).numpy().tobytes(), _max_error(zero + scale * levels.double(), x)
        head |= {"scale": scale, "zero": zero}
    head |= {"bound": bound, "error": value.error, "identity": value.identity}
    header = dump(plain(head))
    header += b" " * (-(4 + len(header)) % 8)  # aligns the numbers
    return struct.pack("<I", len(header)) + header + data


def _max_error(sent: Tensor, exact: Tensor) -> float:
    finite = exact.isfinite()
    return (sent.double() - exact.double())[finite].abs().max().item() if bool(finite.any()) else 0.0


def read_options(given: Mapping[str, str]) -> dict[str, Any]:
    """Parse the query of a tensor. RequestError for an unknown or invalid parameter."""
    for name in given:
        if name not in ("slice", "pool", "dtype"):
            raise RequestError(f"unknown parameter {name[:64]!r}; known: slice, pool, dtype", param=name[:64])
    pool, kind = given.get("pool"), given.get("dtype", "f32")
    if pool is not None and not (re.fullmatch(r"\d{1,9}", pool) and 1 <= int(pool) <= 4096):
        raise RequestError(f"pool must be a whole number from 1 to 4096, got {pool:.40}", param="pool")
    if kind not in get_args(Kind):
        raise RequestError(f"dtype must be one of {', '.join(get_args(Kind))}, got {kind!r:.40}", param="dtype")
    return {"slice": given.get("slice", ""), "pool": None if pool is None else int(pool), "dtype": kind}


def encode_slice(trace: Trace, name: str, *, slice: str = "", pool: int | None = None, dtype: Kind = "f32") -> bytes:
    """Return a slice of a point in binary form. RequestError if the point or the slice does not exist."""
    return encode(read(trace, name, slice), dtype, pool)
