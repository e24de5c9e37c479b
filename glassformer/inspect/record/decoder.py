"""How a trace is made: a text is read in one pass, or written by the very loop of `generate` and kept as it grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch

from glassformer.errors import CapacityError, RequestError
from glassformer.generate.loop import GenerationOptions, TokenEvent, check_ids, write
from glassformer.inspect.capture.points import match
from glassformer.inspect.capture.reader import CapturingTap, TraceReader, check_budget, wanted
from glassformer.inspect.edits.apply import Edits, about, edited
from glassformer.inspect.trace.recompute import KeptValues
from glassformer.inspect.trace.trace import Language, Trace
from glassformer.nn.step import Step, Tap

T = TypeVar("T", bound=Trace)


class Watching:
    """A `Watch` of one text that is written: edits change its passes, and a reader keeps what passes."""

    whole, apart = True, False

    def __init__(self, reader: TraceReader, editor: Edits | None):
        self.reader, self.editor, self.edited = reader, editor, editor is not None

    def tap(self, step: Step, rows: Sequence[int]) -> Tap:
        if step.positions.ndim == 2:
            self.reader.passed(step)
        return CapturingTap(step, rows, self.editor, self.reader)


def record_text(
    trace_type: type[T], lm: Language, ids: Sequence[int], read: Sequence[str], budget: int | None, editor: Edits | None
) -> T:
    """A trace of a text that is there, read in one pass. Errors: those of `lm.trace`."""
    config, device = lm.model.config, lm.model.embed.weight.device
    check_ids("text", ids, config.vocab_size)
    if len(ids) > config.context_length:
        raise CapacityError(f"the text has {len(ids)} tokens, and the model's context holds {config.context_length}")
    reader = _reader(lm, read, budget, editor, len(ids))
    row = torch.tensor([ids], device=device)
    with torch.no_grad():
        step = Step.of(row)
        step.tap = CapturingTap(step, (0,), editor, reader)
        hidden = lm.model.hidden(row, step)
        some = slice(None) if "final.logits" in reader.names else slice(-1, None)
        step = step.at(step.positions[:, some])
        step.tap = CapturingTap(step, (0,), editor, reader)
        lm.model.logits(hidden[:, some], step)
    reader.count = len(ids)
    return _trace(trace_type, lm, reader, ids, editor, budget=budget)


def record_generation(
    trace_type: type[T],
    lm: Any,
    ids: Sequence[int],
    options: GenerationOptions,
    read: Sequence[str],
    budget: int | None,
    editor: Edits | None,
) -> Iterator[TokenEvent | T]:
    """Continue a prompt; yields a `Piece` per token as `stream` does, and in the end the trace of all of it."""
    if options.max_tokens is None:
        raise RequestError("a trace that is written needs max_tokens: what it keeps grows with it", param="max_tokens")
    some = [name for name in match(lm.model.config, read) if name != "final.logits"]  # of the last tokens only
    reader = _reader(lm, some, budget, editor, len(ids) + options.max_tokens)
    watch = Watching(reader, editor)
    pieces = write(lm.model, [ids], options, tokenizer=lm.tokenizer, ends=lm.ends, watch=watch)
    return _written(trace_type, lm, ids, options, pieces, reader, editor, budget)


def _written(
    trace_type: type[T], lm: Language, ids: Sequence[int], options: GenerationOptions, pieces: Iterator[TokenEvent],
    reader: TraceReader, editor: Edits | None, budget: int | None,
) -> Iterator[TokenEvent | T]:  # fmt: skip
    whole, finish = list(ids), None
    try:
        for piece in pieces:
            yield piece
            finish = piece.finish
            if piece.id is not None:
                whole.append(piece.id)
    except RequestError:
        if editor is None:
            raise
        finish = "nan"
    yield _trace(
        trace_type, lm, reader, whole[: reader.count], editor, n_prompt=len(ids), finish=finish, budget=budget,
        rereads=reader.rereads, seed=options.sampling.seed,
    )  # fmt: skip


def _reader(lm: Language, read: Sequence[str], budget: int | None, editor: Edits | None, length: int) -> TraceReader:
    config, changed = lm.model.config, edited(editor)
    check_budget(config, read, changed, length, lm.model.embed.weight.element_size(), budget)
    return TraceReader(config, wanted(config, read, changed), length)


def _trace(
    trace_type: type[T], lm: Language, reader: TraceReader, ids: Sequence[int], editor: Edits | None, **rest: Any
) -> T:
    row = torch.tensor(ids, device=lm.model.embed.weight.device)
    kept = KeptValues(lm.model, row, reader.result(), editor, edited(editor), reader.last_logits)
    return trace_type(lm, kept, **about(editor), **rest)
