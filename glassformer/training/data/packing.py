"""Rows of tokens to train and evaluate on, packed from documents without padding.

    stream      | Once  upon  a  day  .  END | Anna  ran  .  END | The  ball  is ...
    row 0         Once  upon  a  day  .  END   Anna  ran                  context 8
    targets       upon  a    day  .  END  --   ran   .
    positions     0     1    2    3  4    5    0     1
    documents     0     0    0    0  0    0    1     1

Each token is an input once an epoch. Its target is the next token of its own document, also where that lies in the next
row; the last token of a document has none (IGNORE): nobody learns to guess an unrelated document's first word. What is
cut by a row's end goes on in another row as a document of its own, its positions from 0 again.

An epoch's stream is all documents in a new order, begun at a new offset below `context`, so that rows are cut elsewhere
each time; and the rows themselves are taken in a new order. Streams follow each other without a gap: no token is left
out at an epoch's end. All of it is a function of (seed, epoch) and the corpus alone, not of NumPy's version.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glassformer.errors import DataError
from glassformer.training.data.shards import DocumentIndex, Shards

IGNORE = -100  # a target that is not counted
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PackedBatch:
    """A batch of rows. B rows, T tokens each.

    ids, targets, positions: [B, T] int64; targets are IGNORE where nothing is to be predicted.
    documents: [B, T] int64, which document of its row a token belongs to, from 0; None when each row is of one document
        alone: then plain causal attention is exact.
    tokens: how many targets are counted.
    bytes: UTF-8 bytes of the text behind them: a document's bytes are spread evenly over its tokens, and tokens that
        begin or end it stand for none. Bits per byte = sum of nll (nats) / ln 2 / sum of bytes.
    """

    ids: Tensor
    targets: Tensor
    positions: Tensor
    documents: Tensor | None
    tokens: int
    bytes: float

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=non_blocking)

        documents = None if self.documents is None else move(self.documents)
        return replace(
            self, ids=move(self.ids), targets=move(self.targets), positions=move(self.positions), documents=documents
        )


class PackedLoader:
    """Training rows, without end: `next()` gives this rank's share of the next global batch.

    context: tokens in a row. batch: rows of the global batch; rank r takes rows r, r + world, ... of it, so that the
    global batches are the same for every `world`.
    shuffle: None as the shards were prepared; False: the first epoch keeps the given order (a curriculum), and later
    epochs are shuffled.

    Raises DataError when the corpus is too small for one batch, or when `batch` does not divide by `world`.
    """

    def __init__(
        self,
        shards: Shards | DocumentIndex,
        context: int,
        batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool | None = None,
    ):
        self.documents = shards.train if isinstance(shards, Shards) else shards
        self.context, self.batch, self.seed, self.rank, self.world_size = context, batch, seed, rank, world_size
        self.shuffle = not self.documents.ordered if shuffle is None else shuffle
        self.n_tokens = self.documents.n_tokens
        self.taken = 0  # rows of global batches given out so far: the whole state
        self._layouts: dict[int, _Layout] = {}
        self._orders: dict[int, Ints] = {}
        if context < 1 or batch < 1 or not 0 <= rank < world_size or batch % world_size:
            raise DataError(
                f"a batch of {batch} sequences of {context} tokens cannot be divided among {world_size} processes "
                f"(this is rank {rank}): the batch size must be a multiple of the number of processes"
            )
        if self.n_tokens < batch * context:
            hint = f"lower context to at most {max(1, self.n_tokens // batch)}"
            if self.n_tokens >= context * world_size:
                hint = f"lower batch to at most {self.n_tokens // context // world_size * world_size}, or " + hint
            raise DataError(
                f"the training text is too small: it has {self.n_tokens:,} tokens, one batch of {batch} rows of "
                f"{context} tokens needs {batch * context:,}: {hint}, or give more text"
            )

    @property
    def epochs(self) -> float:
        """How many times the corpus was gone through so far."""
        return self.taken * self.context / self.n_tokens

    @property
    def epoch(self) -> int:
        """The epoch that the next row belongs to, from 0."""
        return self.taken * self.context // self.n_tokens

    def next(self) -> PackedBatch:
        slots = np.arange(self.taken + self.rank, self.taken + self.batch, self.world_size)
        starts = self._rows(slots) * self.context
        self.taken += self.batch
        return _cut(self.documents, starts, self.context, self._layout, self.n_tokens)

    def state(self) -> dict[str, Any]:
        """Where the loader stands, as JSON."""
        return {"rows": self.taken} | self._identity()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken; `batch` and `world` may have changed since.

        Raises DataError when context, seed, order or corpus are others: the rows would not be those that were left.
        """
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise DataError(f"the data position was saved with {key} {state.get(key)!r}, now it is {value!r}")
        self.taken = int(state["rows"])

    def _identity(self) -> dict[str, Any]:
        return {"context": self.context, "seed": self.seed, "shuffle": self.shuffle, "tokens": self.n_tokens,
                "fingerprint": self.documents.fingerprint}  # fmt: skip

    def _rows(self, slots: Ints) -> Ints:
        """Which row of the endless stream each slot takes: within an epoch, in a shuffled order."""
        epochs, result = slots * self.context // self.n_tokens, np.empty_like(slots)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            if not self.shuffle and epoch == 0:
                result[here] = slots[here]
                continue
            first = -(-epoch * self.n_tokens // self.context)  # the first row that begins in this epoch
            last = -(-(epoch + 1) * self.n_tokens // self.context)
            if epoch not in self._orders:
                self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
                self._orders[epoch] = permutation(last - first, self.seed, epoch, 1)
            result[here] = first + self._orders[epoch][slots[here] - first]
        return result

    def _layout(self, epoch: int) -> _Layout:
        if epoch not in self._layouts:
            self._layouts = {e: layout for e, layout in self._layouts.items() if e >= epoch - 1}
            documents, offset = np.arange(self.documents.n_documents), 0
            if self.shuffle or epoch:
                documents = permutation(self.documents.n_documents, self.seed, epoch, 0)
                offset = _hash(self.seed, epoch, 2) % self.context
            self._layouts[epoch] = _Layout.of(self.documents, documents, offset)
        return self._layouts[epoch]


def packed_eval_batches(
    documents: DocumentIndex,
    context: int,
    batch: int,
    max_tokens: int | None = None,
    *,
    overlap: int = 0,
    fill: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[PackedBatch]:
    """Rows that count each target of the view once, in a fixed order: all but the first token of each document.

    Documents are packed as in training. A row begins `overlap` tokens before the last one ended, and counts what the
    last one did not: with 0 (the default, as in training) a token just after a row's border is predicted from that
    row alone; with context // 2 each has at least half a context before it, or its whole document, at twice the cost.
    max_tokens: use only the first so many tokens of the view.
    fill: fill up the last batch with rows that count nothing, so that all batches have one shape (always so when world
    is more than 1; rank r takes rows r, r + world, ...). A view shorter than `context` gives one shorter row.

    Raises DataError when there is nothing to predict, or for an overlap that is not below context.
    """
    if not 0 <= overlap < context or batch % world_size:
        raise DataError(
            f"overlap {overlap} must be from 0 to {context - 1}, and batch {batch} a multiple of {world_size}"
        )
    layout = _Layout.of(documents, np.arange(documents.n_documents), 0)
    everything = documents.n_tokens
    total = everything if max_tokens is None else min(everything, max_tokens)
    if not (documents.lengths > 1).any() or total < 1:
        raise DataError(f"there is nothing to evaluate on: {documents.n_documents} documents with {total} tokens")
    length, stride = min(context, total), context - overlap
    begins = np.arange(0, max(1, total - overlap), stride, dtype=np.int64)
    counted = begins + np.where(begins > 0, overlap, 0)  # the first token that a row counts
    begins = np.minimum(begins, total - length)  # the last row reaches back instead of being shorter
    for at in range(0, len(begins), batch):
        starts, first = begins[at : at + batch], counted[at : at + batch]
        if (fill or world_size > 1) and len(starts) < batch:
            missing = batch - len(starts)
            starts = np.append(starts, np.full(missing, starts[-1]))
            first = np.append(first, np.full(missing, total))
        here = slice(rank, None, world_size)
        yield _cut(documents, starts[here], length, lambda _: layout, everything, first[here])


class _Layout(NamedTuple):
    """One epoch's stream: documents in some order, rotated by `offset` tokens."""

    documents: Ints
    begins: Ints  # where each begins, before the rotation
    offset: int

    @classmethod
    def of(cls, view: DocumentIndex, documents: Ints, offset: int) -> _Layout:
        lengths = view.lengths[documents]
        return cls(documents, np.cumsum(lengths) - lengths, offset)


def _cut(
    view: DocumentIndex, starts: Ints, length: int, layout: Any, total: int, counted: Ints | None = None
) -> PackedBatch:
    """The rows of `length` tokens that begin at `starts` of the stream in which `layout(epoch)` follows on
    `layout(epoch - 1)`, each of `total` tokens. `counted`: of each row only targets of tokens from there on count."""
    place = starts[:, None] + np.arange(length)  # [B, T] in the endless stream
    epoch, place_in_epoch = np.divmod(place, total)
    document, inside = np.empty_like(place), np.empty_like(place)  # of each token: its document, its place in it
    for number in range(int(epoch.min()), int(epoch.max()) + 1):
        here = epoch == number
        if here.any():
            order, begins, offset = layout(number)
            at = (place_in_epoch[here] + offset) % total
            slot = np.searchsorted(begins, at, side="right") - 1
            document[here], inside[here] = order[slot], at - begins[slot]

    source, left = view.starts[document] + inside, view.lengths[document] - inside - 1  # tokens after this one
    ids, has_next = view.tokens[source], left > 0
    if counted is not None:
        has_next &= place >= counted[:, None]
    targets = np.where(has_next, view.tokens[source + (left > 0)], IGNORE)

    column = np.arange(length)
    border = (inside == 0) | (place_in_epoch == 0)
    border[:, 0] = True
    positions = column - np.maximum.accumulate(np.where(border, column, 0), axis=1)
    documents = np.cumsum(border, axis=1) - 1 if border[:, 1:].any() else None

    is_text = has_next & (left > 1) if view.ends else has_next
    per_token = view.byte_counts[document] / np.maximum(view.lengths[document] - view.begins - view.ends, 1)
    return PackedBatch(
        torch.from_numpy(ids),
        torch.from_numpy(targets),
        torch.from_numpy(positions),
        None if documents is None else torch.from_numpy(documents),
        int(has_next.sum()),
        float((per_token * is_text).sum()),
    )


def permutation(n: int, *key: int) -> Ints:
    """An order of n things, a function of the key alone: they are sorted by a hash of (number, key)."""
    numbers = _mix(np.arange(n, dtype=np.uint64))
    return np.argsort(_mix(numbers ^ np.uint64(_hash(*key))), kind="stable")


def _hash(*key: int) -> int:
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mix(state ^ np.uint64(part % 2**64))
    return int(state[0])


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's step (Steele, Lea and Flood 2014): a one-to-one map of 64-bit numbers that looks random."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
