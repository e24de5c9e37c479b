"""Rows that are written from a source, one token a pass: what greedy and beam search need to know of a model.

    sources -> read_sources -> Writing --- advance(ids [R]) --> logits [R, V]: one token more in every row
                                       --- select(rows) ------> these rows, in this order, some of them several times

What is kept between passes is the model's own business: a Transformer's keys and values, a recurrent model's states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.cache.dense import DenseCache
from glassformer.errors import RequestError
from glassformer.generate.loop import NO_NUMBERS, Observer
from glassformer.kernels.linear import packed
from glassformer.nn.attend import Attend, attend_sdpa
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder
from glassformer.nn.step import EncodedSource, Step

UNENDING = 512  # tokens a recurrent model writes at most where nobody says: it has no context to fill
PairModel = EncoderDecoder | RecurrentEncoderDecoder


@runtime_checkable
class Seq2SeqDecoder(Protocol):
    """Rows that are being written: at first one for each source, of which nothing is written yet."""

    def advance(self, ids: Sequence[int]) -> Float[Tensor, "R V"]:
        """Read each row's newest token; the scores of every possible next one."""
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order; a row may be named several times."""
        ...


class TransformerDecoder:
    """A Transformer's rows. Each source is read once, each token once: keys and values stay in the cache."""

    def __init__(
        self,
        model: EncoderDecoder,
        sources: Sequence[Sequence[int]],
        most: int,
        attend: Attend = attend_sdpa,
        watch: Observer | None = None,
    ):
        """most: tokens that a row may take in. CapacityError where it, or a source, is longer than the context."""
        model = packed(model, rows=len(sources))
        self.model, self.attend, self.watch, self.device = model, attend, watch, model.embed.weight.device
        ids, lengths = padded(sources, self.device)
        source = model.encode(ids, watched(watch, Step.of(ids, lengths, attend=attend), len(ids)))
        self.cache = DenseCache.of(model.config, len(sources), most, self.device, source)

    def advance(self, ids: Sequence[int]) -> Float[Tensor, "R V"]:
        step = Step(self.cache.extend([1] * len(ids)), cache=self.cache, attend=self.attend)
        step = watched(self.watch, step, len(ids))
        hidden = self.model.hidden(torch.tensor(ids, device=self.device)[:, None], step)  # [R, 1, D]
        return self.model.logits(hidden[:, 0], watched(self.watch, step.at(step.positions[:, 0]), len(ids)))

    def select(self, rows: Sequence[int]) -> None:
        self.cache.select(rows)


class RecurrentDecoder:
    """A recurrent model's rows: all that they are is in their states."""

    def __init__(self, model: RecurrentEncoderDecoder, sources: Sequence[Sequence[int]], watch: Observer | None = None):
        self.model, self.watch, self.device = model, watch, model.head.weight.device
        ids, lengths = padded(sources, self.device)
        self.read = Step.of(ids, lengths).positions.expand_as(ids)  # of the source: -1 is padding
        self.count = 0
        self.state = model.encode(ids, torch.tensor(lengths), self._pass(len(ids)).tap)

    def _pass(self, rows: int) -> Step:
        return watched(
            self.watch, Step(torch.tensor([[self.count]], device=self.device), source=places(self.read)), rows
        )

    def advance(self, ids: Sequence[int]) -> Float[Tensor, "R V"]:
        step = self._pass(len(ids))
        hidden, self.state = self.model.decode(torch.tensor(ids, device=self.device)[:, None], self.state, step.tap)
        self.count += 1
        return self.model.logits(hidden[:, 0], watched(self.watch, step.at(step.positions[:, 0]), len(ids)).tap)

    def select(self, rows: Sequence[int]) -> None:
        self.state, self.read = self.state.select(rows), self.read[list(rows)]


def places(positions: Int[Tensor, "#B S"]) -> EncodedSource:
    """A source as far as a tap of a recurrent model's pass asks for it: its states are looked at by nobody."""
    return EncodedSource(positions[..., None].float(), positions, True)


def watched(watch: Observer | None, step: Step, rows: int) -> Step:
    """A pass with the tap of who watches it: its rows are all of the one request."""
    if watch is not None:
        step.tap = watch.tap(step, [0] * rows)
    return step


class Paced:
    """Rows whose writer is asked before each pass."""

    def __init__(self, rows: Seq2SeqDecoder, before_pass: Callable[[], None]):
        self.rows, self.before_pass = rows, before_pass

    def advance(self, ids: Sequence[int]) -> Float[Tensor, "R V"]:
        self.before_pass()
        return self.rows.advance(ids)

    def select(self, rows: Sequence[int]) -> None:
        self.rows.select(rows)


class EditedDecoder:
    """Rows whose numbers somebody changes on their way. RequestError where none are left to write by."""

    def __init__(self, rows: Seq2SeqDecoder):
        self.rows = rows

    def advance(self, ids: Sequence[int]) -> Float[Tensor, "R V"]:
        logits = self.rows.advance(ids)
        if logits.isnan().any():
            raise RequestError(NO_NUMBERS, param="edit")
        return logits

    def select(self, rows: Sequence[int]) -> None:
        self.rows.select(rows)


def read_sources(
    model: PairModel,
    sources: Sequence[Sequence[int]],
    most: int,
    attend: Attend = attend_sdpa,
    watch: Observer | None = None,
) -> Seq2SeqDecoder:
    """Read the sources, each of at least one token id. CapacityError where they, or `most` tokens, do not fit.

    `watch` looks at each pass, or changes it.
    """
    if isinstance(model, RecurrentEncoderDecoder):
        rows: Seq2SeqDecoder = RecurrentDecoder(model, sources, watch)
    else:
        rows = TransformerDecoder(model, sources, most, attend, watch)
    return rows if watch is None or not watch.edited else EditedDecoder(rows)


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
