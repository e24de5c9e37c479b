"""Tokenized pairs in a run's folder, so that it can go on without what they were made from.

DATA/pairs.safetensors   train.source.tokens [tokens], train.source.lengths [pairs], the same of train.target,
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
    """Write both, whole or not at all. Raises DataError when they cannot be written."""
    tensors = {"ends": torch.tensor([train.bos_id, train.eos_id, train.vocab_size])}
    for part, pairs in zip(PARTS, (train, held_out), strict=True):
        for name, side in (("source", pairs.source), ("target", pairs.target)):
            tensors[f"{part}.{name}.tokens"] = torch.from_numpy(_packed(side))
            tensors[f"{part}.{name}.lengths"] = torch.from_numpy(side.lengths)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(tensors, folder / FILE)
    except (OSError, CheckpointError) as error:
        raise DataError(f"the prepared pairs could not be kept: {error}") from error


def _packed(side: TokenSequences) -> np.ndarray:
    """The tokens of these texts alone, one text after the other."""
    ends = np.cumsum(side.lengths, dtype=np.int64)
    shift = np.repeat(side.starts - (ends - side.lengths), side.lengths)
    return side.tokens[shift + np.arange(len(shift))]


def load_examples(folder: Path) -> tuple[Seq2SeqExamples, Seq2SeqExamples]:
    """What `save_pairs` has written: pairs to train on, and held-out ones (there may be none).

    Raises DataError naming the file when it is missing, cut short or something else.
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
    if int(lengths.sum()) != len(tokens):
        raise ValueError(f"{name} has {len(tokens):,} tokens, and its lengths sum up to {int(lengths.sum()):,}")
    return TokenSequences(tokens, np.cumsum(lengths, dtype=np.int64) - lengths, lengths)
