"""Record the traces of encoders and of models with a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from glassformer.errors import CapacityError
from glassformer.generate.sampling import check_number
from glassformer.generate.session import run, source_of_positions
from glassformer.inspect.capture.capture import (
    BUDGET,
    CapturingTap,
    TraceCapture,
    captured_points,
    check_budget,
    format_bytes,
)
from glassformer.inspect.capture.points import ENCODER, match, points
from glassformer.inspect.edits.apply import Edits, edited_points, trace_fields
from glassformer.inspect.record.decoder import run_decoder
from glassformer.inspect.trace.recompute import CapturedValues
from glassformer.inspect.trace.recurrent import RecurrentTrace, SourceTokens
from glassformer.inspect.trace.seq2seq import EncoderTrace, Seq2seqTrace
from glassformer.inspect.trace.trace import Language
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.linear import device_of, dtype_of
from glassformer.nn.model import Encoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder
from glassformer.nn.step import Step

Finish = Literal["stop", "length"] | None
E = TypeVar("E", bound=EncoderTrace)
S = TypeVar("S", bound=Seq2seqTrace)
R = TypeVar("R", bound=RecurrentTrace)


class RecurrentTap:
    """The tap of a recurrent model's forward pass. It counts the target tokens, which may be processed sequentially.

    rows: for each sequence of the batch, the number of its text. parts: the values of some points, in order.
    """

    def __init__(self, n_source: int, names: Sequence[str], editor: Edits | None, rows: Sequence[int] = (0,)):
        self.source, self.rows, self.editor = torch.arange(n_source)[None], tuple(rows), editor
        self.parts: dict[str, list[Tensor]] = {name: [] for name in names}
        self.count = Counter[str]()

    def wants(self, name: str) -> bool:
        return name in self.parts or (self.editor is not None and self.editor.wants(name))

    def __call__(self, name: str, value: Tensor) -> Tensor:
        begin, source = self.count[name], self.source.to(value.device)
        self.count[name] += value.shape[1]
        at = torch.arange(begin, self.count[name], device=value.device)[None]
        step = Step(at, source=source_of_positions(source))
        value = CapturingTap(step, self.rows, self.editor, None)(name, value)
        if name in self.parts:
            self.parts[name].append(value)
        return value


@torch.no_grad()
def record_encoder(
    trace_type: type[E], lm: Any, model: Encoder, ids: Sequence[int], capture: Sequence[str], budget: int | None,
    editor: Edits | None = None,
) -> E:  # fmt: skip
    """Record the trace of one text in an encoder. CapacityError where the text is longer than its context."""
    context = model.config.context_length
    if len(ids) > context:
        raise CapacityError(f"the text has {len(ids)} tokens, and the encoder's context holds {context}")
    edited = edited_points(editor)
    check_budget(model.config, capture, edited, len(ids), dtype_of(model).itemsize, budget)
    store = TraceCapture(model.config, captured_points(model.config, capture, edited), len(ids))
    row = torch.tensor([ids], device=device_of(model))
    step = Step.of(row)
    step.tap = CapturingTap(step, (0,), editor, store)
    states = model(row, step)
    if isinstance(model, TextEncoder):
        if model.pooler is not None:
            pooled = model.pooled(states, step)
            if model.next_sentence is not None:
                model.follows(pooled, step)
        if model.head is not None:
            some = slice(None) if "final.logits" in store.names else slice(-1, None)
            last = step.at(step.positions[:, some])
            last.tap = CapturingTap(last, (0,), editor, store)
            model.logits(states[:, some], last)
    store.count = len(ids)
    captured = CapturedValues(model, row[0], store.result(), editor, edited, store.last_logits)
    return trace_type(lm, captured, budget=budget, **trace_fields(editor))


@torch.no_grad()
def record_seq2seq(
    trace_type: type[S], lm: Any, source: Sequence[int], ids: Sequence[int], target: Sequence[int], *, n_prompt: int,
    finish: Finish = None, capture: Sequence[str] = (), budget: int | None = None, editor: Edits | None = None,
    before_forward: Callable[[], None] | None = None,
) -> S:  # fmt: skip
    """Record the trace of a source and of the decoder's input `ids`, which predicts `target`.

    Errors: those of `Translator.trace`.
    """
    model, names, edited = lm.model, match(lm.model.config, capture), edited_points(editor)
    inner = [name.removeprefix(ENCODER) for name in names if name.startswith(ENCODER)]
    own = [name for name in names if not name.startswith(ENCODER)]
    encoder_edits = None if editor is None else editor.for_encoder()
    encoder = record_encoder(trace_type.source_type, lm, model.encoder, source, inner, budget, encoder_edits)
    limit = BUDGET if budget is None else budget
    left = max(1, limit - encoder.bytes)
    check_budget(model.config, own, edited, len(ids), dtype_of(model).itemsize, left, len(source))
    store = TraceCapture(model.config, captured_points(model.config, own, edited), len(ids))
    row, encoded = torch.tensor([ids], device=device_of(model)), encoder.encoded
    run(run_decoder(model, row, store, editor, encoded, before_forward))
    captured = CapturedValues(model, row[0], store.result(), editor, edited, store.last_logits, encoded)
    rest = {"n_prompt": n_prompt, "finish": finish, "budget": left} | trace_fields(editor)
    return trace_type(lm, captured, encoder, target, **rest)


@torch.no_grad()
def record_recurrent(
    trace_type: type[R], lm: Language, source: Sequence[int], ids: Sequence[int], target: Sequence[int], *,
    n_prompt: int, finish: Finish = None, capture: Sequence[str] = (), budget: int | None = None,
    editor: Edits | None = None, before_forward: Callable[[], None] | None = None,
) -> R:  # fmt: skip
    """Record the trace of a recurrent model, as `record_seq2seq` does.

    Every point is captured; `capture` is only checked for points that do not exist.
    """
    model: RecurrentEncoderDecoder = lm.model
    match(model.config, capture)
    device, config, limit = device_of(model), model.config, BUDGET if budget is None else budget
    check_number("budget", limit, 1, 1 << 62)
    t, s, width = len(ids), len(source), config.d_hidden
    need = t * config.target_vocab_size + s * width + (t * (2 * s + width) if config.attention else 0)
    if (need := need * dtype_of(model).itemsize) > limit:
        raise CapacityError(
            f"this trace takes {format_bytes(need)}, and the budget is {format_bytes(limit)}: shorten the texts or "
            "raise the budget"
        )
    if before_forward is not None:
        before_forward()
    row = torch.tensor([ids], device=device)
    tap = RecurrentTap(s, list(points(config)), editor)
    model(torch.tensor([source], device=device), row, None, tap)
    tensors = {name: torch.cat(parts, 1)[0] for name, parts in tap.parts.items()}
    captured = CapturedValues(model, row[0], tensors, editor, edited_points(editor))
    rest = {"n_prompt": n_prompt, "finish": finish} | trace_fields(editor)
    return trace_type(lm, captured, SourceTokens(lm, source), target, **rest)
