"""Tensors of a checkpoint folder, by name, mapped and read only when asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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


class Reader(Mapping[str, Tensor]):
    """The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.

    Each file is mapped, and its header and length are checked when it is opened: CheckpointError where it is cut short.
    """

    def __init__(self, folder: Path):
        index = folder / "model.safetensors.index.json"
        names = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
        self.files = [self._open(folder / name) for name in names]
        self.where = {name: file for file in self.files for name in file.keys()}  # noqa: SIM118 (not a dict)

    @staticmethod
    def _open(path: Path) -> Any:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header."""
        return tuple(self.where[name].get_slice(name).get_shape())

    def __getitem__(self, name: str) -> Tensor:
        return self.where[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)
