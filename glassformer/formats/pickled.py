"""Files of `torch.save`, opened memory-mapped and with `weights_only`, so that no code in them is run."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.formats.reader import ReadBuffer, TensorFile
from glassformer.formats.safetensors_file import TYPES

NAMES = TYPES | {torch.float8_e4m3fn: "F8_E4M3"}

CONVERT = """To convert it, if you trust its author, run with OLD.bin and NEW.bin as arguments:
  python -c 'import sys, torch; torch.save(torch.load(sys.argv[1], "cpu", weights_only=False), sys.argv[2])'
If it holds more than tensors by name, save only those."""


def read_pickle(path: Path) -> Any:
    """Read a file of `torch.save`, its tensors memory-mapped.

    Raises:
        CheckpointError: the file is damaged, or would run code.
    """
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise CheckpointError(f"{path} is not a complete file of torch.save: it is empty")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} holds more than weights, so it is not opened: {reason}. {CONVERT}") from None
    except Exception as error:  # a damaged file can raise any error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "mmap can only" in reason:
            reason = "it has the format from before PyTorch 1.6, which cannot be memory-mapped"
            raise CheckpointError(f"{path} cannot be opened: {reason}. {CONVERT}") from None
        raise CheckpointError(f"{path} is not a complete file of torch.save: {reason}") from None


class PickledFile(TensorFile):
    """One file of `torch.save` that holds tensors by name.

    Args:
        content: the tensors by name, if they are only a part of the file's content.

    Raises:
        CheckpointError: the file is damaged, or holds anything but tensors.
    """

    names: Mapping[str, Tensor]

    def __init__(self, path: Path, content: Any = None):
        self.path = path
        content = read_pickle(path) if content is None else content
        if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
            raise CheckpointError(f"{path} must hold tensors by name, got {type(content).__name__}")
        other = sorted(name for name, value in content.items() if not isinstance(value, Tensor))
        if other:
            raise CheckpointError(f"{path} must hold tensors by name; these are not tensors: {', '.join(other[:10])}")
        self.names = {name: value.detach() for name, value in content.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.names[name].shape)

    def stored_type(self, name: str) -> str:
        tensor = self.names[name]
        dense = tensor.layout == torch.strided and not tensor.is_quantized
        return NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.")) if dense else str(tensor.layout)

    def __getitem__(self, name: str) -> Tensor:
        return self.names[name].contiguous()

    def rows(self, name: str, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
        tensor = self.names[name]
        step = max(1, 2**20 // max(1, tensor[:1].nbytes))
        for first in range(0, len(tensor), step):
            yield first, tensor[first : first + step]
