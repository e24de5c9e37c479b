"""The trace of one text: every value of its forward pass, captured or recomputed.

    captured      during the forward pass: resid_pre of each block and the last resid_post; keys and values; the points
                  that `capture` names
    recomputed    on request: all other points of a block, by running the model's own Block on the captured residual
                  stream, for all tokens or for some
    derived       on request: scores, probabilities and each head's contribution, for some heads and queries

Every recomputed value is checked against the forward pass by an identity, and carries the error of that identity in its
own units.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, SupportsIndex, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.errors import CapacityError, RequestError
from glassformer.inspect.capture.capture import BUDGET, format_bytes
from glassformer.inspect.capture.points import Point, find, points, sizes
from glassformer.inspect.trace.lru import ByteLRU
from glassformer.inspect.trace.recompute import CapturedValues
from glassformer.inspect.trace.value import Value
from glassformer.nn.attention import Attention
from glassformer.nn.latent import LatentAttention
from glassformer.nn.linear import dtype_of
from glassformer.plain_numbers import plain_indices, plain_number
from glassformer.text.tokenizer import Tokenizer

CAPTURED = "captured during the forward pass"

ModelKind = Literal["decoder", "encoder-decoder", "recurrent", "encoder"]
Indices = SupportsIndex | slice | Sequence[int] | None  # numbers, arrays and tensors of NumPy and torch too
T = TypeVar("T")


@runtime_checkable
class Language(Protocol):
    """What a trace needs of a model with its tokenizer. The classes in `models/` have it."""

    model: Any

    @property
    def kind(self) -> ModelKind: ...
    @property
    def tokenizer(self) -> Tokenizer | None: ...


@dataclass(frozen=True)
class Receipt:
    """How to get the numbers of a view. `python` is an expression that returns them; `error` is by how much `identity`
    is violated, in the numbers' own units.
    """

    python: str
    identity: str | None = None
    error: float | None = None


class Trace(ABC):
    """The values of one text inside one model. `t["blocks.5.attn.probs"]` is a `Value`; `names()` lists all points.

    ids, tokens: the prompt, followed from `n_prompt` on by the generated tokens.
    finish: why generation ended: "stop", "length", or "nan" where edits left no valid logits; None without generation.
    captured: what the forward pass stored. edits, choices: the edits, and what the model computed differently for them.
    reprefills: the lengths at which a model with two sets of rotary angles prefilled the text again.
    source: the source of a seq2seq model; target, target_tokens: the tokens to predict, each after `ids[i]`.
    """

    kind: ClassVar[ModelKind]
    causal: ClassVar[bool] = True  # whether a token sees only the tokens before it
    has_blocks: ClassVar[bool] = True  # False of a recurrent model

    source: Any = None
    target: tuple[int, ...] = ()
    target_tokens: tuple[str, ...] = ()

    def __init__(
        self,
        lm: Language,
        captured: CapturedValues,
        *,
        n_prompt: int | None = None,
        edits: tuple[Any, ...] = (),
        choices: tuple[Any, ...] = (),
        finish: str | None = None,
        reprefills: Sequence[int] = (),
        budget: int | None = None,
        seed: int | None = None,
    ):
        self.lm, self.captured = lm, captured
        self.model: Any = captured.model
        self.config: Any = self.model.config
        self.ids: tuple[int, ...] = tuple(captured.ids.tolist())
        self.tokens = tuple(token_text(lm.tokenizer, token) for token in self.ids)
        self.n_prompt = len(self.ids) if n_prompt is None else n_prompt
        self.edits, self.choices, self.finish, self.reprefills, self.seed = (
            edits,
            choices,
            finish,
            tuple(reprefills),
            seed,
        )
        self.budget = BUDGET if budget is None else budget
        self._cache, self._points = ByteLRU(), dict[str, Point]()

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Trace({len(self)} tokens, {self.n_prompt} of them prompt, {format_bytes(self.bytes)} captured)"

    @property
    def bytes(self) -> int:
        """Bytes of captured values and of cached recomputed values."""
        held = [*self.captured.tensors.values(), *self._cache.tensors()]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())

    @property
    def n_source(self) -> int:
        """Number of tokens of the source, 0 without one."""
        return 0 if self.source is None else len(self.source)

    @property
    def source_ids(self) -> tuple[int, ...]:
        return () if self.source is None else self.source.ids

    @property
    def default_query(self) -> int:
        """The position to show where none is requested."""
        return len(self) - 1

    def names(self) -> list[str]:
        """Return the names of all points, in the order of the forward pass."""
        return list(points(self.config))

    def __contains__(self, name: object) -> bool:
        """Return whether the model has a point of this name."""
        return name in points(self.config)

    def point(self, name: str) -> Point:
        """Return the registry's entry of a point. RequestError for a name that the model does not have."""
        if name not in self._points:
            self._points[name] = find(self.config, name)
        return self._points[name]

    def axes(self, name: str) -> tuple[str, ...]:
        """Return the names of a point's axes, without the batch axis."""
        return tuple(axis.removeprefix("#") for axis in self.point(name).axes.split()[1:])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a point without computing it."""
        known = self._lengths(name) | sizes(self.config, name)
        return tuple(known[axis] for axis in self.axes(name))

    def n_tokens(self, name: str) -> int:
        """Return the number of tokens of the text, or of its source, that a point has values of."""
        lengths = self._lengths(name)
        return next(lengths[axis] for axis in self.axes(name) if axis in lengths)

    def _lengths(self, name: str) -> dict[str, int]:
        return {"T": len(self), "S": len(self), "2": 2}

    # ---- values

    def __getitem__(self, name: str) -> Value:
        """Return a point for all tokens.

        RequestError for a name that the model does not have; CapacityError for a value larger than the budget, of which
        `at` and `rows` return parts.
        """
        return self.at(name)

    def numpy(self, name: str) -> np.ndarray:
        """Return a point for all tokens as a NumPy array."""
        return self[name].numpy()

    def at(self, name: str, positions: Indices = None) -> Value:
        """Return a point at some tokens, computed for these alone. One position: without the axis T. None: all."""
        return self.values([name], positions)[name]

    @abstractmethod
    def values(self, names: Sequence[str], positions: Indices = None) -> dict[str, Value]:
        """Return several points at some tokens. Points of one block are recomputed by a single run of it."""

    @abstractmethod
    def rows(self, name: str, head: Indices = None, query: Indices = None) -> Value:
        """Return scores or probabilities of some heads and queries. One head or query: without its axis.

        t.rows("blocks.5.attn.probs", head=3, query=7) -> [S]. RequestError for another point, or a head of a model
        without heads.
        """

    @abstractmethod
    def logits(self, positions: Tensor) -> Float[Tensor, "N V"]:
        """Return the logits of the token that follows each position."""

    @abstractmethod
    def attention(self, layer: str) -> Attention | LatentAttention:
        """Return the module of "blocks.5.attn". RequestError where the model has no blocks."""

    @abstractmethod
    def visible(self, layer: str, query: Indices = None) -> Tensor:
        """Return which keys the queries of "blocks.5.attn" see, as booleans [T, S], or [S] for one query.

        RequestError where the model has no blocks.
        """

    def cached(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` computes from this trace, from the cache of the trace where it is there."""
        return self._cache.get(key, make)

    def check_budget(self, name: str, n_tokens: int, n_heads: int | None = None) -> None:
        """Raise CapacityError where a value of so many tokens, and heads, is larger than the budget."""
        itemsize = 4 if self.point(name).kind == "derived" else dtype_of(self.model).itemsize
        need = math.prod(self.shape(name)) * itemsize
        need = need * n_tokens // len(self)
        if n_heads is not None:
            need = need * n_heads // sizes(self.config, name)["H"]
        if need > self.budget:
            less = "rows(name, head, query)" if n_heads is not None else "at(name, positions)"
            raise CapacityError(
                f"{name} takes {format_bytes(need)} here, and the budget is {format_bytes(self.budget)}: use {less}"
            )

    def indices(self, name: str, given: Indices, size: int | None = None) -> Int[Tensor, "N"] | None:
        """Return indices of an axis as a tensor, negative ones counted from its end; None for all of them.

        size: the length of the axis, by default the number of tokens. RequestError names `name` and the range allowed.
        """
        size, plain = len(self) if size is None else size, plain_indices(given)
        if plain is None:
            return None
        plain = range(*plain.indices(size)) if isinstance(plain, slice) else plain
        some = plain if isinstance(plain, tuple | range) else (plain,)
        for i in some:
            if isinstance(i, bool) or not isinstance(i, int) or not -size <= i < size:
                raise RequestError(f"{name} must be a whole number from 0 to {size - 1}, got {i!r}", param=name)
        return torch.tensor([i % size for i in some], dtype=torch.long, device=self.captured.ids.device)

    def index(self, name: str, given: int) -> int:
        """Return one position, counted from the end where negative. RequestError where it is out of range."""
        found = self.indices(name, given)
        assert found is not None
        return int(found[0])


def is_one(given: Indices) -> bool:
    """Return whether an index selects one element, whose axis is then removed."""
    return isinstance(plain_number(given), int)


def bytes_text(data: bytes) -> str:
    """Return a token's bytes as text; bytes that are not valid UTF-8 as "<E2 80>"."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"<{data.hex(' ').upper()}>"


def token_text(tokenizer: Tokenizer | None, token: int) -> str:
    """Return a token's text; "#17" without a tokenizer, or where it has no token of this id."""
    data = None if tokenizer is None else tokenizer.find_bytes(token)
    return f"#{token}" if data is None else bytes_text(data)
