"""Traces of models that read a source, and of encoders by themselves.

    source ids -> encoder -> EncoderTrace, which is `t.source`, and whose points are t["encoder...."] too
                                 |
    target ids -> decoder -> Seq2seqTrace: its own points, and cross-attention's ("blocks.i.cross....")

    source ids, target ids -> RecurrentTrace: "rnn.states", and with attention "rnn.{scores,probs,context}"

The decoder's input is the token that begins a text, then the target without its last token: `t.target[i]` is predicted
after `t.ids[i]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from glassformer.errors import RequestError
from glassformer.inspect.capture.points import find
from glassformer.inspect.capture.reader import mega
from glassformer.inspect.trace.recompute import KeptValues, off
from glassformer.inspect.trace.trace import KEPT, Language, ModelKind, Places, Trace, Value, spelled
from glassformer.nn.protocols import EncodedSource

SIDE = "encoder."
Finish = Literal["stop", "length"] | None
FITS = "max |softmax(scores) - probs|"
GATHERED = "max |probs · states - context|"


class EncoderTrace(Trace):
    """A text inside an encoder: every token has seen the whole of it. Nothing is written."""

    kind: ModelKind = "encoder"

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


class Seq2seqTrace(GeneratedTarget):
    """A target inside an encoder-decoder. `source` is the trace of its encoder, the texts' other side."""

    kind: ModelKind = "encoder-decoder"
    source: EncoderTrace
    source_type: ClassVar[type[EncoderTrace]] = EncoderTrace

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

    kind: ModelKind = "recurrent"
    source: SourceTokens

    def __init__(self, lm: Language, kept: KeptValues, source: SourceTokens, target: Sequence[int], **rest: Any):
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


class SourceTokens:
    """A source as a recurrent model reads it: ids and texts of its tokens."""

    def __init__(self, lm: Language, ids: Sequence[int]):
        self.ids = tuple(ids)
        self.tokens = tuple(spelled(lm.tokenizer, token) for token in ids)

    def __len__(self) -> int:
        return len(self.ids)
