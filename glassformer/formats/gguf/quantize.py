"""Quantize matrices for GGUF: to Q4_K, Q5_K and Q6_K here, to other types with the `gguf` package.

A super-block stands for 256 weights of a row. Its groups have integer scales of a float16 scale of the super-block:

    type        groups    weight            bytes, in order
    Q4_K, Q5_K  8 of 32   d sc q - dmin mn  f16 d | f16 dmin | 8 x (u6 sc, u6 mn) | Q5_K: bit 4 of q | bits 0-3 of q
    Q6_K        16 of 16  d sc (q - 32)     bits 0-3 of q | bits 4-5 of q | 16 x s8 sc | f16 d

Three searches reduce the squared error, each from the result of the one before: a scale (and minimum) per group, see
`kernels/scale_search.py`; the integers sc (and mn) next to their quotients by d (and dmin); and the least-squares d
(and dmin) with these integers, which is accepted where the error of its super-block decreases.
"""

from __future__ import annotations

from collections.abc import Callable

import gguf
import torch
from gguf import GGMLQuantizationType
from jaxtyping import Float, UInt8
from torch import Tensor

from glassformer.kernels.scale_search import as_half, inverse, rounded, search_scale, search_scale_and_minimum

SUPER = 256  # weights of a super-block
CHUNK = 1 << 17  # weights quantized at a time: they stay in the cache
NEIGHBOURS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1))  # of sc and mn, from the best so far


def quantize(rows: Float[Tensor, "N I"], kind: GGMLQuantizationType) -> UInt8[Tensor, "N bytes"]:
    """Return rows of weights as the bytes of a GGUF type: floats, or blocks.

    Raises:
        ValueError: a weight is not finite, or beyond float16, which is the type of weights or of scales.
    """
    dtype = FLOATS.get(kind.name)
    limit = torch.finfo(dtype or torch.float16).max
    largest = torch.stack(rows.aminmax()).abs().max().item() if rows.numel() else 0.0
    if not largest <= limit:
        raise ValueError(f"weights must be finite and at most {limit:,.6g}, the largest is {largest:,.6g}")
    if dtype is not None:
        return rows.to(dtype).contiguous().view(torch.uint8)
    rows = rows.float()
    encode = BLOCKS.get(kind.name)
    if encode is None:
        return torch.from_numpy(gguf.quants.quantize(rows.numpy(), kind))
    return encode(rows.reshape(-1, SUPER)).view(len(rows), -1)


def _affine_blocks(x: Float[Tensor, "N 256"], bits: int) -> UInt8[Tensor, "N bytes"]:
    """Return the blocks of Q4_K or Q5_K."""
    high = (1 << bits) - 1
    x = x.view(-1, 8, 32)
    scale, minimum = (v.view(-1, 8, 1) for v in search_scale_and_minimum(x.view(-1, 32), high))
    d, dmin = (as_half(v.amax(1, keepdim=True) / 63) for v in (scale, minimum))  # [N, 1, 1]
    sc, mn = rounded(scale, d, 0, 63), rounded(minimum, dmin, 0, 63)  # [N, 8, 1]

    def integers(d: Tensor, dmin: Tensor, sc: Tensor, mn: Tensor) -> Tensor:
        return rounded(x + dmin * mn, d * sc, 0, high)

    def errors(d: Tensor, dmin: Tensor, sc: Tensor, mn: Tensor) -> Tensor:
        return (d * sc * integers(d, dmin, sc, mn) - dmin * mn - x).square().sum(-1, keepdim=True)  # [N, 8, 1]

    def neighbours(d: Tensor, dmin: Tensor, sc: Tensor, mn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        least, best, shift = errors(d, dmin, sc, mn), sc, mn
        for by, up in NEIGHBOURS:
            new_sc, new_mn = (best + by).clamp(0, 63), (shift + up).clamp(0, 63)
            error = errors(d, dmin, new_sc, new_mn)
            better = error < least
            best, shift = torch.where(better, new_sc, best), torch.where(better, new_mn, shift)
            least = torch.where(better, error, least)
        return best, shift, least

    sc, mn, least = neighbours(d, dmin, sc, mn)
    # The least-squares d and dmin of a super-block with these integers: x ~ d a - dmin b, a = sc q, b = mn.
    a, b = sc * integers(d, dmin, sc, mn), mn.expand_as(x)
    aa, ab, bb, ax, bx = (
        (u * v).sum((1, 2), keepdim=True, dtype=torch.float64) for u, v in ((a, a), (a, b), (b, b), (a, x), (b, x))
    )
    divisor = inverse(aa * bb - ab.square())
    new_d, new_dmin = (ax * bb - bx * ab) * divisor, (ax * ab - bx * aa) * divisor
    valid = (new_d > 0) & (new_dmin > 0)
    new_d, new_dmin = torch.where(valid, new_d, d), torch.where(valid, new_dmin, dmin)
    new_d, new_dmin = as_half(new_d), as_half(new_dmin)
    new_sc, new_mn, error = neighbours(new_d, new_dmin, sc, mn)
    better = error.sum(1, keepdim=True) < least.sum(1, keepdim=True)
    d, dmin = torch.where(better, new_d, d), torch.where(better, new_dmin, dmin)
    sc, mn = torch.where(better, new_sc, sc), torch.where(better, new_mn, mn)
    q = integers(d, dmin, sc, mn).to(torch.uint8)
    low, top = sc[..., 0].to(torch.uint8), mn[..., 0].to(torch.uint8)  # [N, 8]
    first = torch.cat([low[:, :4] | (low[:, 4:] >> 4 << 6), top[:, :4] | (top[:, 4:] >> 4 << 6)], 1)
    last = (low[:, 4:] & 15) | (top[:, 4:] & 15) << 4
    nibbles = (q[:, 0::2] & 15) | (q[:, 1::2] & 15) << 4  # [N, 4, 32]
    fifth = [_joined([(q >> 4)[:, i] for i in range(8)], 1)] if bits == 5 else []
    parts = [_half_bytes(d), _half_bytes(dmin), first, last, *fifth, nibbles.flatten(1)]
    return torch.cat(parts, 1)


def _q6_blocks(x: Float[Tensor, "N 256"]) -> UInt8[Tensor, "N 210"]:
    """Return the blocks of Q6_K."""
    x = x.view(-1, 16, 16)
    scale = search_scale(x.view(-1, 16), -32, 31).view(-1, 16, 1)
    extreme = scale.gather(1, scale.abs().argmax(1, keepdim=True))  # [N, 1, 1]
    d = as_half(extreme / -128)
    sc = rounded(scale, d, -128, 127)

    def errors(d: Tensor, sc: Tensor) -> Tensor:
        return (d * sc * rounded(x, d * sc, -32, 31) - x).square().sum(-1, keepdim=True)  # [N, 16, 1]

    def neighbours(d: Tensor, sc: Tensor) -> tuple[Tensor, Tensor]:
        least, best = errors(d, sc), sc
        for by in (-2, -1, 1, 2):
            new = (sc + by).clamp(-128, 127)
            error = errors(d, new)
            best, least = torch.where(error < least, new, best), torch.minimum(error, least)
        return best, least

    sc, least = neighbours(d, sc)
    a = sc * rounded(x, d * sc, -32, 31)  # the least-squares d of a super-block with these integers: x ~ d a
    new_d = as_half((a * x).sum((1, 2), keepdim=True) * inverse(a.square().sum((1, 2), keepdim=True)))
    new_sc, error = neighbours(new_d, sc)
    better = error.sum(1, keepdim=True) < least.sum(1, keepdim=True)
    d, sc = torch.where(better, new_d, d), torch.where(better, new_sc, sc)
    q = (rounded(x, d * sc, -32, 31) + 32).to(torch.uint8).view(-1, 2, 4, 32)  # two halves of 128 weights
    low, top = q & 15, q >> 4
    nibbles = low[:, :, :2].flatten(2) | low[:, :, 2:].flatten(2) << 4  # [N, 2, 64]
    pairs = _joined([top[:, :, i] for i in range(4)], 2)  # [N, 2, 32]
    scales = sc[..., 0].to(torch.int8).view(torch.uint8)
    return torch.cat([nibbles.flatten(1), pairs.flatten(1), scales, _half_bytes(d)], 1)


def _joined(parts: list[Tensor], bits: int) -> Tensor:
    """Return bytes that hold `bits` bits of each part, the first part in the lowest bits."""
    joined = torch.zeros_like(parts[0])
    for i, part in enumerate(parts):
        joined |= part << (bits * i)
    return joined


def _half_bytes(value: Tensor) -> Tensor:
    """Return float16 numbers [N, 1, 1] as bytes [N, 2]."""
    return value.view(-1, 1).half().view(torch.uint8)


FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BLOCKS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_K": lambda x: _affine_blocks(x, 4),
    "Q5_K": lambda x: _affine_blocks(x, 5),
    "Q6_K": _q6_blocks,
}
