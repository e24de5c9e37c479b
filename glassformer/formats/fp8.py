"""FP8 weights as DeepSeek publishes them: E4M3 numbers, and one float32 scale per block of 128 x 128.

X.weight            [O, I]              F8_E4M3
X.weight_scale_inv  [O / 128, I / 128]  rounded up; a block's numbers are multiplied by its scale
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.formats.reader import ReadBuffer, TensorFile, TensorReader

BLOCK = 128
TYPE, SCALE_SUFFIX = "F8_E4M3", "_scale_inv"


def decode(values: Tensor, scales: Float[Tensor, "P Q"]) -> Float[Tensor, "O I"]:
    """Return a matrix in float32. The last block along each axis may be smaller."""
    rows = scales.float().repeat_interleave(BLOCK, 0)[: values.shape[0]]
    return values.float() * rows.repeat_interleave(BLOCK, 1)[:, : values.shape[1]]


class Fp8Tensor(TensorFile):
    """An FP8 matrix and its scales as one decoded tensor, under the name of the matrix.

    Raises:
        CheckpointError: the shapes of values and scales do not fit.
    """

    def __init__(self, values: TensorFile, name: str, scales: TensorFile, scales_name: str):
        self.path, self.names = values.path, {name: scales_name}
        self.fp8_values, self.scales = values, scales
        shape, scales_shape = values.shape(name), scales.shape(scales_name)
        blocks = tuple(-(-size // BLOCK) for size in shape)
        if len(shape) != 2 or scales_shape != blocks:
            raise CheckpointError(
                f"{self.path}: {scales_name} must hold a scale for each block of {BLOCK} x {BLOCK} of {name} "
                f"{list(shape)}, so {list(blocks)}, got {list(scales_shape)}"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        return self.fp8_values.shape(name)

    def stored_type(self, name: str) -> str:
        return "FP8"

    def dtype(self, name: str) -> torch.dtype | None:
        return torch.float32

    def __getitem__(self, name: str) -> Tensor:
        return decode(self.fp8_values[name], self.scales[self.names[name]])

    def rows(self, name: str, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
        values, scales = self.fp8_values[name], self.scales[self.names[name]]
        for i in range(len(scales)):
            yield i * BLOCK, decode(values[i * BLOCK : (i + 1) * BLOCK], scales[i : i + 1])


def unpack(reader: TensorReader) -> TensorReader:
    """Replace each FP8 matrix that has scales by its decoded tensor. Returns the same reader."""
    for name in [name for name in reader if reader.stored_type(name) == TYPE]:
        scales = name + SCALE_SUFFIX
        if scales in reader and reader.dtype(scales) is not None:
            reader.files[name] = Fp8Tensor(reader.files[name], name, reader.files.pop(scales), scales)
    return reader
