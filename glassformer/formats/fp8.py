"""FP8 weights as DeepSeek publishes them: E4M3 numbers, and one float32 scale per block, of 128 x 128 as a rule.

X.weight            [O, I]              F8_E4M3
X.weight_scale_inv  [O / 128, I / 128]  rounded up; a block's numbers are multiplied by its scale

compressed-tensors stores the same with other blocks: see `compressed_tensors.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import TypeIs

from glassformer.errors import CheckpointError, ConfigError
from glassformer.families.common.family import ConfigFields
from glassformer.formats.reader import ReadBuffer, TensorFile, TensorReader

TYPE, SCALE_SUFFIX = "F8_E4M3", "_scale_inv"
TILE_ROWS = 128  # rows that are decoded at a time
DETAILS = ("activation_scheme", "modules_to_not_convert", "ignored_layers", "scale_fmt", "dequantize")
Block = tuple[int, int]  # rows and columns


def read(fields: ConfigFields) -> partial[None]:
    """Read the settings of FP8 in blocks; return the `unpack` that applies them.

    Activations are not quantized here.

    Raises:
        ConfigError: a setting is not supported.
    """
    fields.expect("fmt", "e4m3", None)
    block = fields.take("weight_block_size", None)
    if not is_block(block):
        raise ConfigError(
            f"{fields.source}: weight_block_size must be the rows and columns of a block, such as [128, 128], "
            f"got {block!r}"
        )
    for name in DETAILS:
        fields.take(name, None)
    return partial(unpack, block=(block[0], block[1]))


def is_block(value: object) -> TypeIs[list[int]]:
    """Whether a value of config.json is a block's rows and columns."""
    return isinstance(value, list) and len(value) == 2 and all(type(size) is int and size > 0 for size in value)


def decode(
    values: Tensor, scales: Float[Tensor, "P Q"], block: Block = (128, 128), first: int = 0
) -> Float[Tensor, "O I"]:
    """Return rows of a matrix, from row `first` on, in float32. The last block along each axis may be smaller."""
    rows = scales.float()[torch.arange(first, first + len(values)) // block[0]]  # [O, Q]
    return values.float() * rows.repeat_interleave(block[1], 1)[:, : values.shape[1]]


class Fp8Tensor(TensorFile):
    """An FP8 matrix and its scales as one decoded tensor, under the name of the matrix.

    Raises:
        CheckpointError: the shapes of values and scales do not fit.
    """

    def __init__(self, values: TensorFile, name: str, scales: TensorFile, scales_name: str, block: Block = (128, 128)):
        self.path, self.names = values.path, {name: scales_name}
        self.fp8_values, self.scales = values, scales
        shape, scales_shape = values.shape(name), scales.shape(scales_name)
        self.blocks = tuple(-(-size // of) for size, of in zip(shape, block, strict=False))
        one_scale = self.blocks == (1, 1) and scales_shape in ((), (1,))
        if len(shape) != 2 or (scales_shape != self.blocks and not one_scale):
            raise CheckpointError(
                f"{self.path}: {scales_name} must hold a scale for each block of {block[0]} x {block[1]} of {name} "
                f"{list(shape)}, so {list(self.blocks)}, got {list(scales_shape)}"
            )
        self.block = min(block[0], max(1, shape[0])), min(block[1], max(1, shape[1]))  # a block may exceed the matrix

    def shape(self, name: str) -> tuple[int, ...]:
        return self.fp8_values.shape(name)

    def stored_type(self, name: str) -> str:
        return "FP8"

    def dtype(self, name: str) -> torch.dtype | None:
        return torch.float32

    def __getitem__(self, name: str) -> Tensor:
        return decode(self.fp8_values[name], self._finite_scales(name), self.block)

    def rows(self, name: str, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
        values, scales = self.fp8_values[name], self._finite_scales(name)
        for first in range(0, len(values), TILE_ROWS):
            yield first, decode(values[first : first + TILE_ROWS], scales, self.block, first)

    def quantized_bytes(self, name: str) -> int | None:
        return self.fp8_values[name].nbytes

    def _finite_scales(self, name: str) -> Float[Tensor, "P Q"]:
        scales = self.scales[self.names[name]].reshape(self.blocks)
        if not scales.float().isfinite().all():
            raise CheckpointError(f"{self.path}: {self.names[name]} has scales that are NaN or infinite")
        return scales


def unpack(reader: TensorReader, *, block: Block) -> None:
    """Replace each FP8 matrix that has scales by its decoded tensor."""
    for name in [name for name in reader if reader.stored_type(name) == TYPE]:
        scales = name + SCALE_SUFFIX
        if scales in reader and reader.dtype(scales) is not None:
            reader.files[name] = Fp8Tensor(reader.files[name], name, reader.files.pop(scales), scales, block)
