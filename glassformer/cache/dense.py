"""The dense cache: storage for the same number of positions of every sequence, which doubles when it is full.

    layer without a window: slot = position        | k0 | k1 | k2 | k3 |    |    |     visible: slot <= query
    layer with window W:    slot = position mod W  | k4 | k5 | k2 | k3 |               a ring of the last W

Sequences may have different lengths. A forward pass first calls `extend` with the number of new tokens per sequence,
which returns their positions. Then each layer stores its keys and values and gets all that its queries may see.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.config import ModelConfig
from glassformer.errors import CapacityError
from glassformer.nn.attend import KV, AttendSpec, Visibility, visible
from glassformer.nn.protocols import EncodedSource

MIN_ROOM = 32  # positions


class DenseCache:
    """Keys and values of `batch` sequences of at most `capacity` tokens, in the shape and dtype of each layer.

    Memory is used for at most twice the tokens of the longest sequence: `room` positions are allocated.

    Args:
        windows: the window of each layer; None: the layer sees all tokens.
        source: an encoder's output, one per sequence, for an encoder-decoder.
        long_text: `ModelConfig.long_text`. A shorter sequence cannot grow to as many tokens, because its cached keys
            have other rotary angles.
        reach: the final length of each sequence, if that is known before its first forward pass.
    """

    def __init__(
        self,
        windows: Sequence[int | None],
        batch: int,
        capacity: int,
        device: torch.device | str = "cpu",
        source: EncodedSource | None = None,
        long_text: int | None = None,
        reach: Sequence[int] | None = None,
    ):
        self.source, self.long_text = source, long_text
        self.reach = list(reach or [0] * batch)
        self.capacity, self.room, self.device = capacity, 0, torch.device(device)
        self.lengths = [0] * batch
        self.slots = [
            RingSlot(self, window) if window is not None and window < capacity else FullSlot(self) for window in windows
        ]
        self.counts: list[int] = [0] * batch
        # set by `extend` for the current forward pass; compiled blocks use these numbers, not the lists above
        self.uniform = True  # all sequences have the same length and the same number of new tokens
        self.old = self.end = 0  # length of the longest sequence, before and after the forward pass

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        batch: int,
        capacity: int,
        device: torch.device | str = "cpu",
        source: EncodedSource | None = None,
        reach: Sequence[int] | None = None,
    ) -> DenseCache:
        """Return a cache for a model. Raises CapacityError if `capacity` exceeds its context."""
        if capacity > config.context_length:
            raise CapacityError(f"{capacity} tokens do not fit: the model's context holds {config.context_length}")
        windows = [layer.attention.window for layer in config.layers]
        return cls(windows, batch, capacity, device, source, config.long_text, reach)

    @property
    def bytes(self) -> int:
        """The size of the stored keys and values, a source's included."""
        return sum(t.nbytes for slot in self.slots for t in slot.tensors())

    def extend(self, counts: Sequence[int]) -> Int[Tensor, "#B T"]:
        """Begin a forward pass that adds `counts[b]` tokens to sequence b; return their positions, -1 for padding.

        Raises:
            CapacityError: a sequence would exceed the capacity, or grow from a short text to a long one. The cache is
                unchanged.
        """
        lengths = [old + new for old, new in zip(self.lengths, counts, strict=True)]
        if max(lengths) > self.capacity:
            b = lengths.index(max(lengths))
            raise CapacityError(
                f"sequence {b} would have {lengths[b]} tokens, and the cache has room for {self.capacity}: "
                "use a shorter prompt or generate fewer tokens"
            )
        reach = [max(old, new) for old, new in zip(self.reach, lengths, strict=True)]
        for b, (length, old, new) in enumerate(zip(self.lengths, self.reach, reach, strict=True)):
            if self.long_text is not None and length and old < self.long_text <= new:
                raise CapacityError(
                    f"sequence {b} would grow to {new} tokens: from {self.long_text} on this model rotates all "
                    "positions by other angles; process the sequence again from its start"
                )
        self.lengths, self.counts, self.reach = lengths, list(counts), reach
        if max(lengths) > self.room:
            self.room = min(max(2 * self.room, *reach, MIN_ROOM), self.capacity)
            for slot in self.slots:
                slot.grow()
        width = max(counts)
        self.uniform = len(set(lengths)) == 1 and len(set(counts)) == 1
        self.old, self.end = max(n - c for n, c in zip(lengths, counts, strict=True)), max(lengths)
        if self.uniform:
            self.positions = torch.arange(lengths[0] - width, lengths[0], device=self.device)[None]
            return self.positions
        steps = torch.arange(width)
        starts = torch.tensor([n - c for n, c in zip(lengths, counts, strict=True)])[:, None]
        self.positions = torch.where(steps < torch.tensor(counts)[:, None], starts + steps, -1).to(self.device)
        # (sequence, index among the new tokens, position) of each token that is not padding, for all layers
        self.sequence, self.index = (self.positions >= 0).nonzero(as_tuple=True)
        self.position = self.positions[self.sequence, self.index]
        self.sequence_end = torch.tensor(lengths, device=self.device)[self.sequence]
        return self.positions

    def truncate(self, lengths: Sequence[int]) -> None:
        """Truncate each sequence b to its first `lengths[b]` tokens.

        Raises:
            ValueError: a length is negative or above the sequence's own.
            CapacityError: a layer with a window no longer stores the tokens that would become visible again, or a long
                text would become a short one. The cache is unchanged.
        """
        for b, (old, new) in enumerate(zip(self.lengths, lengths, strict=True)):
            if not 0 <= new <= old:
                raise ValueError(f"lengths[{b}] must be from 0 to {old}, the tokens of sequence {b}, got {new}")
            window = min((slot.size for slot in self.slots if isinstance(slot, RingSlot)), default=self.capacity)
            if 0 < new < old and old > window:
                raise CapacityError(
                    f"sequence {b} cannot be cut from {old} to {new} tokens: a layer with a window of {window} has "
                    "overwritten earlier tokens; process the sequence again from its start"
                )
            if self.long_text is not None and 0 < new < self.long_text <= self.reach[b]:
                raise CapacityError(
                    f"sequence {b} cannot be cut to {new} tokens: below {self.long_text} this model rotates all "
                    "positions by other angles; process the sequence again from its start"
                )
        self.lengths = list(lengths)
        self.reach = [0 if new == 0 else reach for new, reach in zip(lengths, self.reach, strict=True)]
        self.end = max(self.lengths)

    def layer(self, i: int) -> FullSlot | RingSlot:
        return self.slots[i]

    def view(self, spec: AttendSpec) -> Visibility:
        """Return which stored keys the queries of this forward pass see, in the order in which `keep` returns them."""
        if spec.window is not None and spec.window < self.capacity:
            keys = self._ring_keys(spec.window)
        else:
            keys = torch.arange(self.end, device=self.device)[None]
        width = self.positions.shape[-1]
        if self.uniform and (width == 1 or width == keys.shape[-1]) and (spec.window or width) >= width:
            return Visibility(self.positions, keys, None, causal=width > 1)
        return Visibility(self.positions, keys, visible(spec, self.positions, keys))

    def _ring_keys(self, window: int) -> Int[Tensor, "#B S"]:
        """Return the positions of a ring's keys: of the ring alone for one token, of ring and chunk for several."""
        one = self.positions.shape[-1] == 1
        sequences = range(1 if self.uniform else len(self.lengths))
        lengths = torch.tensor([self.lengths[b] - (0 if one else self.counts[b]) for b in sequences])[:, None]
        slots = torch.arange(min(window, int(lengths.max())))
        last = lengths - 1 - (lengths - 1 - slots) % window  # the last position that was written to each slot
        last = torch.where(last >= 0, last, -1).to(self.device)
        return last if one else torch.cat([last, self.positions.expand(len(last), -1)], -1)

    def select(self, sequences: Sequence[int]) -> None:
        """Select sequences, in this order; one may be repeated (continuations of one prompt)."""
        index = torch.tensor(list(sequences), device=self.device)
        for slot in self.slots:
            slot.select(index)
        if self.source is not None:
            self.source = self.source.select(index)
        self.lengths = [self.lengths[b] for b in sequences]
        self.counts = [self.counts[b] for b in sequences]
        self.reach = [self.reach[b] for b in sequences]


class FullSlot:
    """One layer's keys and values, slot = position. Stored [B, Hkv, S, Dh], so that a head's keys are contiguous."""

    def __init__(self, cache: DenseCache):
        self.cache = weakref.proxy(cache)  # no cycle: the storage is freed with the last reference to the cache
        self.size = cache.capacity
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self.source: tuple[Tensor, Tensor] | None = None  # [B, Hkv, S, Dh] too

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.k, self.v, *(self.source or ())) if t is not None]

    def select(self, sequences: Int[Tensor, "B"]) -> None:
        """Select sequences."""
        if self.k is not None and self.v is not None:
            self.k, self.v = (stored.index_select(0, sequences) for stored in (self.k, self.v))
        if self.source is not None:
            k, v = self.source
            self.source = k.index_select(0, sequences), v.index_select(0, sequences)

    def grow(self) -> None:
        """Give stored keys and values as many slots as the cache has room for. Compiled blocks only allocate."""
        self.k, self.v = (stored if stored is None else self._with_room(stored) for stored in (self.k, self.v))

    def _with_room(self, stored: Float[Tensor, "B Hkv S Dh"]) -> Float[Tensor, "B Hkv R Dh"]:
        """Return stored keys or values in at least as many slots. Zeros, not NaN: hidden values are multiplied by 0."""
        batch, heads, slots, size = stored.shape
        room = min(self.size, self.cache.room)
        if slots == room:
            return stored
        larger = stored.new_zeros(batch, heads, room, size)
        larger[:, :, :slots] = stored
        return larger

    def storage(self, k: Float[Tensor, "B T Hkv Dh"], v: Float[Tensor, "B T Hkv Dv"]) -> tuple[Tensor, Tensor]:
        """Return the storage. The first forward pass allocates it in the shape and dtype of its keys and values."""
        if self.k is None or self.v is None:
            self.k, self.v = (self._with_room(new[:, :0].transpose(1, 2)) for new in (k, v))
        return self.k, self.v

    def direct_storage(self, n_heads: int, head_dim: int) -> tuple[Tensor, Tensor] | None:
        """Return the storage [B, Hkv, S, Dh], into which the caller stores the keys of position t at slot t mod S.

        None: this forward pass would overwrite keys that it reads.
        """
        if self.k is not None and self.v is not None:
            return self.k, self.v
        new = torch.empty(len(self.cache.lengths), 0, n_heads, head_dim, device=self.cache.device)
        return self.storage(new, new)

    def keep(self, k: Float[Tensor, "B T Hkv Dh"], v: Float[Tensor, "B T Hkv Dv"]) -> KV:
        """Store these tokens at their positions; return every slot up to the longest sequence, as [B, S, Hkv, Dh]."""
        cache = self.cache
        for stored, new in zip(self.storage(k, v), (k, v), strict=True):
            if cache.uniform:
                stored[:, :, cache.old : cache.end] = new.transpose(1, 2)
            else:
                stored[cache.sequence, :, cache.position] = new[cache.sequence, cache.index]
        return self._read(slice(0, cache.end))

    def _read(self, slots: slice) -> KV:
        assert self.k is not None
        assert self.v is not None
        return KV(self.k[:, :, slots].transpose(1, 2), self.v[:, :, slots].transpose(1, 2))

    def keep_source(self, make: Callable[[], tuple[Tensor, Tensor]]) -> KV:
        """Return an encoder's keys and values: computed by `make()` the first time, then cached."""
        if self.source is None:
            k, v = make()
            self.source = k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()
        k, v = self.source
        return KV(k.transpose(1, 2), v.transpose(1, 2))


class RingSlot(FullSlot):
    """One layer's last `window` keys and values, slot = position mod window."""

    def __init__(self, cache: DenseCache, window: int):
        super().__init__(cache)
        self.size = window

    def direct_storage(self, n_heads: int, head_dim: int) -> tuple[Tensor, Tensor] | None:
        overwrites = self.cache.end > self.size and self.cache.positions.shape[-1] > 1
        return None if overwrites else super().direct_storage(n_heads, head_dim)

    def keep(self, k: Float[Tensor, "B T Hkv Dh"], v: Float[Tensor, "B T Hkv Dv"]) -> KV:
        """One token: store it, then return the ring. Several: return the old ring and the tokens, then store them."""
        self.storage(k, v)
        if k.shape[1] == 1:
            self._store(k, v)
            return self._read(slice(0, min(self.size, self.cache.end)))
        before = self._read(slice(0, min(self.size, self.cache.old)))
        kv = KV(torch.cat([before.k, k], 1), torch.cat([before.v, v], 1))
        self._store(k, v)
        return kv

    def _store(self, k: Tensor, v: Tensor) -> None:
        cache, tensors = self.cache, self.storage(k, v)
        if cache.uniform:
            last = slice(-min(self.size, k.shape[1]), None)
            slots = cache.positions[0, last] % self.size
            for stored, new in zip(tensors, (k, v), strict=True):
                stored[:, :, slots] = new[:, last].transpose(1, 2)
            return
        newest = cache.position >= cache.sequence_end - self.size  # if two tokens share a slot, only the later one
        sequence, index, slots = cache.sequence[newest], cache.index[newest], cache.position[newest] % self.size
        for stored, new in zip(tensors, (k, v), strict=True):
            stored[sequence, :, slots] = new[sequence, index]
