"""Batches of seq2seq examples of similar lengths, so that little of a batch is padding.

    source   t h e . 3 r d . o f . M a y        inputs   BOS  2  0  0  5          targets   2  0  0  5 EOS
             M a y . 3 r d  -  -  -  -  -                BOS  1  9  8  4                    1  9  8  4 EOS

An epoch is all examples once, in its own order: they are shuffled and split into pools of up to POOL batches; a pool is
sorted by source length and split into slabs; a slab is sorted by target length and split into batches; the batches are
shuffled. Epochs follow each other without a gap: a batch at their boundary has the last examples of one and the first
of the next. All of this is a function of (seed, epoch) and the examples, not of NumPy's version.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from glassformer.errors import DataError
from glassformer.training.data.packing import IGNORE, permutation, read_taken
from glassformer.training.data.seq2seq_examples import Seq2SeqExamples, TokenSequences

POOL = 64  # batches sorted together, at most a quarter of all, so that batches differ between epochs
PAD = 0  # any id: `source_lengths` and IGNORE mark the padding
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Seq2SeqBatch:
    """B examples, padded to S tokens of the longest source and T of the longest target with its first or last token.

    source: the encoder's input, PAD from `source_lengths` on. inputs: the decoder's input, from bos_id on.
    targets: the decoder's targets up to eos_id, then IGNORE.
    indices: the index of each example; -1 for one that fills a batch and counts nothing.
    tokens: the number of counted targets.
    """

    source: Int64[Tensor, "B S"]
    source_lengths: Int64[Tensor, "B"]
    inputs: Int64[Tensor, "B T"]
    targets: Int64[Tensor, "B T"]
    indices: Int64[Tensor, "B"]
    tokens: int

    @property
    def padding(self) -> float:
        """The fraction of positions in `source` and `targets` that are padding."""
        positions = self.source.numel() + self.targets.numel()
        return 1 - (int(self.source_lengths.sum()) + int((self.targets != IGNORE).sum())) / positions

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Seq2SeqBatch:
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


class Seq2SeqLoader:
    """An endless stream of training batches: `next()` returns this rank's share of the next global batch.

    Args:
        batch: examples of the global batch. Rank r takes examples r, r + world_size, ..., so that the global batches
            are the same for every number of processes.
        accumulate: micro-batches of a step; together they have the examples of one batch of `accumulate * batch`.

    Raises:
        DataError: there are fewer examples than a step has, or `batch` is not a multiple of `world_size`.
    """

    def __init__(
        self, examples: Seq2SeqExamples, batch: int, seed: int, rank: int = 0, world_size: int = 1, accumulate: int = 1
    ):
        self.examples, self.batch, self.seed, self.rank, self.world_size = examples, batch, seed, rank, world_size
        self.step_batch = batch * accumulate
        self.taken = 0  # examples of global batches returned so far: the complete state
        self._orders: dict[int, Ints] = {}
        _check_share(batch, rank, world_size)
        if len(examples) < self.step_batch:
            raise DataError(
                f"too few examples: {len(examples):,}, and a batch has {self.step_batch:,}: lower batch to at most "
                f"{max(1, len(examples) // accumulate // world_size * world_size):,}, or give more examples"
            )

    def steps_for(self, tokens: int) -> int:
        """Return how many steps from the start have this many targets, rounded up."""
        each = target_counts(self.examples)
        epochs, rest = divmod(max(1, tokens) - 1, int(each.sum()))
        last = int(np.searchsorted(each[self._order(epochs)].cumsum(), rest, side="right"))
        return (epochs * len(self.examples) + last) // self.step_batch + 1

    @property
    def epochs(self) -> float:
        """The number of passes over the examples so far."""
        return self.taken / len(self.examples)

    @property
    def epoch(self) -> int:
        """The epoch of the next example, from 0."""
        return self.taken // len(self.examples)

    def next(self) -> Seq2SeqBatch:
        slots = np.arange(self.taken + self.rank, self.taken + self.batch, self.world_size)
        self.taken += self.batch
        epochs, offsets = np.divmod(slots, len(self.examples))
        indices = [self._order(epoch)[offsets[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
        return make_batch(self.examples, np.concatenate(indices))

    def state(self) -> dict[str, Any]:
        """Return the position of the loader as JSON values."""
        return {"pairs": self.taken} | self._identity()

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken; `world_size` may differ.

        Raises DataError when batch, seed or examples differ, which changes the remaining batches.
        """
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise DataError(
                    f"the saved data position has {key} {state.get(key)!r}, got {value!r}: use the saved value"
                )
        self.taken = read_taken(state, "pairs")

    def _identity(self) -> dict[str, Any]:
        return {"batch": self.step_batch, "seed": self.seed, "fingerprint": self.examples.fingerprint}

    def _order(self, epoch: int) -> Ints:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = _epoch_order(self.examples, self.step_batch, self.seed, epoch)
        return self._orders[epoch]


def _epoch_order(examples: Seq2SeqExamples, batch: int, seed: int, epoch: int) -> Ints:
    """Return all examples in the order of an epoch: | rest of a batch | complete batches | start of a batch |."""
    order = permutation(len(examples), seed, epoch, 0)
    head = -epoch * len(examples) % batch  # completes the batch that the last epoch started
    n_batches = (len(examples) - head) // batch
    body = order[head : head + n_batches * batch]
    size = max(1, min(POOL, n_batches // 4)) * batch
    pools = [_sort_by_length(examples, pool, batch) for pool in np.split(body, range(size, len(body), size))]
    batches = np.concatenate(pools).reshape(n_batches, batch)[permutation(n_batches, seed, epoch, 1)]
    return np.concatenate([order[:head], batches.ravel(), order[head + n_batches * batch :]])


def _sort_by_length(examples: Seq2SeqExamples, pool: Ints, batch: int) -> Ints:
    """Sort a pool by source length, then each slab of batches by target length."""
    source, target = examples.source.lengths, examples.target.lengths
    pool = pool[np.argsort(source[pool], kind="stable")]
    slab = max(1, math.isqrt(len(pool) // batch)) * batch
    slabs = np.split(pool, range(slab, len(pool), slab))
    return np.concatenate([part[np.lexsort((source[part], target[part]))] for part in slabs])


def target_counts(examples: Seq2SeqExamples) -> Ints:
    """Return the number of targets of each example: its tokens and the end token."""
    return examples.target.lengths.astype(np.int64) + 1


def seq2seq_eval_batches(
    examples: Seq2SeqExamples, batch: int, *, rank: int = 0, world_size: int = 1
) -> Iterator[Seq2SeqBatch]:
    """Yield batches with each example once, from the shortest source to the longest; the last may be smaller.

    With several processes the last batch is filled with examples that count nothing (index -1), so that each process
    has the same number of batches. Raises DataError when `batch` is not a multiple of `world_size`.
    """
    _check_share(batch, rank, world_size)
    order = np.lexsort((examples.target.lengths, examples.source.lengths))
    for at in range(0, len(order), batch):
        indices = order[at : at + batch]
        if world_size > 1:
            indices = np.append(indices, np.full(batch - len(indices), -1))
        yield make_batch(examples, indices[rank::world_size])


def make_batch(examples: Seq2SeqExamples, indices: Ints) -> Seq2SeqBatch:
    """Return the examples of these indices as one batch; -1 becomes an example that counts nothing."""
    rows, counted = np.maximum(indices, 0), indices[:, None] >= 0
    source, lengths = _padded(examples.source, rows)
    target, ends = _padded(examples.target, rows)  # [B, T - 1]
    inputs = np.insert(target, 0, examples.bos_id, axis=1)  # [B, T]
    targets = np.insert(target, target.shape[1], PAD, axis=1)  # [B, T]
    column = np.arange(targets.shape[1])
    targets = np.where(column < ends[:, None], targets, np.where(column == ends[:, None], examples.eos_id, IGNORE))
    targets = np.where(counted, targets, IGNORE)
    parts = (source, lengths, inputs, targets, indices)
    return Seq2SeqBatch(*(torch.from_numpy(part) for part in parts), tokens=int((targets != IGNORE).sum()))


def _padded(side: TokenSequences, indices: Ints) -> tuple[Ints, Ints]:
    """Return the sequences of these indices padded with PAD [B, S], and their lengths [B]."""
    lengths = side.lengths[indices].astype(np.int64)
    column = np.arange(int(lengths.max()))
    offsets = side.starts[indices][:, None] + np.minimum(column, lengths[:, None] - 1)
    return np.where(column < lengths[:, None], side.tokens[offsets].astype(np.int64), PAD), lengths


def _check_share(batch: int, rank: int, world_size: int) -> None:
    if batch < 1 or not 0 <= rank < world_size or batch % world_size:
        raise DataError(
            f"a batch of {batch} examples cannot be divided among {world_size} processes (this is rank {rank}): "
            "the batch size must be a multiple of the number of processes"
        )
