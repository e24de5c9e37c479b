"""Call the native kernels on tensors. All values are float32 on the CPU; matrices also bfloat16, float16 or packed.

A call runs a list of operations (`Op`, the struct of src/op.h) on PyTorch's threads, with a barrier after each.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.kernels.native.library import load_library
from glassformer.kernels.packed import FORMATS, GROUP, PackedMatrix

QUANTIZE, LINEAR, NORM, ROTATE, ACTIVATE, ATTEND, ADD, LOOK_UP = range(8)
FLOAT_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
PACKED_FORMATS = {name: len(FLOAT_FORMATS) + i for i, name in enumerate(FORMATS)}
SMALL = 1 << 15  # multiplications; below, one thread is faster than the barriers of several


class Op(ctypes.Structure):
    """One operation; pointers are addresses. src/op.h explains the fields."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("no_barrier", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("n_in", ctypes.c_int32),
        ("n_out", ctypes.c_int32),
        ("x", ctypes.c_void_p),
        ("w", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("i", ctypes.c_int32 * 8),
        ("f", ctypes.c_float * 4),
        ("p", ctypes.c_void_p * 4),
    )


def run(ops: Sequence[Op], n_threads: int | None = None) -> None:
    """Run operations in order. RuntimeError: there is no memory for the threads."""
    run_list((Op * len(ops))(*ops), n_threads)


def run_list(ops: ctypes.Array[Op], n_threads: int | None = None) -> None:
    """Run the operations of an array, which may be used again. Errors: see `run`."""
    library = load_library()
    assert library is not None, "the native kernels are not available"
    if library.gf_run(ops, len(ops), n_threads or torch.get_num_threads()):
        raise RuntimeError("there is no memory for the native kernels")


@dataclass(frozen=True)
class Counters:
    """How much the native kernels ran: calls from Python, operations in them, and barriers between threads."""

    calls: float = 0
    operations: float = 0
    barriers: float = 0

    def since(self, before: Counters, per: float = 1) -> Counters:
        """Return the difference to earlier counters, divided by `per`."""
        pairs = zip(astuple(self), astuple(before), strict=True)
        return Counters(*((now - then) / per for now, then in pairs))


def counters() -> Counters:
    """Return the counters of this process; 0 without native kernels."""
    library = load_library()
    return Counters() if library is None else Counters(*library.gf_counters()[:3])


def linear(
    x: Float[Tensor, "*B I"],
    matrix: Float[Tensor, "O I"] | PackedMatrix,
    bias: Float[Tensor, "O"] | None = None,
    residual: Float[Tensor, "*B O"] | None = None,
    n_threads: int | None = None,
) -> Float[Tensor, "*B O"]:
    """Return x W^T + bias (+ residual). A row of the result has the same bits whatever the other rows and threads."""
    n_out, n_in = matrix.shape
    x = x.to(torch.float32).contiguous()
    rows = x.numel() // n_in if n_in else 0
    y = torch.empty(*x.shape[:-1], n_out)
    if y.numel() == 0:
        return y
    values = [None if value is None else value.to(torch.float32).contiguous() for value in (bias, residual)]
    common: dict[str, Any] = {"rows": rows, "n_in": n_in, "n_out": n_out, "y": y.data_ptr()}
    given = zip(("bias", "residual"), values, strict=True)
    common |= {name: value.data_ptr() for name, value in given if value is not None}
    if rows * n_in * n_out < SMALL:
        n_threads = 1
    if isinstance(matrix, PackedMatrix):
        activations = torch.empty(activation_bytes(rows, n_in), dtype=torch.uint8)
        quantize = Op(kind=QUANTIZE, rows=rows, n_in=n_in, x=x.data_ptr(), y=activations.data_ptr())
        number = PACKED_FORMATS[matrix.format]
        product = Op(kind=LINEAR, format=number, x=activations.data_ptr(), w=matrix.data.data_ptr(), **common)
        run([quantize, product], n_threads)
        return y
    weight = matrix.contiguous()
    run([Op(kind=LINEAR, format=FLOAT_FORMATS[weight.dtype], x=x.data_ptr(), w=weight.data_ptr(), **common)], n_threads)
    return y


def look_up(ids: Int[Tensor, "*B"], matrix: PackedMatrix) -> Float[Tensor, "*B I"]:
    """Return rows of a packed matrix by their indices, the same bits as `packed.decode`."""
    ids = ids.to(torch.int64).contiguous()
    if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < matrix.n_out):
        raise IndexError(f"rows must be from 0 to {matrix.n_out - 1}, got {int(ids.min())} to {int(ids.max())}")
    y = torch.empty(*ids.shape, matrix.n_in)
    number = PACKED_FORMATS[matrix.format]
    op = Op(kind=LOOK_UP, format=number, rows=ids.numel(), n_in=matrix.n_in, n_out=matrix.n_out, x=ids.data_ptr())
    op.w, op.y = matrix.data.data_ptr(), y.data_ptr()
    run([op], 1)
    return y


def activation_bytes(rows: int, n_in: int) -> int:
    """Return the size of quantized activations (src/activations.h)."""
    return rows * (3 * n_in + 16 * (n_in // GROUP))
