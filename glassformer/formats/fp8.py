"""FP8 weights, decoded: numbers of 8 bits (E4M3), and a float32 factor for every block of 128 x 128 of them.

X.weight [O, I] of F8_E4M3    X.weight_scale_inv [O / 128, I / 128], rounded up: what the block's numbers are times
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.formats.reader import Scratch, TensorFile, TensorReader

SIDE = 128
KIND, SCALE = "F8_E4M3", "_scale_inv"


def decode(values: Tensor, scales: Float[Tensor, "P Q"]) -> Float[Tensor, "O I"]:
    """The numbers of a matrix [O, I], in float32; the last blocks of a row or a column may be smaller."""
    rows = scales.float().repeat_interleave(SIDE, 0)[: values.shape[0]]
    return values.float() * rows.repeat_interleave(SIDE, 1)[:, : values.shape[1]]


class Fp8Tensor(TensorFile):
    """A matrix of FP8 numbers and its factors as the numbers that they are together, under the name of the matrix."""

    def __init__(self, values: TensorFile, name: str, scales: TensorFile, scales_name: str):
        self.path, self.names = values.path, {name: scales_name}
        self.numbers, self.scales = values, scales
        shape, found = values.shape(name), scales.shape(scales_name)
        blocks = tuple(-(-size // SIDE) for size in shape)
        if len(shape) != 2 or found != blocks:
            raise CheckpointError(
                f"{self.path}: {scales_name} must hold a factor for each block of {SIDE} x {SIDE} of {name} "
                f"{list(shape)}, which are {list(blocks)}, got {list(found)}"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        return self.numbers.shape(name)

    def kind(self, name: str) -> str:
        return "FP8"

    def dtype(self, name: str) -> torch.dtype | None:
        return torch.float32

    def begin(self, name: str) -> int | None:
        return None

    def __getitem__(self, name: str) -> Tensor:
        return decode(self.numbers[name], self.scales[self.names[name]])

    def rows(self, name: str, scratch: Scratch) -> Iterator[tuple[int, Tensor]]:
        values, scales = self.numbers[name], self.scales[self.names[name]]
        for i in range(len(scales)):
            yield i * SIDE, decode(values[i * SIDE : (i + 1) * SIDE], scales[i : i + 1])


def unpacked(reader: TensorReader) -> TensorReader:
    """The reader, in which each FP8 matrix that has factors now is the numbers that the two hold together.

    CheckpointError where the two do not fit each other.
    """
    for name in [name for name in reader if reader.kind(name) == KIND]:
        scales = name + SCALE
        if scales in reader and reader.dtype(scales) is not None:
            reader.files[name] = Fp8Tensor(reader.files[name], name, reader.files.pop(scales), scales)
    return reader
