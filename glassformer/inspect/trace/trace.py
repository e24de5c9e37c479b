"""One text inside one model: every number of the pass, kept or computed again when it is asked for.

    kept from the pass     resid_pre of each block (and what comes after the last), keys and values; what `read` named
    computed when asked    all else of a block: that very Block runs on the kept rows, for all tokens or for some
    derived                scores and probabilities of the heads and queries that are asked for, each head's part

What is computed again carries the error of an identity that ties it to the pass, in the value's own units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from glassformer.errors import CapacityError, RequestError, TokenizerError
from glassformer.inspect.capture.derive import heads
from glassformer.inspect.capture.points import Point, find, layer_of, points, sizes
from glassformer.inspect.capture.reader import BUDGET, mega
from glassformer.inspect.trace.lru import ByteLRU
from glassformer.inspect.trace.recompute import (
    UNSEEN,
    WEIGHED,
    Found,
    KeptValues,
    in_block,
    outside,
    run_block,
    weighed,
    whole_block,
)  # fmt: skip
from glassformer.nn.attention import Attention
from glassformer.nn.latent import LatentAttention
from glassformer.nn.model import Decoder
from glassformer.text.tokenizer import Tokenizer

KEPT = "kept as it passed"
SUMMED = "max |sum of heads + bias - out|"

ModelKind = Literal["decoder", "encoder-decoder", "recurrent", "encoder"]
Places = int | Sequence[int] | None
T = TypeVar("T")


@runtime_checkable
class Language(Protocol):
    """What a trace needs of a language model, or of another that reads texts."""

    model: Any

    @property
    def kind(self) -> ModelKind: ...
    @property
    def tokenizer(self) -> Tokenizer | None: ...


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of one text, no batch axis. `axes` name its axes ("T", "H", "Dh"): see `points.py`.

    `error` is how far the identity, told in words, is off; None where there is none to check.
    """

    name: str
    tensor: Tensor
    axes: tuple[str, ...]
    error: float | None
    identity: str | None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor[index]

    def without(self, axis: str) -> Value:
        """The only place on an axis, the axis left out."""
        n = self.axes.index(axis)
        rest = (*self.axes[:n], *self.axes[n + 1 :])
        return Value(self.name, self.tensor.squeeze(n), rest, self.error, self.identity)

    def __repr__(self) -> str:
        size = ", ".join(f"{axis} {n}" for axis, n in zip(self.axes, self.shape, strict=True))
        return f"Value({self.name} [{size}], error {self.error}: {self.identity})"


@dataclass(frozen=True)
class Receipt:
    """`python` returns the very numbers shown; `error` is how far `identity` is off, in the numbers' own units."""

    python: str
    identity: str | None = None
    error: float | None = None


class Trace:
    """What `lm.trace` returns. `t["blocks.5.attn.probs"]` is a `Value`; `names()` says what there is.

    ids, tokens: the prompt, and what was written after it (from `n_prompt` on). finish: why writing ended ("stop",
    "length", "nan" where edits left no numbers to draw from), None where nothing was to be written. kept: what the
    pass left. edits, choices: what was changed, and what the model did otherwise for it. rereads: how many tokens the
    text had when a model of long texts read it anew, by other angles.
    """

    kind: ModelKind = "decoder"

    def __init__(
        self,
        lm: Language,
        kept: KeptValues,
        *,
        n_prompt: int | None = None,
        edits: tuple[Any, ...] = (),
        choices: tuple[Any, ...] = (),
        finish: str | None = None,
        rereads: Sequence[int] = (),
        budget: int | None = None,
        seed: int | None = None,
    ):
        self.lm, self.kept = lm, kept
        self.model: Decoder = kept.model
        self.config = self.model.config
        self.ids: tuple[int, ...] = tuple(kept.ids.tolist())
        self.tokens = tuple(spelled(lm.tokenizer, token) for token in self.ids)
        self.n_prompt = len(self.ids) if n_prompt is None else n_prompt
        self.edits, self.choices, self.finish, self.rereads, self.seed = edits, choices, finish, tuple(rereads), seed
        self.budget = BUDGET if budget is None else budget
        self._at_hand, self._points = ByteLRU(), dict[str, Point]()

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Trace({len(self)} tokens, {self.n_prompt} of them prompt, {mega(self.bytes)} kept)"

    @property
    def bytes(self) -> int:
        """What it keeps, and what was computed again and is still at hand."""
        held = [*self.kept.tensors.values(), *self._at_hand.tensors()]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())

    def names(self) -> list[str]:
        """Every point that can be asked for, in the order of a pass."""
        return list(points(self.config))

    def point(self, name: str) -> Point:
        """What the registry says of a point, looked up once. RequestError for a name that the model has not."""
        if name not in self._points:
            self._points[name] = find(self.config, name)
        return self._points[name]

    def axes(self, name: str) -> tuple[str, ...]:
        """The axes of a point, the batch's left out."""
        return tuple(axis.removeprefix("#") for axis in self.point(name).axes.split()[1:])

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a point, which is not computed for it."""
        known = self._lengths(name) | sizes(self.config, name)
        return tuple(known[axis] for axis in self.axes(name))

    def _lengths(self, name: str) -> dict[str, int]:
        return {"T": len(self), "S": len(self), "2": 2}

    def attention(self, layer: str) -> Attention | LatentAttention:
        """The module of "blocks.5.attn": its weights, its `spec` and its `config`."""
        return self.model.get_submodule(layer)  # pyright: ignore[reportReturnType]

    def visible(self, layer: str, query: Places = None) -> Tensor:
        """Which keys the queries of "blocks.5.attn" may look at: True at [T, S], or [S] of one query."""
        at = self.places("query", query)
        seen = self.kept.step(at, None, None).view(self.attention(layer).spec).visible()[0]
        return seen[0] if isinstance(query, int) else seen

    # ---- values

    def __getitem__(self, name: str) -> Value:
        """A point of all tokens. RequestError for a name that the model has not; CapacityError for one too large to be
        held at once, of which `at` and `rows` give parts.
        """
        self.point(name)
        if self.kept.get(name) is not None:
            return self.at(name)
        return self._value(name, self.hold(name, lambda: _found(self.at(name))))

    def at(self, name: str, positions: Places = None) -> Value:
        """A point at some tokens, computed for these alone; at one, without the axis T. None: at all of them."""
        return self.several([name], positions)[name]

    def several(self, names: Sequence[str], positions: Places = None) -> dict[str, Value]:
        """Several points at some tokens, those of one block by one run of it."""
        at = self.places("position", positions)
        found: dict[str, Value] = {}
        missing: dict[int | None, list[str]] = {}
        for name in names:
            axes = self.axes(name)
            tensor = self.kept.get(name, at if axes[0] == "T" else None)
            if tensor is not None:
                found[name] = Value(name, tensor, axes, 0.0, KEPT)
            elif name.endswith((".scores", ".probs")):
                found[name] = self._weighed(name, None, at)
            else:
                self._afford(name, len(self) if at is None else len(at))
                missing.setdefault(layer_of(name), []).append(name)
        for i, some in missing.items():
            live = [need for name in some for need in self._needs(name) if self.kept.get(need) is None]
            again = outside(self.kept, live, at) if i is None else self._in_block(i, live, at)
            for name in some:
                derive = name.endswith(".heads") and name not in again
                found[name] = self._heads(name, again, at) if derive else self._value(name, again)
        if isinstance(positions, int):
            return {name: found[name].without("T") if "T" in found[name].axes else found[name] for name in names}
        return {name: found[name] for name in names}

    def rows(self, name: str, head: Places = None, query: Places = None) -> Value:
        """Scores or probabilities of some heads and queries alone; one head or query: without its axis.

        t.rows("blocks.5.attn.probs", head=3, query=7) -> [S]
        """
        if not name.endswith((".scores", ".probs")):
            raise RequestError(f"rows are of scores and probs, and of {name!r} there is `at`", param="name")
        self.point(name)
        n_heads = sizes(self.config, name)["H"]
        some, at = self.places("head", head, n_heads), self.places("query", query)
        value = self._weighed(name, None if some is None else some.tolist(), at)
        value = value.without("T") if isinstance(query, int) else value
        return value.without("H") if isinstance(head, int) else value

    def hold(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` works out of this trace, only once while it stays at hand: see `at_hand.py`."""
        return self._at_hand.get(key, make)

    # ---- how they are found

    def _in_block(self, i: int, live: list[str], at: Tensor | None) -> Found:
        """Live points of a block; at a single token all of them are at hand from then on."""
        if at is not None and len(at) == 1:
            found = self._token(i, at)
            if all(name in found for name in live):
                return found
        return in_block(self.kept, i, live, at)

    def _token(self, i: int, at: Tensor) -> Found:
        return self.hold((i, int(at)), lambda: whole_block(self.kept, i, at))

    def _weighed(self, name: str, some: list[int] | None, at: Tensor | None) -> Value:
        layer, end = name.rsplit(".", 1)
        n_heads = sizes(self.config, name)["H"] if some is None else len(some)
        self._afford(name, len(self) if at is None else len(at), n_heads)
        if at is None or len(at) > 1:
            values, error = weighed(self.kept, layer, [end], some, at)
            return Value(name, values[end], self.axes(name), error, WEIGHED)
        key = (layer, None if some is None else tuple(some), int(at))
        return self._value(name, self.hold(key, lambda: self._row(layer, some, at)))

    def _row(self, layer: str, some: list[int] | None, at: Tensor) -> Found:
        """Scores and probabilities of one query."""
        i = layer_of(layer)
        assert i is not None
        values, error = weighed(self.kept, layer, list(UNSEEN), some, at, self._token(i, at))
        return {f"{layer}.{end}": (value, error, WEIGHED) for end, value in values.items()}

    def _needs(self, name: str) -> list[str]:
        layer, edited = name.removesuffix(".heads"), self.kept.editor is not None and self.kept.editor.wants(name)
        return [name] if layer == name or edited else [f"{layer}.z", f"{layer}.out"]

    def _heads(self, name: str, again: Found, at: Tensor | None) -> Value:
        layer = name.removesuffix(".heads")
        z, out = (again[need][0] if need in again else self.kept.of(need, at) for need in self._needs(name))
        with torch.no_grad():
            if self.kept.editor is not None and self.kept.editor.wants(f"{layer}.out"):  # changed after the heads
                i, end = layer_of(name), f"{layer}.out"
                assert i is not None
                out = run_block(self.kept, i, [end], at, end, before=end)[end]
            parts, error = heads(self.attention(layer).o, z[None], out[None])
        return Value(name, parts[0], self.axes(name), error, SUMMED)

    def _value(self, name: str, again: Found) -> Value:
        return Value(name, again[name][0], self.axes(name), *again[name][1:])

    def _afford(self, name: str, n_tokens: int, n_heads: int | None = None) -> None:
        """CapacityError where a value would take more than the budget."""
        itemsize = 4 if self.point(name).kind == "derived" else self.model.embed.weight.element_size()
        need = math.prod(self.shape(name)) * itemsize
        need = need * n_tokens // len(self)
        if n_heads is not None:
            need = need * n_heads // sizes(self.config, name)["H"]
        if need > self.budget:
            less = "rows(name, head, query)" if n_heads is not None else "at(name, positions)"
            raise CapacityError(
                f"{name} takes {mega(need)} here, and the budget is {mega(self.budget)}: ask for {less}"
            )

    def places(self, what: str, given: Places, size: int | None = None) -> Int[Tensor, "N"] | None:
        """Places on an axis, the text's where no size is given, as a tensor; negative ones from its end; None: all."""
        if given is None:
            return None
        size = len(self) if size is None else size
        some = [given] if isinstance(given, int) else list(given)
        for i in some:
            if isinstance(i, bool) or not isinstance(i, int) or not -size <= i < size:
                raise RequestError(f"{what} must be a whole number from 0 to {size - 1}, got {i!r}", param=what)
        return torch.tensor([i % size for i in some], dtype=torch.long, device=self.kept.ids.device)

    def place(self, what: str, given: int) -> int:
        """One place in the text, counted from its end where negative. RequestError where there is none."""
        found = self.places(what, given)
        assert found is not None
        return int(found[0])


def _found(value: Value) -> Found:
    return {value.name: (value.tensor, value.error, value.identity)}


def shown(data: bytes) -> str:
    """A token's bytes as text; bytes that are no whole character as <E2 80>."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"<{data.hex(' ').upper()}>"


def spelled(tokenizer: Tokenizer | None, token: int) -> str:
    """A token's own text; #17 where there is no tokenizer, or it has no such token."""
    if tokenizer is None:
        return f"#{token}"
    try:
        return shown(tokenizer.token_bytes(token))
    except TokenizerError:
        return f"#{token}"
