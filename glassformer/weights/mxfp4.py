"""MXFP4, decoded: numbers of 4 bits in blocks of 32 with a scale ("OCP Microscaling Formats (MX)", v1.0, section 5).

blocks [..., G, 16] bytes, two numbers in each, the first in the lower half    scales [..., G] bytes: 2^(s - 127)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.weights.reader import Reader

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # E2M1, and the same with a sign
BLOCKS, SCALES = "_blocks", "_scales"


def decode(blocks: UInt8[Tensor, "*B G 16"], scales: UInt8[Tensor, "*B G"]) -> Float[Tensor, "*B N"]:
    """The numbers of all blocks, N = 32 G of them in a row, in bfloat16, which holds each of them exactly."""
    values = torch.tensor([*VALUES, *(-value for value in VALUES)], dtype=torch.bfloat16, device=blocks.device)
    numbers = torch.stack([values[(blocks & 15).int()], values[(blocks >> 4).int()]], -1).flatten(-2)  # [..., G, 32]
    return torch.ldexp(numbers, scales.int()[..., None] - 127).flatten(-2)


class Mxfp4Reader(Reader):
    """A reader in which `X_blocks` are the numbers that the tensors `X_blocks` and `X_scales` hold together.

    CheckpointError where the two do not fit each other.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        raw = super()
        pairs = {name: name.removesuffix(BLOCKS) + SCALES for name in self.where if name.endswith(BLOCKS)}
        self.scales = {
            name: scales
            for name, scales in pairs.items()
            if scales in self.where and raw.kind(name) == raw.kind(scales) == "U8"
        }
        for name, scales in self.scales.items():
            if raw.shape(name) != (*raw.shape(scales), 16):
                raise CheckpointError(
                    f"{folder}: {name} must hold 16 bytes for each of {scales}, "
                    f"got {list(raw.shape(name))} and {list(raw.shape(scales))}"
                )

    def shape(self, name: str) -> tuple[int, ...]:
        shape = super().shape(name)
        return (*shape[:-2], 32 * shape[-2]) if name in self.scales else shape

    def kind(self, name: str) -> str:
        return "BF16" if name in self.scales else super().kind(name)

    def __getitem__(self, name: str) -> Tensor:
        found = super().__getitem__(name)
        return decode(found, super().__getitem__(self.scales[name])) if name in self.scales else found

    def rows(self, name: str) -> Iterator[tuple[int, Tensor]]:
        if name not in self.scales:
            yield from super().rows(name)
            return
        blocks, scales = super().__getitem__(name), super().__getitem__(self.scales[name])
        for row in range(len(blocks)):
            yield row, decode(blocks[row : row + 1], scales[row : row + 1])

    def __iter__(self) -> Iterator[str]:
        hidden = set(self.scales.values())
        return (name for name in self.where if name not in hidden)

    def __len__(self) -> int:
        return len(self.where) - len(self.scales)
