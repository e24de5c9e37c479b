"""Rows that are written from a source, one token a pass: what greedy and beam search need to know of a model.

    sources -> read_sources -> Writing --- advance(ids [R]) --> logits [R, V]: one token more in every row
                                       --- select(rows) ------> these rows, in this order, some of them several times

What is kept between passes is the model's own business: a Transformer's keys and values, a recurrent model's states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.cache.dense import DenseCache
from glassformer.nn.attend import Attend, attend_sdpa
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.packed import packed
from glassformer.nn.recurrent import RecurrentEncoderDecoder
from glassformer.nn.step import Step

UNENDING = 512  # tokens a recurrent model writes at most where nobody says: it has no context to fill
PairModel = EncoderDecoder | RecurrentEncoderDecoder


@runtime_checkable
class Writing(Protocol):
    """Rows that are being written: at first one for each source, of which nothing is written yet."""

    def advance(self, ids: Sequence[int]) -> Float[Tensor, "R V"]:
        """Read each row's newest token; the scores of every possible next one."""
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order; a row may be named several times."""
        ...


class CachedWriting:
    """A Transformer's rows. Each source is read once, each token once: keys and values stay in the cache."""

    def __init__(
        self,
        model: EncoderDecoder,
        sources: Sequence[Sequence[int]],
        most: int,
        attend: Attend = attend_sdpa,
    ):
        """most: tokens that a row may take in. CapacityError where it, or a source, is longer than the context."""
        model = packed(model, rows=len(sources))
        self.model, self.attend, self.device = model, attend, model.embed.weight.device
        ids, lengths = padded(sources, self.device)
        source = model.encode(ids, Step.of(ids, lengths, attend=attend))
        self.cache = DenseCache.of(model.config, len(sources), most, self.device, source)

    def advance(self, ids: Sequence[int]) -> Float[Tensor, "R V"]:
        step = Step(self.cache.extend([1] * len(ids)), cache=self.cache, attend=self.attend)
        hidden = self.model.hidden(torch.tensor(ids, device=self.device)[:, None], step)  # [R, 1, D]
        return self.model.logits(hidden[:, 0], step)

    def select(self, rows: Sequence[int]) -> None:
        self.cache.select(rows)


class RecurrentWriting:
    """A recurrent model's rows: all that they are is in their states."""

    def __init__(self, model: RecurrentEncoderDecoder, sources: Sequence[Sequence[int]]):
        self.model, self.device = model, model.head_weight.device
        ids, lengths = padded(sources, self.device)
        self.state = model.encode(ids, torch.tensor(lengths))

    def advance(self, ids: Sequence[int]) -> Float[Tensor, "R V"]:
        hidden, self.state = self.model.decode(torch.tensor(ids, device=self.device)[:, None], self.state)
        return self.model.logits(hidden[:, 0])

    def select(self, rows: Sequence[int]) -> None:
        self.state = self.state.select(rows)


class Paced:
    """Rows whose writer is asked before each pass."""

    def __init__(self, rows: Writing, before_pass: Callable[[], None]):
        self.rows, self.before_pass = rows, before_pass

    def advance(self, ids: Sequence[int]) -> Float[Tensor, "R V"]:
        self.before_pass()
        return self.rows.advance(ids)

    def select(self, rows: Sequence[int]) -> None:
        self.rows.select(rows)


def read_sources(
    model: PairModel, sources: Sequence[Sequence[int]], most: int, attend: Attend = attend_sdpa
) -> Writing:
    """Read the sources, each of at least one token id. CapacityError where they, or `most` tokens, do not fit."""
    if isinstance(model, RecurrentEncoderDecoder):
        return RecurrentWriting(model, sources)
    return CachedWriting(model, sources, most, attend)


def longest_target(model: PairModel) -> int:
    """The most tokens that a model can write, the one that ends them included."""
    return UNENDING if isinstance(model, RecurrentEncoderDecoder) else model.config.context_length


def longest_source(model: PairModel) -> int | None:
    """The most tokens that a model can read; None where it has no limit."""
    if isinstance(model, RecurrentEncoderDecoder):
        return None
    return model.encoder.config.context_length


def vocab_sizes(model: PairModel) -> tuple[int, int]:
    """Of the source, and of the target."""
    if isinstance(model, RecurrentEncoderDecoder):
        return model.config.source_vocab_size, model.config.target_vocab_size
    return model.encoder.config.vocab_size, model.config.vocab_size


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, list[int]]:
    """Rows of different lengths as one tensor [B, S], padded at the right, and their lengths."""
    lengths = [len(row) for row in rows]
    width = max(lengths)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device), lengths
