"""What `torch.save` wrote, opened with `weights_only` and mapped. Nothing in it is ever run."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.formats.reader import FLOATS, Scratch, TensorFile

NAMES = {dtype: name for name, dtype in FLOATS.items()}

CONVERT = """To convert it, where you trust its author, with OLD.bin and NEW.bin as arguments:
  python -c 'import sys, torch; torch.save(torch.load(sys.argv[1], "cpu", weights_only=False), sys.argv[2])'
and should it hold more than tensors by name, save only those."""


def read_pickle(path: Path) -> Any:
    """What a file of `torch.save` holds, its tensors mapped. CheckpointError where it is damaged, or would run code."""
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise CheckpointError(f"{path} is not a whole file of torch.save: it is empty")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} holds more than weights, and is not opened: {reason}. {CONVERT}") from None
    except Exception as error:  # a damaged file may show itself in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "mmap can only" in reason:
            reason = "it is in the layout of before PyTorch 1.6, which cannot be mapped"
            raise CheckpointError(f"{path} cannot be opened: {reason}. {CONVERT}") from None
        raise CheckpointError(f"{path} is not a whole file of torch.save: {reason}") from None


class PickledFile(TensorFile):
    """One file of `torch.save`: tensors by name. CheckpointError where it is damaged, or more than tensors."""

    def __init__(self, path: Path, found: Any = None):
        """`found`: the tensors by name, where the file holds them within something else."""
        self.path = path
        found = read_pickle(path) if found is None else found
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            raise CheckpointError(f"{path} must hold tensors by name, got {type(found).__name__}")
        other = sorted(name for name, value in found.items() if not isinstance(value, Tensor))
        if other:
            raise CheckpointError(f"{path} must hold tensors by name; no tensors are {', '.join(other[:10])}")
        self.names: Mapping[str, Tensor] = {name: value.detach() for name, value in found.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.names[name].shape)

    def kind(self, name: str) -> str:
        tensor = self.names[name]
        plain = tensor.layout == torch.strided and not tensor.is_quantized
        return NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.")) if plain else str(tensor.layout)

    def begin(self, name: str) -> int | None:
        return None

    def __getitem__(self, name: str) -> Tensor:
        return self.names[name].contiguous()

    def rows(self, name: str, scratch: Scratch) -> Iterator[tuple[int, Tensor]]:
        tensor = self.names[name]
        step = max(1, 2**20 // max(1, tensor[:1].nbytes))
        for first in range(0, len(tensor), step):
            yield first, tensor[first : first + step]
