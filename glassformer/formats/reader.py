"""Tensors of a checkpoint by name, whatever its files are: mapped, and read only when asked for."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glassformer.errors import CheckpointError

FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
SCRATCH = 1 << 20  # bytes read at a time
AHEAD = 1 << 24  # and straight into a parameter's memory


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; CheckpointError names the file that is missing, cut short or something else."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


class Scratch:
    """One piece of memory to read into, for all tensors: many would leave holes in the heap."""

    def __init__(self):
        self.bytes = torch.empty(0, dtype=torch.uint8)

    def room(self, row: int) -> Tensor:
        """Bytes for as many rows of `row` bytes as fit, at least one: [n, row]."""
        if len(self.bytes) < max(row, SCRATCH):
            self.bytes = torch.empty(max(row, SCRATCH), dtype=torch.uint8)
        n = max(1, len(self.bytes) // max(1, row))
        return self.bytes[: n * row].view(n, row)


class TensorFile(Mapping[str, Tensor]):
    """The tensors of one file; `names` has a key for each. `file[name]` is mapped, unless it must be decoded."""

    path: Path
    names: Mapping[str, Any]

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header."""

    @abstractmethod
    def kind(self, name: str) -> str:
        """A tensor's type as the format names it: F32, BF16, I8, Q4_0."""

    def dtype(self, name: str) -> torch.dtype | None:
        """What a tensor is read as; None where it cannot be a weight."""
        return FLOATS.get(self.kind(name))

    def mapped(self, name: str) -> bool:
        """Whether `file[name]` is the file's own bytes."""
        return self.kind(name) in FLOATS

    @abstractmethod
    def rows(self, name: str, scratch: Scratch) -> Iterator[tuple[int, Tensor]]:
        """A tensor piece by piece: (first row, about a MB of rows). Each piece is overwritten by the next."""

    @abstractmethod
    def begin(self, name: str) -> int | None:
        """Where the bytes of a tensor of floats begin in the file; None where they do not lie in order."""

    def readable(self) -> str:
        """The types that can be weights."""
        return ", ".join(FLOATS)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def read_rows(path: Path, begin: int, n_rows: int, row: int, scratch: Scratch) -> Iterator[tuple[int, Tensor]]:
    """The bytes of `n_rows` rows of `row` bytes each, from byte `begin` of a file: (first row, [n, row] bytes).

    The file is read, not mapped: however large the tensor, no more than one piece of it is ever in memory.
    """
    room = scratch.room(row)
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        for first in range(0, n_rows, len(room)):
            piece = room[: n_rows - first]
            space: Any = piece.view(-1).numpy()
            if file.readinto(space) != piece.nbytes:
                raise CheckpointError(f"{path} became shorter while it was read")
            yield first, piece


class TensorReader(Mapping[str, Tensor]):
    """The tensors of one or several files. `twice` says which of them stand in two files.

    `reader[name]` is mapped; `reader.rows(name)` reads, and leaves no page of the file in memory.
    """

    def __init__(self, files: Sequence[TensorFile]):
        self.files: dict[str, TensorFile] = {}  # of each tensor
        self.twice: list[str] = []
        self.scratch = Scratch()
        for file in files:
            for name in file:
                if name in self.files:
                    self.twice.append(f"{file.path.name} holds {name}, which {self.files[name].path.name} holds too")
                self.files[name] = file

    def shape(self, name: str) -> tuple[int, ...]:
        return self.files[name].shape(name)

    def kind(self, name: str) -> str:
        return self.files[name].kind(name)

    def dtype(self, name: str) -> torch.dtype | None:
        return self.files[name].dtype(name)

    def mapped(self, name: str) -> bool:
        """Whether `reader[name]` is the file's own bytes."""
        return self.files[name].mapped(name)

    def readable(self, name: str) -> str:
        return self.files[name].readable()

    def rows(self, name: str) -> Iterator[tuple[int, Tensor]]:
        return self.files[name].rows(name, self.scratch)

    def place(self, name: str | None) -> tuple[str, int]:
        """Where a tensor lies: who reads tensors in this order reads each file from its beginning to its end."""
        if name is None:
            return "", 0
        return str(self.files[name].path), self.files[name].begin(name) or 0

    def read(self, name: str, into: Tensor) -> None:
        """Read a tensor of floats straight into one of its shape and dtype, on the CPU."""
        file = self.files[name]
        begin = file.begin(name)
        if begin is None:
            into.copy_(file[name])
            return
        space: Any = into.view(-1).view(torch.uint8).numpy()
        with file.path.open("rb", buffering=0) as raw:
            raw.seek(begin)
            done = 0
            while done < len(space):
                n = raw.readinto(space[done : done + AHEAD])
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
