"""Traces of models that read a source, and of encoders by themselves.

    source ids -> encoder -> EncoderTrace, which is `t.source`, and whose points are t["encoder...."] too
                                 |
    target ids -> decoder -> PairTrace: its own points, and cross-attention's ("blocks.i.cross....")

    source ids, target ids -> RecurrentTrace: "rnn.states", and with attention "rnn.{scores,probs,context}"

A decoder reads the token that begins a text, and the target's but the last: `t.target[i]` stands after `t.ids[i]`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from glassformer.errors import CapacityError, RequestError
from glassformer.generate.sampling import check_number
from glassformer.generate.seq2seq_decoder import places
from glassformer.inspect.capture.points import find, match, points
from glassformer.inspect.capture.reader import BUDGET, CapturingTap, TraceReader, check_budget, mega, wanted
from glassformer.inspect.edits.apply import Edits, about, edited
from glassformer.inspect.trace.recompute import KeptValues, off
from glassformer.inspect.trace.trace import KEPT, Language, Places, Trace, Value, spelled
from glassformer.inspect.views.viewed import Kind
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.model import Encoder, EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder
from glassformer.nn.step import EncodedSource, Step

SIDE = "encoder."
Finish = Literal["stop", "length"] | None
FITS = "max |softmax(scores) - probs|"
GATHERED = "max |probs · states - context|"


class EncoderTrace(Trace):
    """A text inside an encoder: every token has seen the whole of it. Nothing is written."""

    kind: Kind = "encoder"

    def __repr__(self) -> str:
        return f"EncoderTrace({len(self)} tokens, {mega(self.bytes)} kept)"

    @property
    def read(self) -> EncodedSource:
        """What a decoder reads of it."""
        return EncodedSource(self.kept.of("final.norm")[None], self.kept.positions[None])


class GeneratedTarget(Trace):
    """What a trace with a source has beside: `target`, the tokens that were to be written, each after `ids[i]`."""

    source: Any
    target: tuple[int, ...]
    target_tokens: tuple[str, ...]

    def _targets(self, target: Sequence[int]) -> None:
        self.target = tuple(target)
        self.target_tokens = tuple(spelled(self.lm.tokenizer, token) for token in self.target)


class PairTrace(GeneratedTarget):
    """A target inside an encoder-decoder. `source` is the trace of its encoder, the texts' other side."""

    kind: Kind = "encoder-decoder"
    source: EncoderTrace

    def __init__(self, lm: Language, kept: KeptValues, source: EncoderTrace, target: Sequence[int], **rest: Any):
        super().__init__(lm, kept, **rest)
        self.source = source
        self._targets(target)

    @property
    def bytes(self) -> int:
        return super().bytes + self.source.bytes

    def _lengths(self, name: str) -> dict[str, int]:
        if name.startswith(SIDE):
            return self.source._lengths(name)
        return super()._lengths(name) | ({"S": len(self.source)} if ".cross." in name else {})

    def visible(self, layer: str, query: Places = None) -> Tensor:
        inside = layer.startswith(SIDE)
        return self.source.visible(layer.removeprefix(SIDE), query) if inside else super().visible(layer, query)

    def __getitem__(self, name: str) -> Value:
        if not name.startswith(SIDE):
            return super().__getitem__(name)
        find(self.config, name)  # whose error names the points of this model
        return _named(self.source[name.removeprefix(SIDE)])

    def several(self, names: Sequence[str], positions: Places = None) -> dict[str, Value]:
        for name in names:
            find(self.config, name)
        theirs = [name.removeprefix(SIDE) for name in names if name.startswith(SIDE)]
        found = {SIDE + name: _named(one) for name, one in self.source.several(theirs, positions).items()}
        found |= super().several([name for name in names if not name.startswith(SIDE)], positions)
        return {name: found[name] for name in names}

    def rows(self, name: str, head: Places = None, query: Places = None) -> Value:
        if not name.startswith(SIDE):
            return super().rows(name, head, query)
        find(self.config, name)
        return _named(self.source.rows(name.removeprefix(SIDE), head, query))


def _named(one: Value) -> Value:
    return Value(SIDE + one.name, one.tensor, one.axes, one.error, one.identity)


class RecurrentTrace(GeneratedTarget):
    """A target inside a recurrent encoder-decoder: all that passed is kept, for it is little.

    `source`: its token ids and their texts. A model without attention has no point but its states and its logits.
    """

    kind: Kind = "recurrent"
    source: Read

    def __init__(self, lm: Language, kept: KeptValues, source: Read, target: Sequence[int], **rest: Any):
        super().__init__(lm, kept, **rest)
        self.source = source
        self._targets(target)

    def _lengths(self, name: str) -> dict[str, int]:
        return {"T": len(self), "S": len(self.source)}

    def several(self, names: Sequence[str], positions: Places = None) -> dict[str, Value]:
        at, found = self.places("position", positions), {}
        for name in names:
            if ".blocks." in f".{name}":
                raise RequestError(
                    f"a recurrent model has no blocks, and no {name!r}: one state is carried from token to token; "
                    f"its points are {', '.join(self.names())}",
                    param="name",
                )
            axes = self.axes(name)
            tensor, whole = self.kept.tensors[name], axes[0] != "T"
            one = Value(name, tensor if at is None or whole else tensor[at], axes, *self._checked(name))
            found[name] = one if whole or not isinstance(positions, int) else one.without("T")
        return found

    def rows(self, name: str, head: Places = None, query: Places = None) -> Value:
        if head is not None:
            raise RequestError("a recurrent model's attention has no heads: leave out `head`", param="head")
        return self.at(name, query)

    def __getitem__(self, name: str) -> Value:
        return self.at(name)

    def _checked(self, name: str) -> tuple[float, str]:
        made = {"rnn.scores": "rnn.probs", "rnn.probs": "rnn.context", "rnn.context": "rnn.context"}.get(name)
        if made is None or made in self.kept.edited:  # what was changed is what nothing makes
            return 0.0, KEPT
        scores, probs, context, states = (
            self.kept.tensors[f"rnn.{end}"].double() for end in ("scores", "probs", "context", "states")
        )
        if name == "rnn.scores":
            return off(scores.softmax(-1), probs), FITS
        return off(probs @ states, context), GATHERED


class Read:
    """A source as a recurrent model reads it: ids and texts of its tokens."""

    def __init__(self, lm: Language, ids: Sequence[int]):
        self.ids = tuple(ids)
        self.tokens = tuple(spelled(lm.tokenizer, token) for token in ids)

    def __len__(self) -> int:
        return len(self.ids)


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
        step = Step(at, source=places(read))
        value = CapturingTap(step, self.rows, self.editor, None)(name, value)
        if name in self.parts:
            self.parts[name].append(value)
        return value


# ---- how they are made


@torch.no_grad()
def read_encoder(
    lm: Any, model: Encoder, ids: Sequence[int], read: Sequence[str], budget: int | None, editor: Edits | None = None
) -> EncoderTrace:
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
    return EncoderTrace(lm, kept, budget=budget, **about(editor))


@torch.no_grad()
def read_pair(
    lm: Any, source: Sequence[int], ids: Sequence[int], target: Sequence[int], *, n_prompt: int, finish: Finish = None,
    read: Sequence[str] = (), budget: int | None = None, editor: Edits | None = None,
) -> PairTrace | RecurrentTrace:  # fmt: skip
    """A source, and what its decoder reads of a target (`ids`): their trace. Errors: those of `Translator.trace`."""
    model, names = lm.model, match(lm.model.config, read)
    if isinstance(model, RecurrentEncoderDecoder):
        return _read_recurrent(lm, model, source, ids, target, n_prompt, finish, budget, editor)
    assert isinstance(model, EncoderDecoder)
    theirs = [name.removeprefix(SIDE) for name in names if name.startswith(SIDE)]
    own = [name for name in names if not name.startswith(SIDE)]
    inner = None if editor is None else editor.inside(SIDE)
    encoded = read_encoder(lm, model.encoder, source, theirs, budget, inner)
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
    return PairTrace(lm, kept, encoded, target, **rest)


def _read_recurrent(
    lm: Language, model: RecurrentEncoderDecoder, source: Sequence[int], ids: Sequence[int], target: Sequence[int],
    n_prompt: int, finish: Finish, budget: int | None, editor: Edits | None,
) -> RecurrentTrace:  # fmt: skip
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
    return RecurrentTrace(lm, kept, Read(lm, source), target, **rest)
