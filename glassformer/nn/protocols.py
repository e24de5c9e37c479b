"""What a forward pass needs from outside: a tap that observes it, a cache of past tokens, an encoder's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from glassformer.nn.attend import AttendSpec, Visibility, visible


@runtime_checkable
class Tap(Protocol):
    """Observes and may change the named points of one forward pass: returns the value that the pass continues with.

    `wants` a derived point (scores, probs, heads) only to change it: the pass computes it then.
    """

    def wants(self, name: str) -> bool: ...
    def __call__(self, name: str, value: Tensor) -> Tensor: ...


@runtime_checkable
class Slot(Protocol):
    """The part of a cache that belongs to one layer."""

    def keep(self, k: Tensor, v: Tensor) -> Any:
        """Store new keys and values; return all that this pass's queries may see (opaque: `attend` reads it)."""
        ...

    def keep_source(self, make: Callable[[], tuple[Tensor, Tensor]]) -> Any:
        """Return an encoder's keys and values: `make()` the first time, then the stored ones."""
        ...


@runtime_checkable
class StepCache(Protocol):
    """What one forward pass reads of a cache."""

    source: EncodedSource | None

    @property
    def reach(self) -> Sequence[int]:
        """How many tokens each sequence has, or is known to get."""
        ...

    def view(self, spec: AttendSpec) -> Visibility:
        """Return which stored keys the queries of this pass see, in the order in which `Slot.keep` returns them."""
        ...

    def layer(self, i: int) -> Slot: ...


@runtime_checkable
class Cache(StepCache, Protocol):
    """Keys and values of past tokens. The cache owns storage, positions and the mask: see `cache/dense.py`."""

    def extend(self, counts: Sequence[int]) -> Int[Tensor, "#B T"]:
        """Begin a pass that brings `counts[b]` tokens to sequence b; return their positions, -1 for padding."""
        ...

    def select(self, sequences: Sequence[int]) -> None:
        """Replace the sequences by these, in this order; one may be repeated."""
        ...

    def truncate(self, lengths: Sequence[int]) -> None:
        """Drop the last tokens of each sequence, so that `lengths[b]` are left."""
        ...


@dataclass(frozen=True)
class EncodedSource:
    """An encoder's output, which cross-attention reads. Positions are -1 at padding."""

    states: Float[Tensor, "B S D"]
    positions: Int[Tensor, "#B S"]
    padded: bool = False

    def select(self, sequences: Int[Tensor, "R"]) -> EncodedSource:
        """Return these sequences, in this order; one may be repeated."""
        shared = self.positions.shape[0] == 1
        positions = self.positions if shared else self.positions.index_select(0, sequences)
        return EncodedSource(self.states.index_select(0, sequences), positions, self.padded)

    def view(self, spec: AttendSpec, queries: Int[Tensor, "#B T"]) -> Visibility:
        """Every query sees every position but padding."""
        return Visibility(queries, self.positions, visible(spec, queries, self.positions) if self.padded else None)
