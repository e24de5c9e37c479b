"""Record the trace of a decoder: of a given text, in chunks, or of a text while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from glassformer.cache.size import cached_numbers
from glassformer.config import ModelConfig
from glassformer.errors import CapacityError, RequestError
from glassformer.generate.decode import decode_with_pauses
from glassformer.generate.prefill import chunk_size, run_chunks
from glassformer.generate.request import GenerationRequest, TokenEvent, check_ids
from glassformer.generate.session import Pausing
from glassformer.inspect.capture.capture import CapturingTap, TraceCapture, captured_points, check_budget
from glassformer.inspect.capture.points import match
from glassformer.inspect.edits.apply import Edits, edited_points, trace_fields
from glassformer.inspect.trace.blocks import BlockTrace
from glassformer.inspect.trace.recompute import CapturedValues
from glassformer.inspect.trace.trace import Language
from glassformer.nn.linear import device_of, dtype_of
from glassformer.nn.protocols import EncodedSource, Tap
from glassformer.nn.step import Step

T = TypeVar("T", bound=BlockTrace)


class CaptureObserver:
    """An `Observer` of one text that is generated: applies edits, then captures."""

    sees_last_token, separate_prefill = True, False

    def __init__(self, capture: TraceCapture, editor: Edits | None):
        self.capture, self.editor, self.has_edits = capture, editor, editor is not None

    def tap(self, step: Step, sequences: Sequence[int]) -> Tap:
        if step.positions.ndim == 2:
            self.capture.begin(step)
        return CapturingTap(step, sequences, self.editor, self.capture)


def record_text(
    trace_type: type[T],
    lm: Language,
    ids: Sequence[int],
    capture: Sequence[str],
    budget: int | None,
    editor: Edits | None,
    before_forward: Callable[[], None] | None = None,
) -> Pausing[T]:
    """Record the trace of a given text, with a pause after each chunk. Errors: those of `lm.trace`."""
    config, device = lm.model.config, device_of(lm.model)
    check_ids("text", ids, config.vocab_size)
    if len(ids) > config.context_length:
        raise CapacityError(f"the text has {len(ids)} tokens, and the model's context holds {config.context_length}")
    chunked = text_chunk(config, len(ids), editor) < len(ids)
    store = _capture(lm, capture, budget, editor, len(ids), cached_numbers(config, len(ids)) if chunked else 0)
    row = torch.tensor([ids], device=device)
    yield from run_decoder(lm.model, row, store, editor, before_forward=before_forward)
    return _trace(trace_type, lm, store, ids, editor, budget=budget)


@torch.no_grad()
def run_decoder(
    model: Any,
    row: torch.Tensor,
    store: TraceCapture,
    editor: Edits | None,
    source: EncodedSource | None = None,
    before_forward: Callable[[], None] | None = None,
) -> Pausing[None]:
    """Run a decoder on one text [1, T] with capturing taps, with a pause after each chunk.

    The logits of earlier tokens are computed only where they are captured.
    """

    def tap(step: Step) -> CapturingTap:
        return CapturingTap(step, (0,), editor, store)

    every, length = "final.logits" in store.names, row.shape[1]
    size = text_chunk(model.config, length, editor, source)
    for step, hidden in run_chunks(model, row, source=source, tap=tap, before_forward=before_forward, size=size):
        store.count += hidden.shape[1]
        if every or store.count == length:
            some = slice(None) if every else slice(-1, None)
            step = step.at(step.positions[:, some])
            step.tap = tap(step)
            model.logits(hidden[:, some], step)
        yield


def text_chunk(config: ModelConfig, length: int, editor: Edits | None, source: EncodedSource | None = None) -> int:
    """Return how many tokens of a text are processed at a time."""
    n_keys = length if source is None else max(length, source.positions.shape[-1])
    return chunk_size(config, n_keys, edits_scores=editor is not None and editor.edits_scores)


def record_generation(
    trace_type: type[T],
    lm: Any,
    request: GenerationRequest,
    capture: Sequence[str],
    budget: int | None,
    editor: Edits | None,
    before_forward: Callable[[], None] | None = None,
) -> Iterator[TokenEvent | T | None]:
    """Continue a prompt: yield the events of `decode_with_pauses`, then the trace of the complete text."""
    if request.max_tokens is None:
        raise RequestError("a trace of generated text needs max_tokens: its size grows with it", param="max_tokens")
    # The generation loop computes the logits of the last token only.
    some = [name for name in match(lm.model.config, capture) if name != "final.logits"]
    store = _capture(lm, some, budget, editor, len(request.prompts[0]) + request.max_tokens)
    observer = CaptureObserver(store, editor)
    events = decode_with_pauses(
        lm.model, request, tokenizer=lm.tokenizer, observer=observer, before_forward=before_forward
    )
    return _generate(trace_type, lm, request, events, store, editor, budget)


def _generate(
    trace_type: type[T], lm: Language, request: GenerationRequest, events: Iterator[TokenEvent | None],
    store: TraceCapture, editor: Edits | None, budget: int | None,
) -> Iterator[TokenEvent | T | None]:  # fmt: skip
    (prompt,), finish = request.prompts, None
    ids = list(prompt)
    try:
        for event in events:
            yield event
            if event is None:
                continue
            finish = event.finish
            if event.id is not None:
                ids.append(event.id)
    except RequestError:
        if editor is None:
            raise
        finish = "nan"
    yield _trace(
        trace_type, lm, store, ids[: store.count], editor, n_prompt=len(prompt), finish=finish, budget=budget,
        reprefills=store.reprefills, seed=request.sampling.seed,
    )  # fmt: skip


def _capture(
    lm: Language, capture: Sequence[str], budget: int | None, editor: Edits | None, length: int, cached: int = 0
) -> TraceCapture:
    """Return the capture of a text. cached: how many numbers the cache holds while it is recorded."""
    config, edited, itemsize = lm.model.config, edited_points(editor), dtype_of(lm.model).itemsize
    check_budget(config, capture, edited, length, itemsize, budget, cache_bytes=cached * itemsize)
    return TraceCapture(config, captured_points(config, capture, edited), length)


def _trace(
    trace_type: type[T], lm: Language, store: TraceCapture, ids: Sequence[int], editor: Edits | None, **rest: Any
) -> T:
    row = torch.tensor(ids, device=device_of(lm.model))
    captured = CapturedValues(lm.model, row, store.result(), editor, edited_points(editor), store.last_logits)
    return trace_type(lm, captured, **trace_fields(editor), **rest)
