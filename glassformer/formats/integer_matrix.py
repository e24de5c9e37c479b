"""Matrices of 4-bit and 8-bit integers with a scale and a zero point per group of inputs.

    weight[o, i] = scale[o, g(i)] * (q[o, i] - zero[o, g(i)])        g(i) = i // group_size, or a stored list

GPTQ, AWQ and compressed-tensors store this in their own layouts: `gptq.py`, `awq.py`, `compressed_tensors.py`.

`rows` decodes a matrix. Matrices of 4 bits, and of 8 bits without zero points, in groups of a multiple of 32
neighbouring inputs can run packed: `block_rows` returns their rows in the blocks Q4Z and Q8F of `gguf/blocks.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.formats.reader import FLOAT_DTYPES, ReadBuffer, TensorFile, TensorReader

FLOATS = tuple(FLOAT_DTYPES)  # the types of scales
TILE = 1 << 22  # numbers that are decoded at a time
ROW_STEP = 64  # rows are decoded in multiples: words of 32 bits along the outputs hold 4 or 8 rows


@dataclass(frozen=True)
class Part:
    """One stored tensor of a quantized matrix."""

    file: TensorFile
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.file.shape(self.name)

    def read(self) -> Tensor:
        return self.file[self.name]

    def matrix_shape(self) -> tuple[int, int]:
        """Return the shape. CheckpointError: the tensor is not a matrix."""
        if len(self.shape) != 2:
            raise CheckpointError(f"{self.file.path}: {self.name} must be a matrix, got shape {list(self.shape)}")
        return self.shape[0], self.shape[1]

    def require(self, types: tuple[str, ...], *shapes: tuple[int, ...], because: str = "") -> None:
        """Raise CheckpointError unless the tensor has one of the types and, if any are given, one of the shapes."""
        stored = self.file.stored_type(self.name)
        if stored not in types:
            raise CheckpointError(f"{self.file.path}: {self.name} must have type {' or '.join(types)}, got {stored}")
        if shapes and self.shape not in shapes:
            allowed = " or ".join(str(list(shape)) for shape in shapes)
            raise CheckpointError(
                f"{self.file.path}: {self.name} must have shape {allowed}{because and f': {because}'}, "
                f"got {list(self.shape)}"
            )

    def finite(self, rows: slice | None = None, columns: slice | None = None) -> Float[Tensor, "..."]:
        """Read scales in float32: all, some rows, or some columns. CheckpointError: one is NaN or infinite."""
        values = self.read()
        values = values if rows is None else values[rows]
        values = (values if columns is None else values[:, columns]).float()
        if not values.isfinite().all():
            raise CheckpointError(f"{self.file.path}: {self.name} has scales that are NaN or infinite")
        return values


def take_parts(
    reader: TensorReader, module: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Part]:
    """Remove the tensors of one quantized matrix from a reader and return them by the last part of their names.

    Raises:
        CheckpointError: one is missing, or the checkpoint also has the decoded matrix.
    """
    path, first = reader.files[f"{module}.{required[0]}"].path, f"{module}.{required[0]}"
    if missing := [f"{module}.{role}" for role in required if f"{module}.{role}" not in reader]:
        raise CheckpointError(f"{path}: {first} cannot be decoded without {', '.join(missing)}")
    if "weight" not in required and f"{module}.weight" in reader:
        raise CheckpointError(f"{path}: {module}.weight is stored twice, the second time as {first}")
    names = {role: f"{module}.{role}" for role in (*required, *optional) if f"{module}.{role}" in reader}
    return {role: Part(reader.files.pop(name), name) for role, name in names.items()}


def unpack_words(words: Tensor, bits: int) -> UInt8[Tensor, "*B N"]:
    """Return the integers of `bits` = 4 or 8 bits in 32-bit words, the lowest bits first: N = 32 / bits * words."""
    bytes_ = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    return bytes_ if bits == 8 else torch.stack([bytes_ & 15, bytes_ >> 4], -1).flatten(-2)


def signed(q: UInt8[Tensor, "*B N"], bits: int) -> Int8[Tensor, "*B N"]:
    """Return stored integers minus 2^(bits - 1), so that the zero point of a symmetric matrix is 0."""
    return (q - (1 << (bits - 1))).view(torch.int8)  # uint8 wraps around


@dataclass(frozen=True)
class IntegerRows:
    """Rows of a matrix as they are stored; `group` is the group of each input, or None for neighbouring inputs."""

    q: Int8[Tensor, "n I"]
    scale: Float[Tensor, "n G"]
    zero: Int8[Tensor, "n G"]
    group: Int[Tensor, " I"] | None = None

    def decode(self) -> Float[Tensor, "n I"]:
        """Return the numbers: one rounding to float32, none if the scales have at most 15 bits."""
        if self.group is not None:
            scale, zero = self.scale[:, self.group], self.zero[:, self.group]
            return (self.q.float() - zero) * scale
        q = self.q.float().unflatten(-1, (self.scale.shape[-1], -1))  # [n, G, I / G]
        return ((q - self.zero[..., None]) * self.scale[..., None]).flatten(1)

    def blocks(self, bits: int) -> UInt8[Tensor, "n bytes"]:
        """Return the rows as blocks of 32 inputs: Q4Z for 4 bits, Q8F for 8 bits."""
        q = self.q.unflatten(-1, (-1, 32))  # [n, S, 32]
        each = q.shape[1] // self.scale.shape[1]
        scale = self.scale.repeat_interleave(each, 1)[..., None].contiguous().view(torch.uint8)  # [n, S, 4]
        if bits == 8:
            return torch.cat([scale, q.view(torch.uint8)], -1).flatten(1)
        low, high = (q + 8).view(torch.uint8).chunk(2, -1)
        zero = (self.zero.repeat_interleave(each, 1)[..., None] + 8).view(torch.uint8)
        return torch.cat([scale, zero, low | (high << 4)], -1).flatten(1)


class IntegerMatrix(TensorFile):
    """One quantized matrix [O, I] as one tensor. A subclass reads one layout of the integers.

    Args:
        name: the tensor's name.
        format: what the format is called.
        shape: [O, I].
        bits: 4 or 8.
        group_size: the inputs of a group; -1: a row is one group.
        group: the group of each input, if a group is not neighbouring inputs.

    Raises:
        CheckpointError: a row cannot be divided into groups.
    """

    def __init__(
        self, path: Path, name: str, format: str, shape: tuple[int, int], bits: int, group_size: int,
        group: Part | None = None,
    ):  # fmt: skip
        self.path, self.format, self.n_out, self.n_in, self.bits = path, format, *shape, bits
        self.names: Mapping[str, None] = {name: None}
        self.group_size = self.n_in if group_size == -1 else group_size
        if self.n_in == 0 or self.n_in % self.group_size:
            raise CheckpointError(
                f"{path}: {name} has rows of {self.n_in} inputs, which groups of {group_size} do not divide"
            )
        self.group = None if group is None else self._read_group(group)

    @property
    def n_groups(self) -> int:
        """The number of groups of a row."""
        return self.n_in // self.group_size

    def _read_group(self, part: Part) -> Int[Tensor, " I"] | None:
        """Read the group of each input; None if groups are neighbouring inputs."""
        part.require(("I32", "I64"), (self.n_in,), because="a group for each input")
        group = part.read().long()
        low, high = int(group.min()), int(group.max())
        if low < 0 or high >= self.n_groups:
            raise CheckpointError(
                f"{self.path}: {part.name} must hold groups from 0 to {self.n_groups - 1}, got {low} to {high}"
            )
        neighbours = torch.arange(self.n_in) // self.group_size
        return None if torch.equal(group, neighbours) else group

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """The stored tensors."""

    @abstractmethod
    def integers(self, first: int, last: int) -> Int8[Tensor, "n I"]:
        """Read q - 2^(bits - 1) of the rows from `first`, a multiple of `ROW_STEP`, up to `last`."""

    @abstractmethod
    def scales(self, first: int, last: int) -> Float[Tensor, "n G"]:
        """Read scales, as `integers`. CheckpointError: one is NaN or infinite."""

    @abstractmethod
    def zeros(self, first: int, last: int) -> Int8[Tensor, "n G"]:
        """Read zero points, less the same number as the integers."""

    @cached_property
    def has_zeros(self) -> bool:
        """Whether a zero point is not 2^(bits - 1)."""
        return bool(self.zeros(0, self.n_out).any())

    @cached_property
    def unpacked_because(self) -> str:
        """Why the matrix has no blocks; empty if it has."""
        if self.group is not None:
            return "desc_act"
        if self.group_size % 32:
            return f"groups of {self.group_size}"
        return "zero points" if self.bits == 8 and self.has_zeros else ""

    def tiles(self) -> Iterator[tuple[int, IntegerRows]]:
        """Read the matrix in parts of about `TILE` numbers: (first row, rows)."""
        step = max(ROW_STEP, TILE // self.n_in // ROW_STEP * ROW_STEP)
        for first in range(0, self.n_out, step):
            last = min(first + step, self.n_out)
            q, scales, zeros = (read(first, last) for read in (self.integers, self.scales, self.zeros))
            yield first, IntegerRows(q, scales, zeros, self.group)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.n_out, self.n_in

    def stored_type(self, name: str) -> str:
        why = self.unpacked_because
        return f"{self.format} INT{self.bits}" + (f" with {why}" if why else "")

    def dtype(self, name: str) -> torch.dtype | None:
        return torch.float32

    def __getitem__(self, name: str) -> Tensor:
        return torch.cat([rows for _, rows in self.rows(name, ReadBuffer())])

    def rows(self, name: str, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
        for first, part in self.tiles():
            yield first, part.decode()

    def quantized_bytes(self, name: str) -> int | None:
        return sum(part.read().nbytes for part in self.parts)

    def block_type(self, name: str) -> str | None:
        return None if self.unpacked_because else {4: "Q4Z", 8: "Q8F"}[self.bits]

    def block_rows(self, name: str, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
        for first, part in self.tiles():
            yield first, part.blocks(self.bits)
