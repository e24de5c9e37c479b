"""Quantized matrices packed in panels of 8 rows: their formats, and the definitions of their values and product.

A matrix [n_out, n_in] is a sequence of panels of 8 rows (rows of zeros complete the last one). A panel is one stream of
records, one per 32 inputs (a group), so that a product reads the bytes of a panel once and in order. Formats whose
scales have two levels have a header before every 8 records.

    panel  = [header] record x 8 [header] record x 8 ...        with a header: 256 inputs
    record = fields [8 rows] each, then planes                  `FORMATS` lists them
    value  = d * q, d * (q - zero) or d * table[q], plus m; d and m may themselves be products of two fields

A plane holds some bits of the 32 x 8 integers q. Its bytes 4r+j of a chunk of 32 belong to row r:

    8 bits  chunk c (0..7): input 4c+j
    4 bits  chunk c (0..3): low half input 8c+j, high half input 8c+4+j
    2 bits  chunk c (0, 1): bits 2s and 2s+1 (s = 0..3) are bits 4 and 5 of input 16c+4s+j
    1 bit   one chunk: bit c (0..7) is bit 4 of input 4c+j

In this file a quad is 4 neighbouring inputs j of one row as the bytes of one int32, so that every step above is an
operation on words. The product multiplies integers: see `product`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int, Int32, UInt8
from torch import Tensor

from glassformer.kernels.memory import HUGE_PAGES

ROWS, GROUP = 8, 32  # rows of a panel, inputs of a record
HEADER_GROUPS = 8  # records after a header
QUADS = GROUP // 4
TILE = 1 << 20  # numbers of a matrix that are decoded at a time
LOW, ONES, TWOS = 0x0F0F0F0F, 0x01010101, 0x03030303  # the low half, bit or two bits of each byte of a word
F16, F32, U8, S8 = torch.float16, torch.float32, torch.uint8, torch.int8


@dataclass(frozen=True)
class PackedFormat:
    """How the numbers of a packed matrix are stored.

    Attributes:
        name: its key in `FORMATS`.
        header: the fields [8 rows] before every 8 records, with their dtypes; empty if there is no header.
        record: the fields [8 rows] of a record.
        planes: the bits of each plane. The first holds the low bits of q.
        zero: the integer that stands for 0.
        table: the integer weight of each q; empty if q - zero is the weight.
        source: what is stored in this format.

    The fields' names: d scale, m minimum, dmin scale of the minima, sc and mn integer factors of d and dmin, sc0 and
    sc1 factors of d for the first and last 16 inputs, e exponent of the scale 2^(e - 128), z zero point.
    """

    name: str
    header: Mapping[str, torch.dtype] = field(hash=False)
    record: Mapping[str, torch.dtype] = field(hash=False)
    planes: tuple[int, ...]
    source: str
    zero: int = 0
    table: tuple[int, ...] = ()

    @cached_property
    def groups(self) -> int:
        """The number of records after a header; 1 if the format has none."""
        return HEADER_GROUPS if self.header else 1

    @cached_property
    def header_bytes(self) -> int:
        return sum(ROWS * dtype.itemsize for dtype in self.header.values())

    @cached_property
    def record_bytes(self) -> int:
        fields = sum(ROWS * dtype.itemsize for dtype in self.record.values())
        return fields + sum(plane_bytes(bits) for bits in self.planes)

    @cached_property
    def block_bytes(self) -> int:
        """The bytes of a header and its records."""
        return self.header_bytes + self.groups * self.record_bytes

    @cached_property
    def block_inputs(self) -> int:
        """The inputs of a header and its records: n_in is a multiple."""
        return self.groups * GROUP

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / (ROWS * self.block_inputs)


def plane_bytes(bits: int) -> int:
    """Return the bytes of a plane of one record."""
    return ROWS * GROUP * bits // 8


E2M1 = (0, 1, 2, 3, 4, 6, 8, 12)  # doubled, so that they are integers
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FORMATS = {
    one.name: one
    for one in (
        PackedFormat("q8", {}, {"d": F16}, (8,), "GGUF Q8_0"),
        PackedFormat("q8f", {}, {"d": F32}, (8,), "int8 with float32 scales"),
        PackedFormat("q4", {}, {"d": F16}, (4,), "GGUF Q4_0", zero=8),
        PackedFormat("q4m", {}, {"d": F16, "m": F16}, (4,), "GGUF Q4_1"),
        PackedFormat("q4z", {}, {"d": F32, "z": U8}, (4,), "int4 with zero points: GPTQ, AWQ, compressed-tensors"),
        PackedFormat("q5", {}, {"d": F16}, (4, 1), "GGUF Q5_0", zero=16),
        PackedFormat("q5m", {}, {"d": F16, "m": F16}, (4, 1), "GGUF Q5_1"),
        PackedFormat("q4k", {"d": F16, "dmin": F16}, {"sc": U8, "mn": U8}, (4,), "GGUF Q4_K"),
        PackedFormat("q5k", {"d": F16, "dmin": F16}, {"sc": U8, "mn": U8}, (4, 1), "GGUF Q5_K"),
        PackedFormat("q6k", {"d": F16}, {"sc0": S8, "sc1": S8}, (4, 2), "GGUF Q6_K", zero=32),
        PackedFormat("iq4nl", {}, {"d": F16}, (4,), "GGUF IQ4_NL", table=IQ4),
        PackedFormat("iq4xs", {"d": F16}, {"sc": S8}, (4,), "GGUF IQ4_XS", table=IQ4),
        PackedFormat("mxfp4", {}, {"e": U8}, (4,), "GGUF MXFP4", table=(*E2M1, *(-n for n in E2M1))),
    )
}


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A quantized matrix [n_out, n_in]; `format` is a key of `FORMATS`, `data` holds the panels.

    `pack` makes one from integers and fields, `empty_matrix` one that `pack_rows` fills.
    """

    format: str
    n_out: int
    n_in: int
    data: UInt8[Tensor, " bytes"]

    def __post_init__(self):
        assert self.n_in % self.layout.block_inputs == 0, f"{self.format} cannot hold rows of {self.n_in}"
        assert self.data.numel() == packed_bytes(self.layout, self.n_out, self.n_in), "the data must fill all panels"

    @property
    def layout(self) -> PackedFormat:
        return FORMATS[self.format]

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.n_out, self.n_in))

    @property
    def blocks(self) -> UInt8[Tensor, "P S bytes"]:
        """A view of the data: P panels of S blocks, a block being a header and its records, or one record."""
        return self.data.view(-1, self.n_in // self.layout.block_inputs, self.layout.block_bytes)


def packed_bytes(layout: PackedFormat, n_out: int, n_in: int) -> int:
    """Return the bytes of a packed matrix."""
    return -(-n_out // ROWS) * (n_in // layout.block_inputs) * layout.block_bytes


def copied(value: Tensor) -> Tensor:
    """Return a contiguous copy, which `view` can take as another dtype; `contiguous` may return a view."""
    return value.clone(memory_format=torch.contiguous_format)


# --- packing


def empty_matrix(name: str, n_out: int, n_in: int) -> PackedMatrix:
    """Return a matrix of the format `name` with uninitialized data, for `pack_rows` to fill."""
    return PackedMatrix(name, n_out, n_in, HUGE_PAGES.empty(packed_bytes(FORMATS[name], n_out, n_in)))


def pack(name: str, q: UInt8[Tensor, "O I"], fields: Mapping[str, Tensor]) -> PackedMatrix:
    """Pack a matrix of integers.

    Args:
        name: a key of `FORMATS`.
        q: the stored integers; for 8 bits the bytes of int8.
        fields: each field of the format: [O, n_in / 256] those of a header, [O, n_in / 32] those of a record.
    """
    matrix, layout = empty_matrix(name, *q.shape), FORMATS[name]
    quads = q.contiguous().view(torch.int32).unflatten(-1, (-1, layout.groups, QUADS))
    fields = {key: value.unflatten(-1, (quads.shape[1], -1)) for key, value in fields.items()}
    pack_rows(matrix, 0, quads, fields)
    return matrix


def pack_rows(matrix: PackedMatrix, first: int, quads: Int32[Tensor, "n S G 8"], fields: Mapping[str, Tensor]) -> None:
    """Write rows of a matrix from row `first`, a multiple of 8.

    Args:
        quads: the integers q of S blocks of G groups.
        fields: each field of the format: [n, S, G], or [n, S, 1] those of a header.
    """
    layout, n_panels = matrix.layout, -(-len(quads) // ROWS)
    out = matrix.blocks[first // ROWS : first // ROWS + n_panels]
    header, records = out[..., : layout.header_bytes], out[..., layout.header_bytes :]
    records = records.unflatten(-1, (layout.groups, layout.record_bytes))
    for part, names in ((header.unsqueeze(2), layout.header), (records, layout.record)):
        at = 0
        for name, dtype in names.items():
            value = _panels(fields[name].to(dtype)).contiguous().view(U8)  # [P, S, G, 8 * itemsize]
            part[..., at : at + value.shape[-1]] = value
            at += value.shape[-1]
    words = _panels(quads).contiguous()  # [P, S, G, quad, row]
    at = layout.record_bytes
    for bits in reversed(layout.planes):
        value = _plane(words, bits).flatten(-2).view(U8)  # [P, S, G, bytes]
        records[..., at - value.shape[-1] : at] = value
        at -= value.shape[-1]


def _panels(rows: Tensor) -> Tensor:
    """Group rows [n, ...] into panels, with the row last: [P, ..., 8]. Zeros complete the last panel."""
    if missing := -len(rows) % ROWS:
        rows = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
    return rows.unflatten(0, (-1, ROWS)).movedim(1, -1)


def _plane(words: Int32[Tensor, "*B 8 R"], bits: int) -> Int32[Tensor, "*B C R"]:
    """Return the bytes of a plane, as words, of the integers of quads."""
    if bits == 8:
        return words
    if bits == 4:
        low = words & LOW
        return low[..., 0::2, :] | (low[..., 1::2, :] << 4)
    n, mask = 8 // bits, {1: ONES, 2: TWOS}[bits]
    high = ((words >> 4) & mask).unflatten(-2, (-1, n))
    out = high[..., 0, :].clone()
    for s in range(1, n):
        out |= high[..., s, :] << (bits * s)
    return out


# --- values


@dataclass(frozen=True)
class Weights:
    """Rows of a matrix as the product multiplies them: value = scale * integer + minimum.

    integers [n, G, 32] float32 (exact), scale [n, G] and minimum [n, G] float32, G = n_in / 32. minimum: or None.
    """

    integers: Float[Tensor, "n G 32"]
    scale: Float[Tensor, "n G"]
    minimum: Float[Tensor, "n G"] | None

    def decoded(self) -> Float[Tensor, "n I"]:
        value = self.integers * self.scale[..., None]
        return (value if self.minimum is None else value + self.minimum[..., None]).flatten(1)


def unpack_rows(matrix: PackedMatrix, rows: Int[Tensor, " n"]) -> Weights:
    """Return rows of a matrix by their indices."""
    return _unpack(matrix.layout, matrix.blocks[rows // ROWS], rows % ROWS)


def unpack_panels(matrix: PackedMatrix, first: int, n: int) -> Weights:
    """Return the rows of at most `n` panels from panel `first`, without the rows that complete the last panel."""
    one = _unpack(matrix.layout, matrix.blocks[first : first + n], None)
    end = matrix.n_out - first * ROWS
    return Weights(one.integers[:end], one.scale[:end], None if one.minimum is None else one.minimum[:end])


def _unpack(layout: PackedFormat, blocks: UInt8[Tensor, "P S bytes"], row: Int[Tensor, " P"] | None) -> Weights:
    """Return all rows of panels, or the row `row[p]` of panel p."""

    def by_row(value: Tensor) -> Tensor:  # [P, ..., 8] -> [P * 8, ...] or [P, ...]
        if row is None:
            return value.movedim(-1, 1).flatten(0, 1)
        return value.take_along_dim(row.view(-1, *[1] * (value.ndim - 1)), -1).squeeze(-1)

    header, records = blocks[..., : layout.header_bytes], blocks[..., layout.header_bytes :]
    records = records.unflatten(-1, (layout.groups, layout.record_bytes))  # [P, S, G, bytes]
    fields: dict[str, Tensor] = {}
    for part, names in ((header.unsqueeze(2), layout.header), (records, layout.record)):
        at = 0
        for name, dtype in names.items():
            n = ROWS * dtype.itemsize
            fields[name] = by_row(copied(part[..., at : at + n]).view(dtype)).float()  # [n, S, G or 1]
            at += n
    at, quads = layout.record_bytes - sum(map(plane_bytes, layout.planes)), None
    for bits in layout.planes:
        n = plane_bytes(bits)
        words = copied(records[..., at : at + n]).view(torch.int32).unflatten(-1, (-1, ROWS))  # [P, S, G, C, 8]
        part = _quads(by_row(words), bits)
        quads, at = part if quads is None else quads | part, at + n
    assert quads is not None, "every format has a plane"
    q = copied(quads).view(S8 if layout.planes == (8,) else U8).flatten(1, 2)  # [n, S * G, 32]
    if layout.table:
        weights = torch.tensor(layout.table, dtype=torch.float32)[q.int()]
    else:
        weights = q.float() - layout.zero if layout.zero else q.float()
    fields = {name: value.expand(-1, -1, layout.groups).flatten(1) for name, value in fields.items()}  # [n, S * G]
    return _weights(weights, fields)


def _quads(words: Int32[Tensor, "*B C"], bits: int) -> Int32[Tensor, "*B 8"]:
    """Return the bits of one plane at their position in the integers, as quads: the inverse of `_plane`."""
    if bits == 8:
        return words
    if bits == 4:
        return torch.stack([words & LOW, (words >> 4) & LOW], -1).flatten(-2)
    mask = {1: ONES, 2: TWOS}[bits]
    return torch.stack([((words >> shift) & mask) << 4 for shift in range(0, 8, bits)], -1).flatten(-2)


def _weights(integers: Float[Tensor, "n G 32"], fields: Mapping[str, Float[Tensor, "n G"]]) -> Weights:
    """Apply the fields. Every product of two fields is exact in float32."""
    scale = torch.ldexp(torch.ones(()), fields["e"] - 128) if "e" in fields else fields["d"]
    minimum = fields.get("m")
    if "z" in fields:
        integers = integers - fields["z"][..., None]
    if "sc0" in fields:
        halves = torch.stack([fields["sc0"], fields["sc1"]], -1)  # [n, G, 2]
        integers = integers * halves.repeat_interleave(GROUP // 2, -1)
    if "sc" in fields:
        scale = scale * fields["sc"]
    if "mn" in fields:
        minimum = -(fields["dmin"] * fields["mn"])
    return Weights(integers, scale, minimum)


def tiles(matrix: PackedMatrix) -> Iterator[tuple[int, Weights]]:
    """Yield all rows of a matrix, at most about `TILE` numbers at a time: (first row, rows)."""
    n = max(1, TILE // (ROWS * matrix.n_in))
    for first in range(0, -(-matrix.n_out // ROWS), n):
        yield first * ROWS, unpack_panels(matrix, first, n)


def decode(matrix: PackedMatrix, rows: Int[Tensor, "*B"] | None = None) -> Float[Tensor, "*B I"]:
    """Return a matrix, or rows of it by their indices, in float32.

    A value is one or two float32 operations on exact operands: scale * integer, rounded, plus the minimum, rounded.
    """
    if rows is None:
        value = torch.empty(matrix.shape)
        for first, part in tiles(matrix):
            value[first : first + len(part.scale)] = part.decoded()
        return value
    parts = rows.flatten().split(max(1, TILE // matrix.n_in))
    return torch.cat([unpack_rows(matrix, part).decoded() for part in parts]).view(*rows.shape, matrix.n_in)


# --- the product


def quantize_rows(x: Float[Tensor, "N I"]) -> tuple[Float[Tensor, "N G 32"], Float[Tensor, "N G"]]:
    """Quantize activations per group: integers from -127 to 127, as float32, and their scales: x is about scale * q.

    A group whose numbers are all below 127 / (the largest float32) = 3.7e-37 is 0. A group with a number that is not
    finite has the scale NaN and integers 0.
    """
    groups = x.unflatten(-1, (-1, GROUP))
    largest = groups.abs().amax(-1)  # [N, G]; amax propagates NaN
    inverse = torch.tensor(127.0) / largest  # a number / a tensor would be 127 * (1 / largest), rounded twice
    finite = largest.isfinite()
    usable = finite & inverse.isfinite()
    q = torch.where(usable[..., None], torch.round(groups * inverse[..., None]), 0.0)
    return q, torch.where(usable, largest / 127, torch.where(finite, 0.0, torch.nan))


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return a * b + c of float32 numbers, rounded once, as the instruction of the same name.

    The product is exact in float64. The sum is rounded to odd there, so that rounding it to float32 gives the same as
    rounding the exact sum ("Emulation of a FMA and correctly rounded sums", Boldo and Melquiond 2008).
    """
    product, c = a.double() * b.double(), c.double()
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)  # exact: Knuth's two-sum
    even = (total.view(torch.int64) & 1) == 0
    up = (error > 0).long() - (error < 0).long()  # 0 for NaN and infinity
    away = torch.where(total > 0, up, -up)
    return torch.where(even, total.view(torch.int64) + away, total.view(torch.int64)).view(torch.float64).float()


def product(x: Float[Tensor, "*B I"], matrix: PackedMatrix) -> Float[Tensor, "*B O"]:
    """Return x W^T in float32, with quantized activations: the definition that native kernels equal bit for bit.

    For each row of x and of W: the sum over groups, in ascending order, of fma(sum of integer products, scale of W *
    scale of x, sum so far), then fma(minimum of W, scale of x * sum of the integers of x, sum so far). The sums of
    integers are below 2^24 and therefore exact in float32. A row of the result depends on its own row of x only.
    """
    q, scale = quantize_rows(x.reshape(-1, matrix.n_in).float())  # [N, G, 32], [N, G]
    sums = scale * q.sum(-1)
    out = torch.empty(len(q), matrix.n_out)
    for first, rows in tiles(matrix):
        total = torch.zeros(len(q), len(rows.scale))
        for g in range(q.shape[1]):
            total = fma(q[:, g] @ rows.integers[:, g].T, rows.scale[:, g] * scale[:, g, None], total)
            if rows.minimum is not None:
                total = fma(rows.minimum[:, g], sums[:, g, None], total)
        out[:, first : first + total.shape[1]] = total
    return out.view(*x.shape[:-1], matrix.n_out)
