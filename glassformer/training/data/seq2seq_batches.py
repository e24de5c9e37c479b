"""Batches of pairs to train and evaluate on: pairs of like length together, so that little of a batch is padding.

    source   t h e . 3 r d . o f . M a y        inputs   BOS  2  0  0  5          targets   2  0  0  5 EOS
             M a y . 3 r d  -  -  -  -  -                BOS  1  9  8  4                    1  9  8  4 EOS

An epoch is all pairs once, in an order of its own: shuffled; cut into pools of up to POOL batches; a pool is sorted by
its sources' lengths and cut into slabs, each slab is sorted by its targets' lengths and cut into batches; and the
batches are shuffled. Epochs follow each other without a gap: where their border falls into a batch, that batch has the
last pairs of one and the first of the next, and nothing is left out. All of it is a function of (seed, epoch) and the
pairs alone, not of NumPy's version.
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
from glassformer.training.data.packing import IGNORE, permutation
from glassformer.training.data.seq2seq_examples import Seq2SeqExamples, TokenSequences

POOL = 64  # batches that are sorted together, and at most a quarter of all: so that pairs meet others every epoch
PAD = 0  # any id would do: `source_lengths` and IGNORE say what is padding
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Seq2SeqBatch:
    """B pairs; S tokens of the longest source, T of the longest target with the token that begins (or ends) it.

    source: what the encoder reads, PAD from `source_lengths` on. inputs: what the decoder reads, from bos_id on.
    targets: what it is to write, to eos_id, then IGNORE.
    numbers: which pair each is, -1 for one that only fills up a batch and counts nothing.
    tokens: how many targets are counted.
    """

    source: Int64[Tensor, "B S"]
    source_lengths: Int64[Tensor, "B"]
    inputs: Int64[Tensor, "B T"]
    targets: Int64[Tensor, "B T"]
    indices: Int64[Tensor, "B"]
    tokens: int

    @property
    def padding(self) -> float:
        """The share, from 0 to 1, of the places in `source` and `targets` that hold no token."""
        places = self.source.numel() + self.targets.numel()
        return 1 - (int(self.source_lengths.sum()) + int((self.targets != IGNORE).sum())) / places

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Seq2SeqBatch:
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


class Seq2SeqLoader:
    """Training batches, without end: `next()` gives this rank's share of the next global batch.

    batch: pairs of the global batch; rank r takes pairs r, r + world, ... of it, so that the global batches are the
    same for every `world`. accumulate: that many of them in a row are one batch, in parts: they hold what one of
    `accumulate * batch` pairs holds.

    Raises DataError when there are fewer pairs than a batch has, or when `batch` does not divide by `world`.
    """

    def __init__(
        self, examples: Seq2SeqExamples, batch: int, seed: int, rank: int = 0, world_size: int = 1, accumulate: int = 1
    ):
        self.examples, self.batch, self.seed, self.rank, self.world_size = examples, batch, seed, rank, world_size
        self.step_batch = batch * accumulate
        self.taken = 0  # pairs of global batches given out so far: the whole state
        self._orders: dict[int, Ints] = {}
        _check_share(batch, rank, world_size)
        if len(examples) < self.step_batch:
            raise DataError(
                f"too few examples: {len(examples):,}, and a batch has {self.step_batch:,}: lower batch to at most "
                f"{max(1, len(examples) // accumulate // world_size * world_size):,}, or give more examples"
            )

    def steps_for(self, tokens: int) -> int:
        """How many steps from the beginning (global batches, `accumulate` in each) have so many targets, rounded up."""
        each = target_counts(self.examples)
        epochs, rest = divmod(max(1, tokens) - 1, int(each.sum()))
        last = int(np.searchsorted(each[self._order(epochs)].cumsum(), rest, side="right"))
        return (epochs * len(self.examples) + last) // self.step_batch + 1

    @property
    def epochs(self) -> float:
        """How many times the pairs were gone through so far."""
        return self.taken / len(self.examples)

    @property
    def epoch(self) -> int:
        """The epoch that the next pair belongs to, from 0."""
        return self.taken // len(self.examples)

    def next(self) -> Seq2SeqBatch:
        slots = np.arange(self.taken + self.rank, self.taken + self.batch, self.world_size)
        self.taken += self.batch
        epochs, places = np.divmod(slots, len(self.examples))
        numbers = [self._order(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
        return make_batch(self.examples, np.concatenate(numbers))

    def state(self) -> dict[str, Any]:
        """Where the loader stands, as JSON."""
        return {"pairs": self.taken} | self._identity()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken; `world` may have changed since.

        Raises DataError when batch, seed or pairs are others: the batches would not be those that were left.
        """
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise DataError(f"the data position was saved with {key} {state.get(key)!r}, now it is {value!r}")
        self.taken = int(state["pairs"])

    def _identity(self) -> dict[str, Any]:
        return {"batch": self.step_batch, "seed": self.seed, "fingerprint": self.examples.fingerprint}

    def _order(self, epoch: int) -> Ints:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = _epoch_order(self.examples, self.step_batch, self.seed, epoch)
        return self._orders[epoch]


def _epoch_order(pairs: Seq2SeqExamples, batch: int, seed: int, epoch: int) -> Ints:
    """All pairs in the order in which they are given out: | the rest of a batch | whole batches | a begun batch |."""
    order = permutation(len(pairs), seed, epoch, 0)
    head = -epoch * len(pairs) % batch  # what fills up the last epoch's begun batch
    whole = (len(pairs) - head) // batch
    body = order[head : head + whole * batch]
    size = max(1, min(POOL, whole // 4)) * batch
    pools = [_alike(pairs, pool, batch) for pool in np.split(body, range(size, len(body), size))]
    batches = np.concatenate(pools).reshape(whole, batch)[permutation(whole, seed, epoch, 1)]
    return np.concatenate([order[:head], batches.ravel(), order[head + whole * batch :]])


def _alike(pairs: Seq2SeqExamples, pool: Ints, batch: int) -> Ints:
    """The same pairs, those alike in both lengths together: sorted by sources, then in slabs of batches by targets."""
    source, target = pairs.source.lengths, pairs.target.lengths
    pool = pool[np.argsort(source[pool], kind="stable")]
    slab = max(1, math.isqrt(len(pool) // batch)) * batch
    slabs = np.split(pool, range(slab, len(pool), slab))
    return np.concatenate([part[np.lexsort((source[part], target[part]))] for part in slabs])


def target_counts(pairs: Seq2SeqExamples) -> Ints:
    """How many targets each pair has: its tokens, and the one that ends them."""
    return pairs.target.lengths.astype(np.int64) + 1


def seq2seq_eval_batches(
    examples: Seq2SeqExamples, batch: int, *, rank: int = 0, world_size: int = 1
) -> Iterator[Seq2SeqBatch]:
    """Batches that hold each pair once, from the shortest source to the longest; the last one may be smaller.

    With more than one process the last batch is filled up with pairs that count nothing (number -1), so that each
    process has as many batches. Raises DataError when `batch` does not divide by `world`.
    """
    _check_share(batch, rank, world_size)
    order = np.lexsort((examples.target.lengths, examples.source.lengths))
    for at in range(0, len(order), batch):
        numbers = order[at : at + batch]
        if world_size > 1:
            numbers = np.append(numbers, np.full(batch - len(numbers), -1))
        yield make_batch(examples, numbers[rank::world_size])


def make_batch(pairs: Seq2SeqExamples, numbers: Ints) -> Seq2SeqBatch:
    """The pairs of these numbers as one batch; -1 becomes a pair that counts nothing."""
    rows, counted = np.maximum(numbers, 0), numbers[:, None] >= 0
    source, lengths = _padded(pairs.source, rows)
    target, ends = _padded(pairs.target, rows)  # [B, T - 1]
    inputs = np.insert(target, 0, pairs.bos_id, axis=1)  # [B, T]
    targets = np.insert(target, target.shape[1], PAD, axis=1)  # [B, T]
    column = np.arange(targets.shape[1])
    targets = np.where(column < ends[:, None], targets, np.where(column == ends[:, None], pairs.eos_id, IGNORE))
    targets = np.where(counted, targets, IGNORE)
    parts = (source, lengths, inputs, targets, numbers)
    return Seq2SeqBatch(*(torch.from_numpy(part) for part in parts), tokens=int((targets != IGNORE).sum()))


def _padded(side: TokenSequences, rows: Ints) -> tuple[Ints, Ints]:
    """The texts of these rows side by side, PAD behind the shorter ones [B, S], and their lengths [B]."""
    lengths = side.lengths[rows].astype(np.int64)
    column = np.arange(int(lengths.max()))
    places = side.starts[rows][:, None] + np.minimum(column, lengths[:, None] - 1)
    return np.where(column < lengths[:, None], side.tokens[places].astype(np.int64), PAD), lengths


def _check_share(batch: int, rank: int, world_size: int) -> None:
    if batch < 1 or not 0 <= rank < world_size or batch % world_size:
        raise DataError(
            f"a batch of {batch} examples cannot be divided among {world_size} processes (this is rank {rank}): "
            "the batch size must be a multiple of the number of processes"
        )
