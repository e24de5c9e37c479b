"""The arguments of one forward pass: everything that modules need in addition to their input.

Step          positions, cache, attention backend, tap; masks and rotations, computed once per forward pass
LayerStep     the same forward pass, bound to one layer: .keep(k, v)  .attend(...)  .see(name, x)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.config import LongScaling, RopeConfig
from glassformer.nn.attend import KV, Attend, AttendSpec, Visibility, attend_reference, attend_sdpa, visible
from glassformer.nn.protocols import EncodedSource, Slot, StepCache, Tap
from glassformer.nn.rope import rotation


class Step:
    """The arguments of one forward pass.

    Args:
        positions: the position of each token in its sequence, from 0; [1, T] if all sequences have the same.
        cache: keys and values of past tokens; None: tokens see only each other.
        attend: the attention backend (`kernels/attention.py` has faster ones).
        tap: observes and may change the tap points of the forward pass.
        documents: the index of each token's document in a packed sequence; attention stays within a document.
        source: the encoder's output, for cross-attention; by default that of the cache.
        types: the token types, for models that have them.
        padded: whether some positions are -1 (padding at the right).
    """

    def __init__(
        self,
        positions: Int[Tensor, "#B T"],
        *,
        cache: StepCache | None = None,
        attend: Attend = attend_sdpa,
        tap: Tap | None = None,
        documents: Int[Tensor, "B T"] | None = None,
        source: EncodedSource | None = None,
        types: Int[Tensor, "B T"] | None = None,
        padded: bool = False,
    ):
        assert cache is None or documents is None, "a cache and packed documents cannot be combined"
        self.positions, self.documents, self.types, self.padded = positions, documents, types, padded
        self.source = cache.source if source is None and cache is not None else source
        self.cache, self.backend, self.tap = cache, attend, tap
        self.prefix = ""
        self.views: dict[tuple, Visibility] = {}
        self.rotations: dict[tuple, tuple[Tensor, Tensor]] = {}

    @classmethod
    def of(cls, ids: Int[Tensor, "B T"], lengths: Sequence[int] | None = None, **rest: Any) -> Step:
        """Return the arguments for complete sequences, positions 0 to T-1, without a cache.

        Tokens beyond a sequence's length are padding, which no token sees.

        Raises:
            ValueError: `lengths` does not have one length from 1 to T per sequence.
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
        """Return a copy whose tap points have the prefix `prefix` ("encoder.")."""
        step = copy.copy(self)
        step.prefix = self.prefix + prefix
        return step

    def at(self, positions: Int[Tensor, "*#B"]) -> Step:
        """Return a copy for some of the tokens only, such as the last of each sequence for the head."""
        step = copy.copy(self)
        step.positions = positions
        return step

    def prepare(self, specs: Iterable[AttendSpec], ropes: Iterable[tuple[RopeConfig, int]]) -> None:
        """Compute the masks and rotations of all layers, so that blocks (compiled ones too) only read them."""
        for spec in specs:
            self.view(spec)
        for rope, head_dim in ropes:
            self.rotation(rope, head_dim)

    def view(self, spec: AttendSpec) -> Visibility:
        """Return which keys the queries of this forward pass see under `spec`."""
        key = (spec.causal, spec.window, spec.source)
        if key not in self.views:
            self.views[key] = self._view(spec)
        return self.views[key]

    def _view(self, spec: AttendSpec) -> Visibility:
        if spec.source:
            assert self.source is not None, "cross-attention needs a Step with a source"
            return self.source.view(spec, self.positions)
        if self.cache is not None:
            return self.cache.view(spec)
        length = self.positions.shape[-1]
        plain = self.documents is None and (spec.window is None or spec.window >= length)
        plain = plain and (spec.causal or not self.padded)  # a causal query never sees padding at the right
        mask = None if plain else visible(spec, self.positions, self.positions, self.documents)
        return Visibility(self.positions, self.positions, mask, causal=plain and spec.causal)

    def rotation(self, rope: RopeConfig, head_dim: int) -> tuple[Float[Tensor, "#B T 1 R"], Float[Tensor, "#B T 1 R"]]:
        """Return cos and sin of the rotary angles at this forward pass's positions."""
        key = (rope, head_dim)
        if key not in self.rotations:
            self.rotations[key] = rotation(rope, head_dim, self.positions, self._lengths(rope))
        return self.rotations[key]

    def _lengths(self, rope: RopeConfig) -> Int[Tensor, "#B #T"] | None:
        """Return the length of the text of each token, for a `LongScaling`; None: one text per sequence."""
        if not isinstance(rope.scaling, LongScaling):
            return None
        if self.cache is not None:
            return torch.tensor(self.cache.reach, device=self.positions.device)[:, None]
        if self.documents is None:
            return None
        same = self.documents[:, :, None] == self.documents[:, None, :]
        return self.positions[:, None].where(same, -1).amax(-1) + 1

    def layer(self, i: int, bias: Tensor | None = None) -> LayerStep:
        """Return the arguments for layer `i`. `bias` [#B, H, T, S] is added to its self-attention scores (T5)."""
        return LayerStep(self, f"{self.prefix}blocks.{i}.", None if self.cache is None else self.cache.layer(i), bias)

    def see(self, name: str, value: Tensor) -> Tensor:
        """Pass a value outside the blocks to the tap; return the value to continue with."""
        if self.tap is None:
            return value
        name = self.prefix + name
        return self.tap(name, value) if self.tap.wants(name) else value


class LayerStep:
    """A `Step` bound to one layer. The modules of a layer do not depend on its index."""

    __slots__ = ("bias", "prefix", "slot", "step", "tap")

    def __init__(self, step: Step, prefix: str, slot: Slot | None, bias: Tensor | None = None):
        self.step, self.prefix, self.slot, self.tap, self.bias = step, prefix, slot, step.tap, bias

    def rotation(self, rope: RopeConfig, head_dim: int) -> tuple[Tensor, Tensor]:
        return self.step.rotation(rope, head_dim)

    def view(self, spec: AttendSpec) -> Visibility:
        return self.step.view(spec)

    def keep(self, k: Float[Tensor, "B T Hkv Dh"], v: Float[Tensor, "B T Hkv Dv"]) -> Any:
        """Store the new keys and values; return all that the queries may see, in the form that `attend` takes."""
        return KV(k, v) if self.slot is None else self.slot.keep(k, v)

    @property
    def source(self) -> Float[Tensor, "B S D"]:
        """The encoder's output."""
        assert self.step.source is not None
        return self.step.source.states

    def keep_source(self, make: Callable[[], tuple[Tensor, Tensor]]) -> Any:
        """Return the source's keys and values, computed by `make` once and then cached."""
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
        """Return z = softmax(q k^T * scale) v, with `attend_reference` if the tap changes scores or probabilities."""
        view = self.step.view(spec)
        if self.wants(f"{name}.scores", f"{name}.probs"):
            return attend_reference(
                spec, q, kv, view, bias, sinks, lambda end, value: self.see(f"{name}.{end}", value)
            )[0]
        return self.step.backend(spec, q, kv, view, bias, sinks)

    def wants(self, *names: str) -> bool:
        """Whether the tap wants any of these points of this layer."""
        return self.tap is not None and any(self.tap.wants(self.prefix + name) for name in names)

    def see(self, name: str, value: Tensor) -> Tensor:
        """Pass a value of this layer to the tap; return the value to continue with."""
        if self.tap is None:
            return value
        name = self.prefix + name
        return self.tap(name, value) if self.tap.wants(name) else value
