"""Traces of Transformer encoders and of encoder-decoders.

    source ids -> encoder -> EncoderTrace, which is `t.source`; its points are also t["encoder...."]
                                 |
    target ids -> decoder -> Seq2seqTrace: its own points, and those of cross-attention ("blocks.i.cross....")

The decoder's input is the token that begins a text, then the target without its last token: `t.target[i]` is predicted
after `t.ids[i]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from glassformer.inspect.capture.capture import format_bytes
from glassformer.inspect.capture.points import ENCODER
from glassformer.inspect.trace.blocks import BlockTrace
from glassformer.inspect.trace.recompute import CapturedValues
from glassformer.inspect.trace.trace import Indices, Language, token_text
from glassformer.inspect.trace.value import Value
from glassformer.nn.protocols import EncodedSource


class EncoderTrace(BlockTrace):
    """The trace of an encoder: every token sees the complete text, and nothing is generated."""

    kind = "encoder"
    causal = False

    @property
    def encoded(self) -> EncodedSource:
        """The states that a decoder attends to."""
        return EncodedSource(self.captured.require("final.norm")[None], self.captured.positions[None])

    def __repr__(self) -> str:
        return f"EncoderTrace({len(self)} tokens, {format_bytes(self.bytes)} captured)"


class Seq2seqTrace(BlockTrace):
    """The trace of an encoder-decoder and one target. `source` is the trace of its encoder."""

    kind = "encoder-decoder"
    source: EncoderTrace
    source_type: ClassVar[type[EncoderTrace]] = EncoderTrace

    def __init__(
        self, lm: Language, captured: CapturedValues, source: EncoderTrace, target: Sequence[int], **rest: Any
    ):
        super().__init__(lm, captured, **rest)
        self.source, self.target = source, tuple(target)
        self.target_tokens = tuple(token_text(lm.tokenizer, token) for token in target)

    @property
    def bytes(self) -> int:
        return super().bytes + self.source.bytes

    @property
    def default_query(self) -> int:
        return len(self) - 1

    def _lengths(self, name: str) -> dict[str, int]:
        if name.startswith(ENCODER):
            return self.source._lengths(name)
        return super()._lengths(name) | ({"S": len(self.source)} if ".cross." in name else {})

    def visible(self, layer: str, query: Indices = None) -> Tensor:
        if layer.startswith(ENCODER):
            return self.source.visible(layer.removeprefix(ENCODER), query)
        return super().visible(layer, query)

    def __getitem__(self, name: str) -> Value:
        if not name.startswith(ENCODER):
            return super().__getitem__(name)
        self.point(name)  # whose error names the points of this model
        return _renamed(self.source[name.removeprefix(ENCODER)])

    def values(self, names: Sequence[str], positions: Indices = None) -> dict[str, Value]:
        for name in names:
            self.point(name)
        inner = [name.removeprefix(ENCODER) for name in names if name.startswith(ENCODER)]
        own = [name for name in names if not name.startswith(ENCODER)]
        found = super().values(own, positions) if own else {}
        if inner:  # the source has positions of its own
            found |= {ENCODER + name: _renamed(one) for name, one in self.source.values(inner, positions).items()}
        return {name: found[name] for name in names}

    def rows(self, name: str, head: Indices = None, query: Indices = None) -> Value:
        if not name.startswith(ENCODER):
            return super().rows(name, head, query)
        self.point(name)
        return _renamed(self.source.rows(name.removeprefix(ENCODER), head, query))


def _renamed(one: Value) -> Value:
    return Value(ENCODER + one.name, one.tensor, one.axes, one.error, one.identity)
