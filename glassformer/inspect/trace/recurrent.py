"""Traces of recurrent encoder-decoders: "rnn.states", and with attention "rnn.scores", "rnn.probs", "rnn.context"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.inspect.trace.recompute import CapturedValues, max_difference
from glassformer.inspect.trace.trace import CAPTURED, Indices, Language, Trace, is_one, token_text
from glassformer.inspect.trace.value import Value

SOFTMAX = "max |softmax(scores) - probs|"
CONTEXT = "max |probs · states - context|"
RESULTS = {"rnn.scores": "rnn.probs", "rnn.probs": "rnn.context", "rnn.context": "rnn.context"}


class SourceTokens:
    """The source of a recurrent model: the ids and texts of its tokens."""

    def __init__(self, lm: Language, ids: Sequence[int]):
        self.ids = tuple(ids)
        self.tokens = tuple(token_text(lm.tokenizer, token) for token in ids)

    def __len__(self) -> int:
        return len(self.ids)


class RecurrentTrace(Trace):
    """The trace of a recurrent encoder-decoder and one target. It captures every point; none is recomputed."""

    kind = "recurrent"
    has_blocks = False
    source: SourceTokens

    def __init__(
        self, lm: Language, captured: CapturedValues, source: SourceTokens, target: Sequence[int], **rest: Any
    ):
        super().__init__(lm, captured, **rest)
        self.source, self.target = source, tuple(target)
        self.target_tokens = tuple(token_text(lm.tokenizer, token) for token in target)

    def _lengths(self, name: str) -> dict[str, int]:
        return {"T": len(self), "S": len(self.source)}

    def values(self, names: Sequence[str], positions: Indices = None) -> dict[str, Value]:
        at, found = self.indices("position", positions), {}
        for name in names:
            if "blocks." in name:
                self._no_blocks(name)
            axes = self.axes(name)
            tensor = self.captured.tensors[name]
            value = Value(name, tensor if at is None or axes[0] != "T" else tensor[at], axes, *self._check(name))
            found[name] = value.without("T") if is_one(positions) and axes[0] == "T" else value
        return found

    def rows(self, name: str, head: Indices = None, query: Indices = None) -> Value:
        if head is not None:
            raise RequestError("a recurrent model's attention has no heads: leave out `head`", param="head")
        return self.at(name, query)

    def logits(self, positions: Tensor) -> Float[Tensor, "N V"]:
        return self.captured.tensors["final.logits"][positions]

    def attention(self, layer: str) -> NoReturn:
        self._no_blocks(layer)

    def visible(self, layer: str, query: Indices = None) -> NoReturn:
        self._no_blocks(layer)

    def _no_blocks(self, name: str) -> NoReturn:
        raise RequestError(
            f"a recurrent model has no blocks, and no {name!r}; its points are {', '.join(self.names())}", param="name"
        )

    def _check(self, name: str) -> tuple[float, str]:
        """The error and the identity of a point. A point whose result was edited has nothing to compare with."""
        result = RESULTS.get(name)
        if result is None or result in self.captured.edited:
            return 0.0, CAPTURED
        scores, probs, context, states = (
            self.captured.tensors[f"rnn.{end}"].double() for end in ("scores", "probs", "context", "states")
        )
        if name == "rnn.scores":
            return max_difference(scores.softmax(-1), probs), SOFTMAX
        return max_difference(probs @ states, context), CONTEXT
