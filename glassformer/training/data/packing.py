"""Sequences of tokens for training and evaluation, packed from documents without padding.

    stream      | Once  upon  a  day  .  END | Anna  ran  .  END | The  ball  is ...
    sequence 0    Once  upon  a  day  .  END   Anna  ran                  context 8
    targets       upon  a    day  .  END  --   ran   .
    positions     0     1    2    3  4    5    0     1
    documents     0     0    0    0  0    0    1     1

Each token is an input once per epoch. Its target is the next token of its document, also where that is in the next
sequence. The last token of a document has no target (IGNORE), so that the model does not learn to predict the first
word of an unrelated document. A document that exceeds a sequence continues in the next one as a new document, whose
positions start at 0.

The stream of an epoch is all documents in a new order, starting at a new offset below `context`, so that sequences have
other boundaries in each epoch; the sequences are also shuffled. Streams follow each other without a gap: no token is
dropped at the end of an epoch. All of this is a function of (seed, epoch) and the corpus, not of NumPy's version.
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

IGNORE = -100  # a target that the loss does not count
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PackedBatch:
    """A batch of B packed sequences of T tokens.

    ids, targets, positions: [B, T] int64; a target is IGNORE where there is none.
    documents: [B, T] int64, the index of each token's document in its sequence, from 0; None when every sequence is
        part of one document, where plain causal attention is exact.
    tokens: the number of counted targets.
    bytes: UTF-8 bytes of the counted targets. A document's bytes are spread evenly over its tokens; tokens that start
        or end a document have none. Bits per byte = sum of nll (nats) / ln 2 / sum of bytes.
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
    """An endless stream of training batches: `next()` returns this rank's share of the next global batch.

    Args:
        context: tokens per sequence.
        batch: sequences of the global batch. Rank r takes sequences r, r + world_size, ..., so that the global batches
            are the same for every number of processes.
        shuffle: None uses the setting of the shards. False keeps the order of the documents in the first epoch (a
            curriculum) and shuffles later epochs.

    Raises:
        DataError: the corpus is too small for one batch, or `batch` is not a multiple of `world_size`.
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
        self.taken = 0  # sequences of global batches returned so far: the complete state
        self._layouts: dict[int, _Layout] = {}
        self._orders: dict[int, Ints] = {}
        if context < 1 or batch < 1 or not 0 <= rank < world_size or batch % world_size:
            raise DataError(
                f"a batch of {batch} sequences of {context} tokens cannot be divided among {world_size} processes "
                f"(this is rank {rank}): the batch size must be a multiple of the number of processes"
            )
        if self.n_tokens < batch * context:
            hints = ["give more text"]
            if self.n_tokens >= batch:
                hints.insert(0, f"lower context to at most {self.n_tokens // batch}")
            if self.n_tokens >= context * world_size:
                hints.insert(0, f"lower batch to at most {self.n_tokens // context // world_size * world_size}")
            raise DataError(
                f"the training text is too small: it has {self.n_tokens:,} tokens, and one batch of {batch} sequences "
                f"of {context} tokens needs {batch * context:,}: {', or '.join(hints)}"
            )

    @property
    def epochs(self) -> float:
        """The number of passes over the corpus so far."""
        return self.taken * self.context / self.n_tokens

    @property
    def epoch(self) -> int:
        """The epoch of the next sequence, from 0."""
        return self.taken * self.context // self.n_tokens

    def next(self) -> PackedBatch:
        slots = np.arange(self.taken + self.rank, self.taken + self.batch, self.world_size)
        starts = self._sequences(slots) * self.context
        self.taken += self.batch
        return _pack(self.documents, starts, self.context, self._layout, self.n_tokens)

    def state(self) -> dict[str, Any]:
        """Return the position of the loader as JSON values."""
        return {"rows": self.taken} | self._identity()

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken; `batch` and `world_size` may differ.

        Raises DataError when context, seed, shuffling or corpus differ, which changes the remaining sequences.
        """
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise DataError(
                    f"the saved data position has {key} {state.get(key)!r}, got {value!r}: use the saved value"
                )
        self.taken = read_taken(state, "rows")

    def _identity(self) -> dict[str, Any]:
        return {"context": self.context, "seed": self.seed, "shuffle": self.shuffle, "tokens": self.n_tokens,
                "fingerprint": self.documents.fingerprint}  # fmt: skip

    def _sequences(self, slots: Ints) -> Ints:
        """Return which sequence of the endless stream each slot takes: within an epoch, in a shuffled order."""
        epochs, result = slots * self.context // self.n_tokens, np.empty_like(slots)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            if not self.shuffle and epoch == 0:
                result[here] = slots[here]
                continue
            first = -(-epoch * self.n_tokens // self.context)  # the first sequence that starts in this epoch
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
    """Yield batches that count each target once, in a fixed order: all tokens except the first of each document.

    Documents are packed as in training. Documents with fewer than `context` tokens in all give one shorter sequence.

    Args:
        max_tokens: use only this many tokens from the start.
        overlap: tokens that a sequence shares with the end of the one before and does not count again. With 0, as in
            training, the first token of a sequence has no context; with context // 2 each token has at least half a
            context before it, or its complete document, at twice the cost.
        fill: fill the last batch with sequences that count nothing, so that all batches have one shape. Always done
            with several processes; rank r takes sequences r, r + world_size, ....

    Raises:
        DataError: there is nothing to predict, or `overlap` is not below `context`.
    """
    if not 0 <= overlap < context or batch % world_size:
        raise DataError(
            f"overlap must be from 0 to {context - 1}, got {overlap}, and batch a multiple of {world_size}, got {batch}"
        )
    layout = _Layout.of(documents, np.arange(documents.n_documents), 0)
    everything = documents.n_tokens
    total = everything if max_tokens is None else min(everything, max_tokens)
    if not (documents.lengths > 1).any() or total < 1:
        raise DataError(f"there is nothing to evaluate on: {documents.n_documents} documents with {total} tokens")
    length, stride = min(context, total), context - overlap
    begins = np.arange(0, max(1, total - overlap), stride, dtype=np.int64)
    counted = begins + np.where(begins > 0, overlap, 0)  # the first token that a sequence counts
    begins = np.minimum(begins, total - length)  # the last sequence starts earlier instead of being shorter
    for at in range(0, len(begins), batch):
        starts, first = begins[at : at + batch], counted[at : at + batch]
        if (fill or world_size > 1) and len(starts) < batch:
            missing = batch - len(starts)
            starts = np.append(starts, np.full(missing, starts[-1]))
            first = np.append(first, np.full(missing, total))
        here = slice(rank, None, world_size)
        yield _pack(documents, starts[here], length, lambda _: layout, everything, first[here])


class _Layout(NamedTuple):
    """The stream of one epoch: documents in an order, rotated by `offset` tokens."""

    documents: Ints
    begins: Ints  # offset of each document, before the rotation
    offset: int

    @classmethod
    def of(cls, view: DocumentIndex, documents: Ints, offset: int) -> _Layout:
        lengths = view.lengths[documents]
        return cls(documents, np.cumsum(lengths) - lengths, offset)


def _pack(
    view: DocumentIndex, starts: Ints, length: int, layout: Any, total: int, counted: Ints | None = None
) -> PackedBatch:
    """Return the sequences of `length` tokens that start at `starts` in the endless stream.

    Args:
        layout: returns the `_Layout` of an epoch; every epoch has `total` tokens.
        counted: position in the stream from which the targets of each sequence count.
    """
    position = starts[:, None] + np.arange(length)  # [B, T] in the endless stream
    epoch, in_epoch = np.divmod(position, total)
    document, inside = np.empty_like(position), np.empty_like(position)  # of each token: document, position in it
    for number in range(int(epoch.min()), int(epoch.max()) + 1):
        here = epoch == number
        if here.any():
            order, begins, offset = layout(number)
            at = (in_epoch[here] + offset) % total
            slot = np.searchsorted(begins, at, side="right") - 1
            document[here], inside[here] = order[slot], at - begins[slot]

    source, left = view.starts[document] + inside, view.lengths[document] - inside - 1  # tokens after this one
    ids, has_next = view.tokens[source], left > 0
    if counted is not None:
        has_next &= position >= counted[:, None]
    targets = np.where(has_next, view.tokens[source + (left > 0)], IGNORE)

    column = np.arange(length)
    border = (inside == 0) | (in_epoch == 0)
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


def read_taken(state: dict[str, Any], key: str) -> int:
    """Return how many sequences or examples a saved data position has taken. Raises DataError for any other value."""
    taken = state.get(key)
    if type(taken) is not int or not 0 <= taken < 1 << 60:
        raise DataError(f"the saved data position has {key} {taken!r}: it must be a whole number from 0")
    return taken


def permutation(n: int, *key: int) -> Ints:
    """Return a permutation of n indices, sorted by a hash of (index, key), as a function of the key alone."""
    numbers = _mix(np.arange(n, dtype=np.uint64))
    return np.argsort(_mix(numbers ^ np.uint64(_hash(*key))), kind="stable")


def _hash(*key: int) -> int:
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mix(state ^ np.uint64(part % 2**64))
    return int(state[0])


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of 64-bit integers, one to one: SplitMix64 (Steele, Lea and Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
