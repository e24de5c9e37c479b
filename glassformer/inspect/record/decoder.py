"""How a trace is made: a text is read in one pass, or written by the very loop of `generate` and kept as it grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from glassformer.errors import CapacityError, RequestError
from glassformer.generate.decode import decode
from glassformer.generate.request import GenerationRequest, TokenEvent, check_ids
from glassformer.inspect.capture.points import match
from glassformer.inspect.capture.reader import CapturingTap, TraceReader, check_budget, wanted
from glassformer.inspect.edits.apply import Edits, about, edited
from glassformer.inspect.trace.recompute import KeptValues
from glassformer.inspect.trace.trace import Language, Trace
from glassformer.nn.protocols import Tap
from glassformer.nn.step import Step

T = TypeVar("T", bound=Trace)


class Watching:
    """A `Watch` of one text that is written: edits change its passes, and a reader keeps what passes."""

    sees_last_token, separate_prefill = True, False

    def __init__(self, reader: TraceReader, editor: Edits | None):
        self.reader, self.editor, self.has_edits = reader, editor, editor is not None

    def tap(self, step: Step, sequences: Sequence[int]) -> Tap:
        if step.positions.ndim == 2:
            self.reader.passed(step)
        return CapturingTap(step, sequences, self.editor, self.reader)


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
    request: GenerationRequest,
    read: Sequence[str],
    budget: int | None,
    editor: Edits | None,
    before_forward: Callable[[], None] | None = None,
) -> Iterator[TokenEvent | T]:
    """Continue a prompt; yield a token event per token as `stream` does, then the trace of the complete text."""
    if request.max_tokens is None:
        raise RequestError("a trace that is written needs max_tokens: what it keeps grows with it", param="max_tokens")
    some = [name for name in match(lm.model.config, read) if name != "final.logits"]  # of the last tokens only
    reader = _reader(lm, some, budget, editor, len(request.prompts[0]) + request.max_tokens)
    watch = Watching(reader, editor)
    events = decode(lm.model, request, tokenizer=lm.tokenizer, observer=watch, before_forward=before_forward)
    return _written(trace_type, lm, request, events, reader, editor, budget)


def _written(
    trace_type: type[T], lm: Language, request: GenerationRequest, events: Iterator[TokenEvent],
    reader: TraceReader, editor: Edits | None, budget: int | None,
) -> Iterator[TokenEvent | T]:  # fmt: skip
    (prompt,), finish = request.prompts, None
    ids = list(prompt)
    try:
        for event in events:
            yield event
            finish = event.finish
            if event.id is not None:
                ids.append(event.id)
    except RequestError:
        if editor is None:
            raise
        finish = "nan"
    yield _trace(
        trace_type, lm, reader, ids[: reader.count], editor, n_prompt=len(prompt), finish=finish, budget=budget,
        rereads=reader.rereads, seed=request.sampling.seed,
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
