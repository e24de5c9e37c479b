"""Protocols of a forward pass: a tap that observes it, a cache of past tokens, an encoder's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from glassformer.nn.attend import AttendSpec, Visibility, visible


@runtime_checkable
class Tap(Protocol):
    """Observes and may change the tap points of one forward pass; a call returns the value to continue with.

    `wants` is true for a derived point (scores, probs, heads) only to change it, because computing it is slower.
    """

    def wants(self, name: str) -> bool: ...
    def __call__(self, name: str, value: Tensor) -> Tensor: ...


@runtime_checkable
class Slot(Protocol):
    """The part of a cache that belongs to one layer."""

    def keep(self, k: Tensor, v: Tensor) -> Any:
        """Store new keys and values; return all that the queries may see, in the form that `attend` takes."""
        ...

    def keep_source(self, make: Callable[[], tuple[Tensor, Tensor]]) -> Any:
        """Return an encoder's keys and values: computed by `make()` the first time, then cached."""
        ...


@runtime_checkable
class StepCache(Protocol):
    """The part of a cache that a forward pass uses."""

    source: EncodedSource | None

    @property
    def reach(self) -> Sequence[int]:
        """The length of each sequence, or its final length if that is known."""
        ...

    def view(self, spec: AttendSpec) -> Visibility:
        """Return which stored keys the queries of this forward pass see, in the order of `Slot.keep`."""
        ...

    def layer(self, i: int) -> Slot: ...


@runtime_checkable
class Cache(StepCache, Protocol):
    """Keys and values of past tokens. The cache owns storage, positions and the mask: see `cache/dense.py`."""

    def extend(self, counts: Sequence[int]) -> Int[Tensor, "#B T"]:
        """Begin a forward pass that adds `counts[b]` tokens to sequence b; return their positions, -1 for padding."""
        ...

    def select(self, sequences: Sequence[int]) -> None:
        """Select sequences, in this order; one may be repeated."""
        ...

    def truncate(self, lengths: Sequence[int]) -> None:
        """Truncate each sequence b to its first `lengths[b]` tokens."""
        ...


@dataclass(frozen=True)
class EncodedSource:
    """An encoder's output, the source of cross-attention. Positions are -1 at padding."""

    states: Float[Tensor, "B S D"]
    positions: Int[Tensor, "#B S"]
    padded: bool = False

    def select(self, sequences: Int[Tensor, "R"]) -> EncodedSource:
        """Return these sequences, in this order; one may be repeated."""
        shared = self.positions.shape[0] == 1
        positions = self.positions if shared else self.positions.index_select(0, sequences)
        return EncodedSource(self.states.index_select(0, sequences), positions, self.padded)

    def view(self, spec: AttendSpec, queries: Int[Tensor, "#B T"]) -> Visibility:
        """Return a view in which every query sees all positions except padding."""
        return Visibility(queries, self.positions, visible(spec, queries, self.positions) if self.padded else None)
