"""Read and write safetensors files: <8 bytes: header size> <header: JSON> <data>.

Format: https://github.com/huggingface/safetensors (README). The `safetensors` package checks header and length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from glassformer.atomic import replacing
from glassformer.errors import CheckpointError
from glassformer.formats.reader import ReadBuffer, TensorFile, read_rows


class SafetensorsFile(TensorFile):
    """One memory-mapped safetensors file; `names` holds each tensor's byte offset.

    Raises:
        CheckpointError: the file is truncated or damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from None
        with path.open("rb") as raw:  # safe_open has checked that the header is within the file
            size = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(size))
        self.names = {name: 8 + size + header[name]["data_offsets"][0] for name in self.file.keys()}  # noqa: SIM118

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.file.get_slice(name).get_shape())

    def stored_type(self, name: str) -> str:
        return self.file.get_slice(name).get_dtype()

    def byte_offset(self, name: str) -> int | None:
        return self.names[name]

    def __getitem__(self, name: str) -> Tensor:
        return self.file.get_tensor(name)

    def rows(self, name: str, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
        dtype, shape = self.dtype(name), self.shape(name)
        assert dtype is not None, f"{name} is not a weight"
        row_bytes = torch.Size(shape[1:]).numel() * dtype.itemsize
        for first, chunk in read_rows(self.path, self.names[name], shape[0], row_bytes, buffer):
            yield first, chunk.view(dtype).view(-1, *shape[1:])


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write one safetensors file atomically."""
    with replacing(path) as temporary:
        write_tensors(tensors, path, temporary)


def write_tensors(tensors: dict[str, Tensor], path: Path, temporary: Path) -> None:
    """Write tensors to a temporary file.

    Raises:
        CheckpointError: the disk is full; the message names `path`, the final file.
    """
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
    except Exception as error:  # safetensors has an error type of its own for a full disk
        size = sum(t.nbytes for t in tensors.values()) / 1e6
        raise CheckpointError(f"{path} could not be written ({size:.1f} MB are needed): {error}") from error
