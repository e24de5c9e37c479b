"""Tensors of a checkpoint by name, from files of any format: memory-mapped, or read on demand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glassformer import json_file
from glassformer.errors import CheckpointError

FLOAT_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
MAX_JSON_BYTES = 16 << 20  # an index of a thousand shards has 10 MB
CHUNK_BYTES = 1 << 20  # size of a chunk of rows
READ_BYTES = 1 << 24  # size of one read straight into a parameter


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. CheckpointError: the file is missing, damaged, or holds something else."""
    value = json_file.read_json(path, max_bytes=MAX_JSON_BYTES)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


class ReadBuffer:
    """One buffer for all chunks of all tensors. A new buffer per tensor would fragment the heap."""

    def __init__(self):
        self.bytes = torch.empty(0, dtype=torch.uint8)

    def rows(self, row_bytes: int) -> Tensor:
        """Return a view of as many rows as fit, at least one: [n, row_bytes] uint8."""
        if len(self.bytes) < max(row_bytes, CHUNK_BYTES):
            self.bytes = torch.empty(max(row_bytes, CHUNK_BYTES), dtype=torch.uint8)
        n = max(1, len(self.bytes) // max(1, row_bytes))
        return self.bytes[: n * row_bytes].view(n, row_bytes)


class TensorFile(Mapping[str, Tensor]):
    """The tensors of one file, by name. `file[name]` is memory-mapped unless the tensor must be decoded.

    Attributes:
        names: a mapping with one key per tensor; the values belong to the subclass.
    """

    path: Path
    names: Mapping[str, Any]

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, from the header."""

    @abstractmethod
    def stored_type(self, name: str) -> str:
        """Return a tensor's type as the format names it: F32, BF16, I8, Q4_0."""

    def dtype(self, name: str) -> torch.dtype | None:
        """Return the dtype that a tensor is read as; None if it cannot be a weight."""
        return FLOAT_DTYPES.get(self.stored_type(name))

    def mapped(self, name: str) -> bool:
        """Whether `file[name]` is a view of the file's bytes."""
        return self.stored_type(name) in FLOAT_DTYPES

    @abstractmethod
    def rows(self, name: str, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
        """Read a tensor in chunks of about 1 MB: (first row, rows). Each chunk overwrites the one before."""

    def quantized_bytes(self, name: str) -> int | None:
        """Return the bytes of a quantized tensor; None for other tensors."""
        return None

    def block_type(self, name: str) -> str | None:
        """Return the type of a quantized tensor that `block_rows` reads; None for other tensors."""
        return None

    def block_rows(self, name: str, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
        """Read a quantized tensor without decoding it, as `rows`: the last axis holds the bytes of a row's blocks."""
        raise NotImplementedError

    def byte_offset(self, name: str) -> int | None:
        """Return where a float tensor's bytes begin in the file; None if they are not contiguous."""
        return None

    def supported_types(self) -> str:
        """Return the types that can be weights, for messages."""
        return ", ".join(FLOAT_DTYPES)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def read_rows(path: Path, offset: int, n_rows: int, row_bytes: int, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
    """Read `n_rows` rows of `row_bytes` bytes from byte `offset` of a file, in chunks.

    The file is read, not mapped: only one chunk is in memory, however large the tensor.

    Yields:
        The index of the first row, and the rows: [n, row_bytes] uint8.
    """
    rows = buffer.rows(row_bytes)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        for first in range(0, n_rows, len(rows)):
            chunk = rows[: n_rows - first]
            target: Any = chunk.view(-1).numpy()
            if file.readinto(target) != chunk.nbytes:
                raise CheckpointError(f"{path} became shorter while it was read")
            yield first, chunk


class RenamedTensor(TensorFile):
    """One tensor of a file under another name."""

    def __init__(self, file: TensorFile, stored_name: str, name: str):
        self.path, self.file, self.names = file.path, file, {name: stored_name}

    def shape(self, name: str) -> tuple[int, ...]:
        return self.file.shape(self.names[name])

    def stored_type(self, name: str) -> str:
        return self.file.stored_type(self.names[name])

    def dtype(self, name: str) -> torch.dtype | None:
        return self.file.dtype(self.names[name])

    def mapped(self, name: str) -> bool:
        return self.file.mapped(self.names[name])

    def rows(self, name: str, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
        return self.file.rows(self.names[name], buffer)

    def quantized_bytes(self, name: str) -> int | None:
        return self.file.quantized_bytes(self.names[name])

    def block_type(self, name: str) -> str | None:
        return self.file.block_type(self.names[name])

    def block_rows(self, name: str, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
        return self.file.block_rows(self.names[name], buffer)

    def byte_offset(self, name: str) -> int | None:
        return self.file.byte_offset(self.names[name])

    def __getitem__(self, name: str) -> Tensor:
        return self.file[self.names[name]]


def rename_tensors(reader: TensorReader, prefixes: Sequence[tuple[str, str]]) -> None:
    """Replace, in the name of each tensor, the first of the prefixes (old, new) that it has."""
    for name in list(reader):
        for old, new in prefixes:
            if name.startswith(old):
                renamed = new + name.removeprefix(old)
                reader.files[renamed] = RenamedTensor(reader.files.pop(name), name, renamed)
                break


class TensorReader(Mapping[str, Tensor]):
    """The tensors of one or more files, by name.

    `reader[name]` is memory-mapped; `reader.rows(name)` reads and leaves no page of the file in memory.

    Attributes:
        files: the file of each tensor.
        duplicates: messages about tensors that are in two files.
    """

    def __init__(self, files: Sequence[TensorFile]):
        self.files: dict[str, TensorFile] = {}
        self.duplicates: list[str] = []
        self.buffer = ReadBuffer()
        for file in files:
            for name in file:
                if name in self.files:
                    self.duplicates.append(f"{name} is in {self.files[name].path.name} and in {file.path.name}")
                self.files[name] = file

    def shape(self, name: str) -> tuple[int, ...]:
        return self.files[name].shape(name)

    def stored_type(self, name: str) -> str:
        return self.files[name].stored_type(name)

    def dtype(self, name: str) -> torch.dtype | None:
        return self.files[name].dtype(name)

    def mapped(self, name: str) -> bool:
        """Whether `reader[name]` is a view of the file's bytes."""
        return self.files[name].mapped(name)

    def supported_types(self, name: str) -> str:
        return self.files[name].supported_types()

    def rows(self, name: str) -> Iterator[tuple[int, Tensor]]:
        return self.files[name].rows(name, self.buffer)

    def quantized_bytes(self, name: str) -> int | None:
        return self.files[name].quantized_bytes(name)

    def block_type(self, name: str) -> str | None:
        return self.files[name].block_type(name)

    def block_rows(self, name: str) -> Iterator[tuple[int, Tensor]]:
        return self.files[name].block_rows(name, self.buffer)

    def file_position(self, name: str | None) -> tuple[str, int]:
        """Return a sort key: reading tensors in this order reads each file from beginning to end."""
        if name is None:
            return "", 0
        return str(self.files[name].path), self.files[name].byte_offset(name) or 0

    def read_into(self, name: str, target: Tensor) -> None:
        """Read a float tensor into a CPU tensor of the same shape and dtype."""
        file = self.files[name]
        offset = file.byte_offset(name)
        if offset is None:
            target.copy_(file[name])
            return
        destination: Any = target.view(-1).view(torch.uint8).numpy()
        with file.path.open("rb", buffering=0) as raw:
            raw.seek(offset)
            done = 0
            while done < len(destination):
                n = raw.readinto(destination[done : done + READ_BYTES])
                if not n:
                    raise CheckpointError(f"{file.path} became shorter while it was read")
                done += n

    def __getitem__(self, name: str) -> Tensor:
        return self.files[name][name]

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)
