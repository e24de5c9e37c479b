"""Read and write safetensors files: <8 bytes: header size> <header: JSON> <data>.

Format: https://github.com/huggingface/safetensors (README). The `safetensors` package checks header and length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from glassformer.atomic import replacing
from glassformer.errors import CheckpointError
from glassformer.formats.reader import ReadBuffer, TensorFile, read_rows

TYPES = {  # in the order of their tensors in a file: by alignment
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


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
    """Write tensors to a temporary file, with the same bytes as the `safetensors` package.

    The package writes a temporary file of its own, which a killed process leaves under a name that nobody can assign.

    Raises:
        CheckpointError: the disk is full; the message names `path`, the final file.
    """
    order = sorted(tensors, key=lambda name: ([*TYPES].index(tensors[name].dtype), name))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        entries[name] = {"dtype": TYPES[tensors[name].dtype], "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    try:
        with temporary.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name in order:
                if tensors[name].numel():  # an empty tensor may have stride 0, which cannot be viewed as bytes
                    file.write(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written ({end / 1e6:.1f} MB are needed): {error}") from error
