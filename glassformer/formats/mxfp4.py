"""MXFP4 weights: 4-bit numbers (E2M1) in blocks of 32 with one scale.

Source: "OCP Microscaling Formats (MX)" v1.0, section 5. As gpt-oss stores them:

X_blocks  [..., G, 16]  uint8: two numbers per byte, the first in the low half
X_scales  [..., G]      uint8: a block's numbers are multiplied by 2^(s - 127); 255 is NaN
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.families.common.family import ConfigFields
from glassformer.formats.reader import ReadBuffer, TensorFile, TensorReader

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # E2M1; the upper 8 codes are the negatives
BLOCKS, SCALES, NAN = "_blocks", "_scales", 255


def read(fields: ConfigFields) -> Callable[[TensorReader], None]:
    """Read the settings of MXFP4: the tensor names show which weights are quantized. Returns `unpack`."""
    for name in ("dequantize", "modules_to_not_convert"):
        fields.take(name, None)
    return unpack


def decode(blocks: UInt8[Tensor, "*B G 16"], scales: UInt8[Tensor, "*B G"]) -> Float[Tensor, "*B N"]:
    """Return the N = 32 G numbers of a row in bfloat16, which represents each of them exactly."""
    values = torch.tensor([*VALUES, *(-value for value in VALUES)], dtype=torch.bfloat16, device=blocks.device)
    numbers = torch.stack([values[(blocks & 15).int()], values[(blocks >> 4).int()]], -1).flatten(-2)  # [..., G, 32]
    return torch.ldexp(numbers, scales.int()[..., None] - 127).flatten(-2)


class Mxfp4Tensor(TensorFile):
    """A tensor of blocks and its scales as one tensor, under the name of the blocks.

    Raises:
        CheckpointError: the shapes of blocks and scales do not fit.
    """

    def __init__(self, blocks: TensorFile, name: str, scales: TensorFile, scales_name: str):
        self.path, self.names = blocks.path, {name: scales_name}
        self.blocks, self.scales = blocks, scales
        shape, scales_shape = blocks.shape(name), scales.shape(scales_name)
        if shape != (*scales_shape, 16):
            raise CheckpointError(
                f"{self.path}: {name} must hold 16 bytes for each scale of {scales_name}, got shapes {list(shape)} "
                f"and {list(scales_shape)}"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        *rest, n_blocks, _ = self.blocks.shape(name)
        return (*rest, 32 * n_blocks)

    def stored_type(self, name: str) -> str:
        return "MXFP4"

    def dtype(self, name: str) -> torch.dtype | None:
        return torch.bfloat16

    def __getitem__(self, name: str) -> Tensor:
        return decode(self.blocks[name], self._scales(name))

    def rows(self, name: str, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
        blocks, scales = self.blocks[name], self._scales(name)
        for row in range(len(blocks)):
            yield row, decode(blocks[row : row + 1], scales[row : row + 1])

    def quantized_bytes(self, name: str) -> int | None:
        return self.blocks[name].nbytes

    def block_type(self, name: str) -> str | None:
        return "MXFP4"

    def block_rows(self, name: str, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
        """Read the first axis one index at a time. GGUF's blocks: the scale, then number i and i + 16 in byte i."""
        blocks, scales = self.blocks[name], self._scales(name)
        for row in range(len(blocks)):
            one = blocks[row : row + 1]
            low, high = torch.stack([one & 15, one >> 4], -1).flatten(-2).chunk(2, -1)  # [1, ..., G, 16]
            yield row, torch.cat([scales[row : row + 1, ..., None], low | (high << 4)], -1).flatten(-2)

    def _scales(self, name: str) -> Tensor:
        scales = self.scales[self.names[name]]
        if (scales == NAN).any():
            raise CheckpointError(f"{self.path}: {self.names[name]} has scales that are NaN ({NAN})")
        return scales


def unpack(reader: TensorReader) -> None:
    """Replace each pair of tensors `X_blocks` and `X_scales` by an `Mxfp4Tensor` named `X_blocks`."""
    for name in [name for name in reader if name.endswith(BLOCKS)]:
        scales = name.removesuffix(BLOCKS) + SCALES
        if scales in reader and reader.stored_type(name) == reader.stored_type(scales) == "U8":
            reader.files[name] = Mxfp4Tensor(reader.files[name], name, reader.files.pop(scales), scales)
