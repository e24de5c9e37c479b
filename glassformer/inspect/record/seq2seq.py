"""Record traces of models that read a source, and of encoders by themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from glassformer.errors import CapacityError
from glassformer.generate.sampling import check_number
from glassformer.generate.session import source_of_positions
from glassformer.inspect.capture.points import match, points
from glassformer.inspect.capture.reader import BUDGET, CapturingTap, TraceReader, check_budget, mega, wanted
from glassformer.inspect.edits.apply import Edits, about, edited
from glassformer.inspect.trace.recompute import KeptValues
from glassformer.inspect.trace.seq2seq import SIDE, EncoderTrace, Finish, RecurrentTrace, Seq2seqTrace, SourceTokens
from glassformer.inspect.trace.trace import Language
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.model import Encoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder
from glassformer.nn.step import Step

E = TypeVar("E", bound=EncoderTrace)
S = TypeVar("S", bound=Seq2seqTrace)
R = TypeVar("R", bound=RecurrentTrace)


class InTurn:
    """The tap of a recurrent model's pass, whose target tokens may come one after another: it counts them.

    rows: the numbers of the texts that the pass's rows are of. parts: what has passed at some points, in order.
    """

    def __init__(self, n_source: int, names: Sequence[str], editor: Edits | None, rows: Sequence[int] = (0,)):
        self.read, self.rows, self.editor = torch.arange(n_source)[None], tuple(rows), editor
        self.parts: dict[str, list[Tensor]] = {name: [] for name in names}
        self.count = Counter[str]()

    def wants(self, name: str) -> bool:
        return name in self.parts or (self.editor is not None and self.editor.wants(name))

    def __call__(self, name: str, value: Tensor) -> Tensor:
        begin, read = self.count[name], self.read.to(value.device)
        self.count[name] += value.shape[1]
        at = torch.arange(begin, self.count[name], device=value.device)[None]
        step = Step(at, source=source_of_positions(read))
        value = CapturingTap(step, self.rows, self.editor, None)(name, value)
        if name in self.parts:
            self.parts[name].append(value)
        return value


@torch.no_grad()
def record_encoder(
    trace_type: type[E], lm: Any, model: Encoder, ids: Sequence[int], read: Sequence[str], budget: int | None,
    editor: Edits | None = None,
) -> E:  # fmt: skip
    """One text through an encoder."""
    weight, context = model.embed.weight, model.config.context_length
    if len(ids) > context:
        raise CapacityError(f"the text has {len(ids)} tokens, and the encoder's context holds {context}")
    check_budget(model.config, read, edited(editor), len(ids), weight.element_size(), budget)
    reader = TraceReader(model.config, wanted(model.config, read, edited(editor)), len(ids))
    row = torch.tensor([ids], device=weight.device)
    step = Step.of(row)
    step.tap = CapturingTap(step, (0,), editor, reader)
    states = model(row, step)
    if isinstance(model, TextEncoder):
        if model.pooler is not None:
            pooled = model.pooled(states, step)
            if model.next_sentence is not None:
                model.follows(pooled, step)
        if model.head is not None:
            some = slice(None) if "final.logits" in reader.names else slice(-1, None)
            last = step.at(step.positions[:, some])
            last.tap = CapturingTap(last, (0,), editor, reader)
            model.logits(states[:, some], last)
    reader.count = len(ids)
    kept = KeptValues(model, row[0], reader.result(), editor, edited(editor), reader.last_logits)
    return trace_type(lm, kept, budget=budget, **about(editor))


@torch.no_grad()
def record_seq2seq(
    trace_type: type[S], lm: Any, source: Sequence[int], ids: Sequence[int], target: Sequence[int], *, n_prompt: int,
    finish: Finish = None, read: Sequence[str] = (), budget: int | None = None, editor: Edits | None = None,
) -> S:  # fmt: skip
    """A source, and what its decoder reads of a target (`ids`): their trace. Errors: those of `Translator.trace`."""
    model, names = lm.model, match(lm.model.config, read)
    theirs = [name.removeprefix(SIDE) for name in names if name.startswith(SIDE)]
    own = [name for name in names if not name.startswith(SIDE)]
    inner = None if editor is None else editor.inside(SIDE)
    encoded = record_encoder(trace_type.source_type, lm, model.encoder, source, theirs, budget, inner)
    weight, limit = model.embed.weight, (BUDGET if budget is None else budget)
    left = max(1, limit - encoded.bytes)
    check_budget(model.config, own, edited(editor), len(ids), weight.element_size(), left, len(source))
    reader = TraceReader(model.config, wanted(model.config, own, edited(editor)), len(ids))
    row = torch.tensor([ids], device=weight.device)
    step = Step.of(row, source=encoded.read)
    step.tap = CapturingTap(step, (0,), editor, reader)
    hidden = model.hidden(row, step)
    some = slice(None) if "final.logits" in reader.names else slice(-1, None)
    step = step.at(step.positions[:, some])
    step.tap = CapturingTap(step, (0,), editor, reader)
    model.logits(hidden[:, some], step)
    reader.count = len(ids)
    kept = KeptValues(model, row[0], reader.result(), editor, edited(editor), reader.last_logits, encoded.read)
    rest = {"n_prompt": n_prompt, "finish": finish, "budget": left} | about(editor)
    return trace_type(lm, kept, encoded, target, **rest)


@torch.no_grad()
def record_recurrent(
    trace_type: type[R], lm: Language, source: Sequence[int], ids: Sequence[int], target: Sequence[int], *,
    n_prompt: int, finish: Finish = None, read: Sequence[str] = (), budget: int | None = None,
    editor: Edits | None = None,
) -> R:  # fmt: skip
    """The same of a recurrent model, whose trace holds every point: `read` only has to name points."""
    model: RecurrentEncoderDecoder = lm.model
    match(model.config, read)
    device, config, limit = model.head.weight.device, model.config, BUDGET if budget is None else budget
    check_number("budget", limit, 1, 1 << 62)
    t, s, width = len(ids), len(source), config.d_hidden
    need = t * config.target_vocab_size + s * width + (t * (2 * s + width) if config.attention else 0)
    if (need := need * model.head.weight.element_size()) > limit:
        raise CapacityError(
            f"this trace keeps {mega(need)}, and the budget is {mega(limit)}: give shorter texts, or more"
        )
    row = torch.tensor([ids], device=device)
    tap = InTurn(s, list(points(config)), editor)
    model(torch.tensor([source], device=device), row, None, tap)
    tensors = {name: torch.cat(parts, 1)[0] for name, parts in tap.parts.items()}
    kept = KeptValues(model, row[0], tensors, editor, edited(editor))
    rest = {"n_prompt": n_prompt, "finish": finish} | about(editor)
    return trace_type(lm, kept, SourceTokens(lm, source), target, **rest)
