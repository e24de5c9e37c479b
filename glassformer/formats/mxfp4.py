"""MXFP4, decoded: numbers of 4 bits in blocks of 32 with a scale ("OCP Microscaling Formats (MX)", v1.0, section 5).

blocks [..., G, 16] bytes, two numbers in each, the first in the lower half    scales [..., G] bytes: 2^(s - 127)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.formats.reader import Scratch, TensorFile, TensorReader

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # E2M1, and the same with a sign
BLOCKS, SCALES = "_blocks", "_scales"


def decode(blocks: UInt8[Tensor, "*B G 16"], scales: UInt8[Tensor, "*B G"]) -> Float[Tensor, "*B N"]:
    """The numbers of all blocks, N = 32 G of them in a row, in bfloat16, which holds each of them exactly."""
    values = torch.tensor([*VALUES, *(-value for value in VALUES)], dtype=torch.bfloat16, device=blocks.device)
    numbers = torch.stack([values[(blocks & 15).int()], values[(blocks >> 4).int()]], -1).flatten(-2)  # [..., G, 32]
    return torch.ldexp(numbers, scales.int()[..., None] - 127).flatten(-2)


class Mxfp4Tensor(TensorFile):
    """A tensor of blocks and one of scales as the numbers that they hold together, under the name of the blocks."""

    def __init__(self, blocks: TensorFile, name: str, scales: TensorFile, scales_name: str):
        self.path, self.names = blocks.path, {name: scales_name}
        self.blocks, self.scales = blocks, scales
        shape, each = blocks.shape(name), scales.shape(scales_name)
        if shape != (*each, 16):
            raise CheckpointError(
                f"{self.path}: {name} must hold 16 bytes for each of {scales_name}, got {list(shape)} and {list(each)}"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        *rest, n_blocks, _ = self.blocks.shape(name)
        return (*rest, 32 * n_blocks)

    def kind(self, name: str) -> str:
        return "MXFP4"

    def dtype(self, name: str) -> torch.dtype | None:
        return torch.bfloat16

    def begin(self, name: str) -> int | None:
        return None

    def __getitem__(self, name: str) -> Tensor:
        return decode(self.blocks[name], self.scales[self.names[name]])

    def rows(self, name: str, scratch: Scratch) -> Iterator[tuple[int, Tensor]]:
        blocks, scales = self.blocks[name], self.scales[self.names[name]]
        for row in range(len(blocks)):
            yield row, decode(blocks[row : row + 1], scales[row : row + 1])


def unpacked(reader: TensorReader) -> TensorReader:
    """The reader, in which `X_blocks` now are the numbers that the tensors `X_blocks` and `X_scales` hold together.

    CheckpointError where the two do not fit each other.
    """
    for name in [name for name in reader if name.endswith(BLOCKS)]:
        scales = name.removesuffix(BLOCKS) + SCALES
        if scales in reader and reader.kind(name) == reader.kind(scales) == "U8":
            reader.files[name] = Mxfp4Tensor(reader.files[name], name, reader.files.pop(scales), scales)
    return reader
