"""Record the activations of many texts, a batch at a time, as NumPy arrays or files.

texts -> token ids -> batches -> one forward pass each -> ActivationBatch [tokens of the batch, ...]
                                                            -> folder/batch-000000.safetensors, ...
                                                            -> folder/blocks.5.resid_post.npy, memory-mapped
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from glassformer.config import ModelConfig
from glassformer.errors import CapacityError, CheckpointError, RequestError
from glassformer.formats.save import save_tensors
from glassformer.generate.request import check_ids
from glassformer.generate.session import pad
from glassformer.inspect.capture.points import find, match
from glassformer.inspect.trace.trace import Language
from glassformer.kernels.native.attention import attend_native
from glassformer.nn.linear import device_of
from glassformer.nn.step import Step

FileFormat = Literal["safetensors", "npy"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ActivationBatch:
    """The activations of consecutive texts; `stream_activations` makes it.

    first: the number of the first text. lengths: the number of tokens of each text. values: per point an array whose
    first axis counts the tokens of all these texts, one text after another.
    """

    first: int
    lengths: tuple[int, ...]
    values: dict[str, np.ndarray]

    def split(self, name: str) -> list[np.ndarray]:
        """Return one array per text."""
        return np.split(self.values[name], np.cumsum(self.lengths)[:-1])


class BatchTap:
    """A tap that stores the values of some points of one forward pass."""

    def __init__(self, names: Sequence[str]):
        self.names, self.values = frozenset(names), dict[str, Tensor]()

    def wants(self, name: str) -> bool:
        return name in self.names

    def __call__(self, name: str, value: Tensor) -> Tensor:
        self.values[name] = value
        return value


def token_points(config: Any, capture: Sequence[str]) -> list[str]:
    """Return the points that match the patterns.

    Raises:
        RequestError: no point matches, or a point is derived or does not have one value per token.
    """
    names = match(config, capture)
    if not names:
        raise RequestError('capture names no point: give one or more, such as "blocks.*.resid_post"', param="capture")
    for name in names:
        point = find(config, name)
        if point.kind == "derived" or point.axes.split()[1] != "T":
            raise RequestError(
                f"{name} has the axes {point.axes} and is not one value per token: use `trace` for it", param="capture"
            )
    return names


def stream_activations(
    lm: Language,
    sequences: Sequence[Sequence[int]],
    names: Sequence[str],
    forward: Callable[[Tensor, Step], object],
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> Iterator[ActivationBatch]:
    """Yield the activations of texts (token ids) at some points, `batch_size` texts per forward pass.

    Args:
        forward: runs the model on padded ids, [B, T], and visits all these points.
        progress: called with the number of completed texts and the number of all texts.

    Raises:
        CapacityError: a text is longer than the context.
        RequestError: a text is empty, or a token id is outside the vocabulary.
    """
    config, device = lm.model.config, device_of(lm.model)
    for i, ids in enumerate(sequences):
        check_ids(f"text {i + 1} of {len(sequences)}", ids, config.vocab_size)
        if len(ids) > config.context_length:
            raise CapacityError(
                f"text {i + 1} of {len(sequences)} has {len(ids)} tokens, and the model's context holds "
                f"{config.context_length}"
            )
    if isinstance(config, ModelConfig) and config.long_text is not None:
        batch_size = 1  # the length of a batch selects the rotary angles of all its texts
    for first in range(0, len(sequences), batch_size):
        ids, lengths = pad(sequences[first : first + batch_size], device)
        tap = BatchTap(names)
        with torch.no_grad():
            forward(ids, Step.of(ids, lengths, tap=tap, attend=attend_native))
        values = {name: _tokens(tap.values[name], lengths) for name in names}
        yield ActivationBatch(first, tuple(lengths), values)
        if progress is not None:
            progress(first + len(lengths), len(sequences))


def _tokens(value: Tensor, lengths: Sequence[int]) -> np.ndarray:
    """Return the values of all real tokens of a padded batch [B, T, ...], as float32 if NumPy lacks the dtype."""
    packed = torch.cat([row[:length] for row, length in zip(value, lengths, strict=True)])
    return (packed.float() if packed.dtype == torch.bfloat16 else packed).cpu().numpy()


def save_activations(
    batches: Iterator[ActivationBatch], lengths: Sequence[int], folder: str | Path, file_format: FileFormat
) -> list[Path]:
    """Save a stream of activations; return the files. At most one batch is in memory.

    "safetensors" makes one file per batch, with the lengths of its texts. "npy" makes one memory-mapped array per
    point, [tokens of all texts, ...], and `lengths.npy`.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if file_format == "safetensors":
            return [_save_batch(batch, folder) for batch in batches]
        return _save_arrays(batches, lengths, folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from error


def _save_batch(batch: ActivationBatch, folder: Path) -> Path:
    path = folder / f"batch-{batch.first:06}.safetensors"
    tensors = {name: torch.from_numpy(value) for name, value in batch.values.items()}
    save_tensors(tensors | {"lengths": torch.tensor(batch.lengths)}, path)
    return path


def _save_arrays(batches: Iterator[ActivationBatch], lengths: Sequence[int], folder: Path) -> list[Path]:
    arrays: dict[str, np.memmap] = {}
    begin = 0
    np.save(folder / "lengths.npy", np.array(lengths, dtype=np.int64))
    for batch in batches:
        end = begin + sum(batch.lengths)
        for name, value in batch.values.items():
            if name not in arrays:
                shape = (sum(lengths), *value.shape[1:])
                arrays[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", value.dtype, shape)
            arrays[name][begin:end] = value
        begin = end
    for array in arrays.values():
        array.flush()
    return [folder / f"{name}.npy" for name in arrays]
