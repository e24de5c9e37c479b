"""Tensors of a checkpoint folder, by name, mapped and read only when asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from glassformer.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; CheckpointError names the file that is missing, cut short or something else."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


SCRATCH = 1 << 20  # bytes read at a time


class Reader(Mapping[str, Tensor]):
    """The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.

    Each file is mapped, and its header and length are checked when it is opened: CheckpointError where it is cut short.
    `reader[name]` is mapped; `reader.rows(name)` reads, and leaves no page of the file in memory.
    """

    def __init__(self, folder: Path):
        self.where: dict[str, Any] = {}  # the open file of each tensor
        self.begins: dict[str, tuple[Path, int]] = {}  # its file's path, and the byte where its data begin
        self.scratch = torch.empty(0, dtype=torch.uint8)
        for name in self._names(folder):
            self._open(folder / name)

    @staticmethod
    def _names(folder: Path) -> list[str]:
        index = folder / "model.safetensors.index.json"
        if not index.exists():
            return ["model.safetensors"]
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointError(f"{index}: weight_map must name a file for each tensor")
        return sorted(set(shards.values()))

    def _open(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        try:
            file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
        with path.open("rb") as raw:  # <8 bytes: size> <header: JSON> <data>
            size = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(size))
        for name in file.keys():  # noqa: SIM118 (not a dict)
            if name in self.where:
                raise CheckpointError(f"{path} holds {name}, which {self.begins[name][0].name} holds too")
            self.where[name] = file
            self.begins[name] = path, 8 + size + header[name]["data_offsets"][0]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header."""
        return tuple(self.where[name].get_slice(name).get_shape())

    def kind(self, name: str) -> str:
        """A tensor's type as the header names it: F32, BF16, I8."""
        return self.where[name].get_slice(name).get_dtype()

    def __getitem__(self, name: str) -> Tensor:
        return self.where[name].get_tensor(name)

    def rows(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """A tensor piece by piece: (first row, about a MB of rows). Each piece is overwritten by the next.

        The file is read, not mapped: however large the tensor, no more than one piece of it is ever in memory.
        """
        (path, begin), tensor = self.begins[name], self[name]
        width = tensor[:1].nbytes
        if len(self.scratch) < max(width, SCRATCH):  # one for all tensors: many would leave holes in the heap
            self.scratch = torch.empty(max(width, SCRATCH), dtype=torch.uint8)
        room = max(1, len(self.scratch) // max(1, width))
        scratch = self.scratch[: room * width].view(tensor.dtype).view(room, *tensor.shape[1:])
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            for row in range(0, len(tensor), len(scratch)):
                piece = scratch[: len(tensor) - row]
                space: Any = piece.view(-1).view(torch.uint8).numpy()
                if file.readinto(space) != piece.nbytes:
                    raise CheckpointError(f"{path} became shorter while it was read")
                yield row, piece

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)
