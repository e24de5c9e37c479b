"""One forward pass, told everything: positions, cache, how to attend, who is looking.

Step ---- layer(i) ----> LayerStep: the same pass, bound to one layer's slot and name
                           .rotation(rope)   cos and sin of this pass's positions
                           .keep(k, v)       these tokens' keys and values, and all they may look back at
                           .keep_source(f)   an encoder's keys and values, made once
                           .attend(...)      attention, by the backend the caller chose
                           .see(name, x)     where a tap may look, and change what flows on
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.config import LongScaling, RopeConfig
from glassformer.nn.attend import KV, Attend, AttendSpec, Visibility, attend_reference, attend_sdpa, visible
from glassformer.nn.rope import rotation


@runtime_checkable
class Tap(Protocol):
    """Made for one pass. `wants` a derived point (scores, probs, heads) only to change it: it is made then."""

    def wants(self, name: str) -> bool: ...
    def __call__(self, name: str, value: Tensor) -> Tensor: ...


@runtime_checkable
class Slot(Protocol):
    """One layer's place in a cache."""

    def keep(self, k: Tensor, v: Tensor) -> Any: ...
    def keep_source(self, make: Callable[[], tuple[Tensor, Tensor]]) -> Any: ...


@runtime_checkable
class Cache(Protocol):
    """What past tokens left behind, and where they are: see `cache/dense.py`."""

    source: EncodedSource | None

    @property
    def reach(self) -> Sequence[int]: ...  # how many tokens each row holds, or is known to hold in the end
    def layer(self, i: int) -> Slot: ...
    def view(self, spec: AttendSpec) -> Visibility: ...


@dataclass(frozen=True)
class EncodedSource:
    """What a decoder reads beside its own tokens: an encoder's output. Positions are -1 where it is padding."""

    states: Float[Tensor, "B S D"]
    positions: Int[Tensor, "#B S"]
    padded: bool = False

    def select(self, rows: Int[Tensor, "R"]) -> EncodedSource:
        """Only these rows, in this order; a row may be named several times."""
        one = self.positions.shape[0] == 1
        positions = self.positions if one else self.positions.index_select(0, rows)
        return EncodedSource(self.states.index_select(0, rows), positions, self.padded)

    def view(self, spec: AttendSpec, queries: Int[Tensor, "#B T"]) -> Visibility:
        """All of it but padding, whatever the query's own position."""
        return Visibility(queries, self.positions, visible(spec, queries, self.positions) if self.padded else None)


class Step:
    """What one pass needs beside the tokens.

    `positions` [B or 1, T] count the tokens a row holds, from 0; `padded` says that some are -1, padding at the right.
    Without a cache the pass sees its own tokens alone; `documents` [B, T] then says which document of a packed row a
    token belongs to, and attention never crosses from one to another. `source` is what cross-attention reads; a cache
    that was made for a source has it already. `types` [B, T] are of a model that tells types of tokens apart.
    """

    def __init__(
        self,
        positions: Int[Tensor, "#B T"],
        *,
        cache: Cache | None = None,
        attend: Attend = attend_sdpa,
        tap: Tap | None = None,
        documents: Int[Tensor, "B T"] | None = None,
        source: EncodedSource | None = None,
        types: Int[Tensor, "B T"] | None = None,
        padded: bool = False,
    ):
        assert cache is None or documents is None, "a cache says itself what a row sees; documents are of packed rows"
        self.positions, self.documents, self.types, self.padded = positions, documents, types, padded
        self.source = cache.source if source is None and cache is not None else source
        self.cache, self.backend, self.tap = cache, attend, tap
        self.prefix = ""
        self.views: dict[tuple, Visibility] = {}
        self.rotations: dict[tuple, tuple[Tensor, Tensor]] = {}

    @classmethod
    def of(cls, ids: Int[Tensor, "B T"], lengths: Sequence[int] | None = None, **rest: Any) -> Step:
        """A pass over whole rows: positions 0 to T-1, nothing kept. Past a row's length it is padding, seen by nobody.

        ValueError where there is not one length for each row, from 1 to T.
        """
        at = torch.arange(ids.shape[-1], device=ids.device)[None]
        if lengths is None:
            return cls(at, **rest)
        if len(lengths) != len(ids) or min(lengths) < 1 or max(lengths) > ids.shape[-1]:
            raise ValueError(f"lengths must be {len(ids)} numbers from 1 to {ids.shape[-1]}, got {list(lengths)}")
        if min(lengths) == ids.shape[-1]:
            return cls(at, **rest)
        ends = torch.tensor(list(lengths), device=ids.device)[:, None]
        return cls(torch.where(at < ends, at, -1), padded=True, **rest)

    def inside(self, prefix: str) -> Step:
        """The same pass, its points named under `prefix` ("encoder.")."""
        step = copy.copy(self)
        step.prefix = self.prefix + prefix
        return step

    def at(self, positions: Int[Tensor, "*#B"]) -> Step:
        """The same pass, for values that have some of its tokens only: the last of each row, whose logits are read."""
        step = copy.copy(self)
        step.positions = positions
        return step

    def prepare(self, specs: Iterable[AttendSpec], ropes: Iterable[tuple[RopeConfig, int]]) -> None:
        """Make what layers share once, before the blocks, which then only read it (compiled ones too)."""
        for spec in specs:
            self.view(spec)
        for rope, head_dim in ropes:
            self.rotation(rope, head_dim)

    def view(self, spec: AttendSpec) -> Visibility:
        """What this pass's queries may look at under `spec`."""
        key = (spec.causal, spec.window, spec.source)
        if key not in self.views:
            self.views[key] = self._view(spec)
        return self.views[key]

    def _view(self, spec: AttendSpec) -> Visibility:
        if spec.source:
            if self.source is None:
                raise AssertionError("cross-attention needs a Step with a source")
            return self.source.view(spec, self.positions)
        if self.cache is not None:
            return self.cache.view(spec)
        length = self.positions.shape[-1]
        plain = self.documents is None and (spec.window is None or spec.window >= length)
        plain = plain and (spec.causal or not self.padded)  # padding at the right is later than all that is read
        mask = None if plain else visible(spec, self.positions, self.positions, self.documents)
        return Visibility(self.positions, self.positions, mask, causal=plain and spec.causal)

    def rotation(self, rope: RopeConfig, head_dim: int) -> tuple[Float[Tensor, "#B T 1 R"], Float[Tensor, "#B T 1 R"]]:
        """cos and sin for this pass's positions."""
        key = (rope, head_dim)
        if key not in self.rotations:
            self.rotations[key] = rotation(rope, head_dim, self.positions, self._lengths(rope))
        return self.rotations[key]

    def _lengths(self, rope: RopeConfig) -> Int[Tensor, "#B #T"] | None:
        """How many tokens each one's text has, as far as that is known; None: as the positions say."""
        if not isinstance(rope.scaling, LongScaling):
            return None
        if self.cache is not None:
            return torch.tensor(self.cache.reach, device=self.positions.device)[:, None]
        if self.documents is None:
            return None
        same = self.documents[:, :, None] == self.documents[:, None, :]
        return self.positions[:, None].where(same, -1).amax(-1) + 1

    def layer(self, i: int, bias: Tensor | None = None) -> LayerStep:
        """The same pass, bound to layer `i`. `bias` [#B, H, T, S] is what its own scores get added (T5)."""
        return LayerStep(self, f"{self.prefix}blocks.{i}.", None if self.cache is None else self.cache.layer(i), bias)

    def see(self, name: str, value: Tensor) -> Tensor:
        """Let the tap look at a point outside the blocks."""
        if self.tap is None:
            return value
        name = self.prefix + name
        return self.tap(name, value) if self.tap.wants(name) else value


class LayerStep:
    """A `Step` bound to one layer. A block never learns which."""

    __slots__ = ("bias", "prefix", "slot", "step", "tap")

    def __init__(self, step: Step, prefix: str, slot: Slot | None, bias: Tensor | None = None):
        self.step, self.prefix, self.slot, self.tap, self.bias = step, prefix, slot, step.tap, bias

    def rotation(self, rope: RopeConfig, head_dim: int) -> tuple[Tensor, Tensor]:
        return self.step.rotation(rope, head_dim)

    def view(self, spec: AttendSpec) -> Visibility:
        return self.step.view(spec)

    def keep(self, k: Float[Tensor, "B T Hkv Dh"], v: Float[Tensor, "B T Hkv Dv"]) -> Any:
        """Keep these tokens' keys and values; returns all that the pass may look back at (opaque: for `attend`)."""
        return KV(k, v) if self.slot is None else self.slot.keep(k, v)

    @property
    def source(self) -> Float[Tensor, "B S D"]:
        """The encoder's output."""
        assert self.step.source is not None
        return self.step.source.states

    def keep_source(self, make: Callable[[], tuple[Tensor, Tensor]]) -> Any:
        """An encoder's keys and values: made the first time, then kept for every later step."""
        return KV(*make()) if self.slot is None else self.slot.keep_source(make)

    def attend(
        self,
        spec: AttendSpec,
        q: Float[Tensor, "B T H Dh"],
        kv: Any,
        *,
        bias: Tensor | None = None,
        sinks: Tensor | None = None,
        name: str = "attn",
    ) -> Float[Tensor, "B T H Dv"]:
        """softmax(q k^T * scale) v. An edit of scores or probabilities selects the definition, which has them."""
        view = self.step.view(spec)
        if self.wants(f"{name}.scores", f"{name}.probs"):
            see = lambda end, value: self.see(f"{name}.{end}", value)  # noqa: E731
            return attend_reference(spec, q, kv, view, bias, sinks, see)[0]
        return self.step.backend(spec, q, kv, view, bias, sinks)

    def wants(self, *names: str) -> bool:
        """Whether the tap looks at any of these points of this layer."""
        return self.tap is not None and any(self.tap.wants(self.prefix + name) for name in names)

    def see(self, name: str, value: Tensor) -> Tensor:
        """Let the tap look at a point of this layer; returns what flows on."""
        if self.tap is None:
            return value
        name = self.prefix + name
        return self.tap(name, value) if self.tap.wants(name) else value
