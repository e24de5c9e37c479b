"""Native attention over a dense cache, or over the keys of the same forward pass.

Its twin is `attend_reference`. A query's result has the same bits however a prompt is divided into chunks, in a full
cache or a ring.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from glassformer.kernels.attention import attend_fused
from glassformer.kernels.native.library import load_library
from glassformer.kernels.native.ops import ATTEND, Op, run
from glassformer.kernels.native.rows import address, check_float, check_integers, head_strides
from glassformer.nn.attend import KV, AttendSpec, Visibility, visible

MAX_HEAD = 1024  # numbers; MAX_HEAD of src/attend.h
SMALL = 1 << 16  # numbers of queries times keys; below, one thread is faster than the barriers of several


class KeyRanges(NamedTuple):
    """The range of positions that each query of a forward pass sees, and the slots of their keys.

    Args:
        queries: the position of each query, -1: padding.
        lengths: every query of a sequence sees the positions below; None: those up to its own.
        table: the slot of each position modulo P; None: the position is the slot.
    """

    queries: Int32[Tensor, "B T"]
    lengths: Int32[Tensor, "B"] | None
    table: Int32[Tensor, "B P"] | None


def attend_native(
    spec: AttendSpec,
    q: Float[Tensor, "B T H Dh"],
    kv: KV,
    view: Visibility,
    bias: Float[Tensor, "*#BH #T S"] | None = None,
    sinks: Float[Tensor, "H"] | None = None,
) -> Float[Tensor, "B T H Dv"]:
    """Return z, or that of `attend_fused` if the kernels are not available or do not support these arguments.

    They compute in float32 on a CPU, without a bias and without gradients, where every query sees a range of positions
    that ends at its own (or at the end of the keys): not in packed documents.
    """
    tensors = (q, *kv) if sinks is None else (q, *kv, sinks)
    usable = bias is None and all(t.dtype == torch.float32 and t.is_cpu for t in tensors)
    usable = usable and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    usable = usable and q.numel() > 0 and kv.k.shape[1] > 0 and max(q.shape[3], kv.v.shape[3]) <= MAX_HEAD
    ranges = key_ranges(spec, view, q.shape[0]) if usable and load_library() is not None else None
    if ranges is None:
        return attend_fused(spec, q, kv, view, bias, sinks)
    k, v = kv.k.transpose(1, 2), kv.v.transpose(1, 2)  # [B, Hkv, S, Dh]
    if (strides := head_strides(k)) is None or strides != head_strides(v):
        k, v = (t.contiguous().transpose(1, 2) for t in kv)
    q = q.contiguous()
    z = q.new_empty(*q.shape[:3], v.shape[3])
    op = attend_op(spec, q, k, v, z, ranges, None if sinks is None else sinks.contiguous())
    work = q.numel() * min(k.shape[2], spec.window or k.shape[2])
    run([op], 1 if work < SMALL else None)
    return z


def attend_op(
    spec: AttendSpec,
    q: Float[Tensor, "B T H Dh"],
    k: Float[Tensor, "B Hkv S Dh"],
    v: Float[Tensor, "B Hkv S Dv"],
    z: Float[Tensor, "B T H Dv"],
    ranges: KeyRanges,
    sinks: Float[Tensor, "H"] | None = None,
) -> Op:
    """Return the operation that attends to cached keys and values; k and v have the same distances between heads.

    Raises ValueError if a tensor does not fit. The caller ensures that every position a query sees is stored.
    """
    (b, t, h, size), (n_kv_heads, slots, value_size) = q.shape, v.shape[1:]
    fits = k.shape == (b, n_kv_heads, slots, size) and v.shape[0] == b and h % n_kv_heads == 0 and slots > 0
    if not fits or z.shape != (b, t, h, value_size) or max(size, value_size) > MAX_HEAD:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (q, k, v, z))
        raise ValueError(f"q, k, v and z must fit and have heads of at most {MAX_HEAD} numbers, got {shapes}")
    strides = head_strides(k)
    if strides is None or strides != head_strides(v) or not all(t.dtype == torch.float32 and t.is_cpu for t in (k, v)):
        raise ValueError("k and v must be float32 on the CPU, with contiguous heads at the same distances")
    check_float("q", q)
    check_float("z", z)
    check_integers("queries", ranges.queries, b * t)
    op = Op(kind=ATTEND, rows=b * t, n_in=size, n_out=value_size, x=q.data_ptr(), w=k.data_ptr(), y=z.data_ptr())
    op.bias = address("sinks", sinks, h)
    op.p[:2] = v.data_ptr(), ranges.queries.data_ptr()
    if ranges.lengths is not None:
        check_integers("lengths", ranges.lengths, b)
        op.p[2] = ranges.lengths.data_ptr()
    if ranges.table is not None:
        check_integers("table", ranges.table, ranges.table.numel())
        if ranges.table.shape[0] != b:
            raise ValueError(f"the table must have {b} rows, got {list(ranges.table.shape)}")
        op.p[3], slots = ranges.table.data_ptr(), ranges.table.shape[1]
    op.i[:] = t, h, n_kv_heads, slots, *strides, spec.window or 0
    op.f[:2] = spec.scale, spec.softcap or 0.0
    return op


def key_ranges(spec: AttendSpec, view: Visibility, batch: int) -> KeyRanges | None:
    """Return the ranges of a view, computed once; None if what some query sees is not one range of positions."""
    if "native" not in view.derived:
        view.derived["native"] = _find_ranges(spec, view, batch) if _sees_ranges(spec, view) else None
    return view.derived["native"]


def _sees_ranges(spec: AttendSpec, view: Visibility) -> bool:
    """Whether every query sees all positions from 0, or from the start of its window, to its own or to the last."""
    own, keys = view.queries, view.keys
    if view.mask is None and view.causal and _in_order(keys) and torch.equal(own, keys):
        return spec.window is None or spec.window >= keys.shape[-1]
    expected = visible(spec, own, keys)
    if not bool(((view.visible() == expected) | (own < 0)[..., None]).all()):
        return False
    end = own if spec.causal else keys.amax(-1, keepdim=True)
    first = 0 if spec.window is None else (own - spec.window + 1).clamp(min=0)
    return bool(((expected.sum(-1) == end - first + 1) | (own < 0)).all())


def _in_order(keys: Tensor) -> bool:
    return torch.equal(keys, torch.arange(keys.shape[-1]).expand_as(keys))


def _find_ranges(spec: AttendSpec, view: Visibility, batch: int) -> KeyRanges | None:
    queries = view.queries.to(torch.int32).expand(batch, -1).contiguous()
    end = view.keys.amax(-1) + 1  # [#B]
    lengths = None if spec.causal else end.to(torch.int32).expand(batch).contiguous()
    if _in_order(view.keys):
        return KeyRanges(queries, lengths, None)
    row, slot = (view.keys >= 0).nonzero(as_tuple=True)  # a ring, or padding
    position = view.keys[row, slot]
    size = int((end[row] - position).amax()) if len(row) else 1
    table = torch.zeros(len(view.keys), size, dtype=torch.int64)
    table[row, position % size] = slot
    if not torch.equal(table[row, position % size], slot):
        return None  # two keys of a sequence have the same position
    return KeyRanges(queries, lengths, table.to(torch.int32).expand(batch, -1).contiguous())
