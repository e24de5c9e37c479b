"""Tokenized seq2seq examples in the run folder, so that a run can be resumed without its data files.

DATA/pairs.safetensors   train.source.tokens [tokens], train.source.lengths [examples]; the same for train.target,
                         held_out.source and held_out.target; ends [3]: bos_id, eos_id, vocab_size
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from glassformer.errors import CheckpointError, DataError
from glassformer.formats.safetensors_file import save_tensors
from glassformer.training.data.seq2seq_examples import Seq2SeqExamples, TokenSequences
from glassformer.training.data.sources import Skipped

FILE, PARTS = "pairs.safetensors", ("train", "held_out")


def save_examples(folder: Path, train: Seq2SeqExamples, held_out: Seq2SeqExamples) -> None:
    """Write both atomically. Raises DataError when they cannot be written."""
    tensors = {"ends": torch.tensor([train.bos_id, train.eos_id, train.vocab_size])}
    for part, examples in zip(PARTS, (train, held_out), strict=True):
        for name, side in (("source", examples.source), ("target", examples.target)):
            tensors[f"{part}.{name}.tokens"] = torch.from_numpy(_packed(side))
            tensors[f"{part}.{name}.lengths"] = torch.from_numpy(side.lengths)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(tensors, folder / FILE)
    except (OSError, CheckpointError) as error:
        raise DataError(f"the prepared examples could not be written: {error}") from error


def _packed(side: TokenSequences) -> np.ndarray:
    """Return the tokens of these sequences alone, concatenated."""
    ends = np.cumsum(side.lengths, dtype=np.int64)
    shift = np.repeat(side.starts - (ends - side.lengths), side.lengths)
    return side.tokens[shift + np.arange(len(shift))]


def load_examples(folder: Path) -> tuple[Seq2SeqExamples, Seq2SeqExamples]:
    """Return the training examples and the held-out examples, of which there may be none.

    Raises DataError that names the file when it is missing, truncated or of another kind.
    """
    path = folder / FILE
    try:
        tensors = load_file(path)
        bos, eos, size = tensors["ends"].tolist()
        train, held_out = (
            Seq2SeqExamples(
                _side(tensors, f"{part}.source"), _side(tensors, f"{part}.target"), bos, eos, size, Skipped()
            )
            for part in PARTS
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}: start a new run") from error
    return train, held_out


def _side(tensors: Mapping[str, Tensor], name: str) -> TokenSequences:
    tokens, lengths = tensors[f"{name}.tokens"].numpy(), tensors[f"{name}.lengths"].numpy()
    if not all(np.issubdtype(values.dtype, np.integer) and values.ndim == 1 for values in (tokens, lengths)):
        raise ValueError(f"{name} must be lists of whole numbers")
    if len(lengths) and lengths.min() < 1:
        raise ValueError(f"{name} has a length of {lengths.min()}")
    if int(lengths.sum()) != len(tokens):
        raise ValueError(f"{name} has {len(tokens):,} tokens, but its lengths sum to {int(lengths.sum()):,}")
    return TokenSequences(tokens, np.cumsum(lengths, dtype=np.int64) - lengths, lengths)
