"""Native operations on rows of float32: norms, rotary positions, activations, sums. `attention.py` has attention.

Each function checks its tensors, and either runs or, with the suffix `_op`, returns the operation for a list that
`ops.run` runs. An operation holds addresses: its tensors must live until it has run.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from glassformer.kernels.native.ops import ACTIVATE, ADD, NORM, ROTATE, Op, activation_bytes, run
from glassformer.kernels.packed import GROUP

ACTIVATIONS = {"relu": 0, "gelu": 1, "gelu_tanh": 2, "quick_gelu": 3, "silu": 4}  # of nn/mlp.py
SMALL = 1 << 14  # numbers; below, one thread is faster than the barriers of several


def norm(x: Float[Tensor, "*B D"], **options: Any) -> Float[Tensor, "*B D"] | UInt8[Tensor, "N"]:
    """Run `norm_op`; return its result."""
    y = empty_result(x, options.get("quantized", False))
    run([norm_op(x, y, **options)], threads(x))
    return y


def norm_op(
    x: Float[Tensor, "*B D"],
    y: Tensor,
    *,
    kind: str,
    eps: float,
    weight: Float[Tensor, "#H D"] | Float[Tensor, "D"] | None = None,
    bias: Float[Tensor, "D"] | None = None,
    one_plus: bool = False,
    quantized: bool = False,
) -> Op:
    """Normalize the last axis as nn/norm.py does; its twins are `LayerNorm` and `RMSNorm`.

    Args:
        y: the result, like x (x itself too), or the bytes of `empty_result`.
        kind: "rms" or "layer".
        weight: one for all rows, or [H, D]: row r has weight r mod H (a norm for each head of x [..., H, D]).
        one_plus: the factor is 1 + weight (scale "float32 1+").
        quantized: write activations for a product with a packed matrix.
    """
    rows, n = check_rows(x, y, quantized)
    heads = 1 if weight is None or weight.ndim == 1 else weight.shape[0]
    w, b = address("weight", weight, heads * n), address("bias", bias, n)
    require(kind in ("rms", "layer"), f"kind must be 'rms' or 'layer', got {kind!r}")
    op = Op(kind=NORM, rows=rows, n_in=n, x=x.data_ptr(), w=w, bias=b, y=y.data_ptr())
    op.i[:4] = kind == "layer", one_plus, heads, quantized
    op.f[0] = eps
    return op


def activate(
    gate: Float[Tensor, "*B F"], up: Float[Tensor, "*B F"] | None = None, **options: Any
) -> Float[Tensor, "*B F"] | UInt8[Tensor, "N"]:
    """Run `activate_op`; return its result."""
    y = empty_result(gate, options.get("quantized", False))
    run([activate_op(gate, up, y, **options)], threads(gate))
    return y


def activate_op(
    gate: Float[Tensor, "*B F"],
    up: Float[Tensor, "*B F"] | None,
    y: Tensor,
    *,
    activation: str,
    limit: float | None = None,
    up_plus_one: bool = False,
    quantized: bool = False,
) -> Op:
    """Compute act(gate), or act(gate) * up if `up` is given, as `MLP.gated` does; y as in `norm_op`."""
    rows, n = check_rows(gate, y, quantized)
    require(activation in ACTIVATIONS, f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    w = address("up", up, rows * n)
    op = Op(kind=ACTIVATE, rows=rows, n_in=n, x=gate.data_ptr(), w=w, y=y.data_ptr())
    op.i[:4] = ACTIVATIONS[activation], up_plus_one, quantized, limit is not None
    op.f[0] = limit or 0.0
    return op


def rotate(
    x: Float[Tensor, "*B T H Dh"], cos: Float[Tensor, "*#B T 1 R"], sin: Float[Tensor, "*#B T 1 R"]
) -> Float[Tensor, "*B T H Dh"]:
    """Return what `nn.rope.rotate` returns, bit by bit."""
    y = torch.empty_like(x)
    run([rotate_op(x, y, cos, sin)], threads(x))
    return y


def rotate_op(x: Float[Tensor, "*B T H Dh"], y: Tensor, cos: Tensor, sin: Tensor) -> Op:
    """Rotate heads; y is like x, or x itself."""
    check_rows(x, y, False)
    return _rotation(x, y, cos, sin)


def store_op(
    x: Float[Tensor, "B T Hkv Dh"],
    cache: Float[Tensor, "B Hkv S Dh"],
    positions: Int[Tensor, "B T"],
    cos: Float[Tensor, "#B T 1 R"] | None = None,
    sin: Float[Tensor, "#B T 1 R"] | None = None,
) -> Op:
    """Store new keys or values in a cache, position t in slot t mod S (a ring if a position exceeds S); rotated first.

    Args:
        positions: int32; -1 is padding, which is not stored. They ascend within a sequence, so that of several tokens
            for one slot the last is stored.
    """
    b, t, h, size = x.shape
    fits = (cache.shape[0], cache.shape[1], cache.shape[3]) == (b, h, size)
    require(fits and cache.shape[2] > 0, f"a cache {list(cache.shape)} does not fit heads {list(x.shape)}")
    check_float("x", x)
    strides = head_strides(cache)
    usable = strides is not None and cache.dtype == torch.float32 and cache.is_cpu
    require(usable, f"cache must be float32 on the CPU with contiguous heads, got {cache.dtype}, {cache.stride()}")
    assert strides is not None
    check_integers("positions", positions, b * t)
    op = _rotation(x, cache, cos, sin)
    op.p[2] = positions.data_ptr()
    op.i[3:8] = t, cache.shape[2], *strides
    return op


def _rotation(x: Tensor, y: Tensor, cos: Tensor | None, sin: Tensor | None) -> Op:
    tokens, heads, size = x.shape[-3:]
    rows = x.numel() // (heads * size) if x.numel() else 0
    op = Op(kind=ROTATE, rows=rows, n_in=size, x=x.data_ptr(), y=y.data_ptr())
    op.i[0] = heads
    if cos is None or sin is None:
        return op
    pairs, angles = cos.shape[-1], cos.numel() // cos.shape[-1]
    fits = cos.shape == sin.shape and 2 * pairs <= size and angles in (tokens, rows) and cos.shape[-3] == tokens
    require(fits, f"angles {list(cos.shape)} do not fit heads {list(x.shape)}")
    op.i[1], op.i[2] = pairs, angles
    op.p[0], op.p[1] = address("cos", cos, angles * pairs), address("sin", sin, angles * pairs)
    return op


def add(x: Float[Tensor, "*B D"], y: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """Return x + y."""
    total = torch.empty_like(x)
    run([add_op(x, y, total)], threads(x))
    return total


def add_op(x: Float[Tensor, "*B D"], y: Float[Tensor, "*B D"], total: Float[Tensor, "*B D"]) -> Op:
    """Add two tensors of the same shape; `total` may be one of them."""
    rows, n = check_rows(x, total, False)
    return Op(kind=ADD, rows=rows, n_in=n, x=x.data_ptr(), w=address("y", y, rows * n), y=total.data_ptr())


def empty_result(x: Float[Tensor, "*B D"], quantized: bool) -> Tensor:
    """Return memory for a result like x, or for its activations (src/activations.h)."""
    if not quantized:
        return torch.empty(x.shape)
    n = x.shape[-1]
    return torch.empty(activation_bytes(x.numel() // n, n), dtype=torch.uint8)


def threads(x: Tensor) -> int | None:
    """Return the number of threads for an operation on the numbers of x; None: all."""
    return 1 if x.numel() < SMALL else None


def check_rows(x: Tensor, y: Tensor, quantized: bool) -> tuple[int, int]:
    """Return the rows of x and their length. Raises ValueError if y is not memory for the result."""
    n = x.shape[-1]
    require(
        0 < n < 2**31 and x.numel() // n < 2**31, f"a row must have from 1 to 2^31 - 1 numbers, got {list(x.shape)}"
    )
    check_float("x", x)
    rows = x.numel() // n
    if quantized:
        require(n % GROUP == 0, f"quantized rows must have a multiple of {GROUP} numbers, got {n}")
        size = activation_bytes(rows, n)
        fits = y.dtype == torch.uint8 and y.numel() >= size and y.is_contiguous() and y.device.type == "cpu"
        require(fits, f"the activations need {size} contiguous bytes, got {y.dtype} {list(y.shape)}")
        return rows, n
    check_float("y", y)
    require(y.shape == x.shape, f"y must have the shape of x, {list(x.shape)}, got {list(y.shape)}")
    return rows, n


def address(name: str, t: Tensor | None, size: int) -> int | None:
    """Return the address of contiguous float32 numbers. Raises ValueError if t is not `size` of those."""
    if t is None:
        return None
    check_float(name, t)
    require(t.numel() == size, f"{name} must have {size} numbers, got {list(t.shape)}")
    return t.data_ptr()


def check_float(name: str, t: Tensor) -> None:
    """Raise ValueError if t is not contiguous float32 on the CPU."""
    if not (t.dtype == torch.float32 and t.is_cpu and t.is_contiguous()):
        raise ValueError(f"{name} must be contiguous float32 on the CPU, got {t.dtype} on {t.device}, {t.stride()}")


def check_integers(name: str, t: Tensor, size: int) -> None:
    """Raise ValueError if t is not `size` contiguous int32 on the CPU."""
    if not (t.dtype == torch.int32 and t.is_cpu and t.is_contiguous() and t.numel() == size):
        raise ValueError(f"{name} must be {size} contiguous int32 on the CPU, got {t.dtype} {list(t.shape)}")


def head_strides(t: Float[Tensor, "B Hkv S Dh"]) -> tuple[int, int, int] | None:
    """Return the strides of sequences, heads and slots in units of Dh numbers; None if one is no multiple of it."""
    (batch, head, slot, one), size = t.stride(), t.shape[3]
    if one != 1 or batch % size or head % size or slot % size or max(batch, head, slot) >= 2**31 * size:
        return None
    return batch // size, head // size, slot // size


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
