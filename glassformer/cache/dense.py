"""The dense cache: one row of slots per sequence, allocated once.

    layer without a window: slot = position        | k0 | k1 | k2 | k3 |    |    |     visible: slot <= query
    layer with window W:    slot = position mod W  | k4 | k5 | k2 | k3 |               a ring of the last W

Rows may hold different numbers of tokens. A pass tells the cache first how many each row brings (`extend`), which
gives the positions; then each layer keeps its keys and values, and sees all that its queries may look back at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.config import ModelConfig
from glassformer.errors import CapacityError
from glassformer.nn.attend import KV, AttendSpec, Visibility, visible
from glassformer.nn.step import EncodedSource


class DenseCache:
    """Keys and values of `batch` sequences of at most `capacity` tokens, in whatever shape and dtype layers bring.

    `source` is what the sequences are written from, a row for each, in an encoder-decoder. `long_text` is
    `ModelConfig.long_text`: a row that has fewer tokens cannot grow to as many, for what was kept would have to be made
    anew. `reach`, one number per row, says how long it will be, where that is known before it is read in parts.
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
        self.capacity, self.device = capacity, torch.device(device)
        self.lengths = [0] * batch
        self.slots = [
            RingSlot(self, window) if window is not None and window < capacity else FullSlot(self) for window in windows
        ]
        self.counts: list[int] = [0] * batch
        # of the pass that `extend` began: all that layers read, so that a compiled block sees sizes, not lists of them
        self.uniform = True  # every row holds the same number of tokens and brings the same number
        self.old = self.end = 0  # tokens of the longest row, before and after

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
        """A cache for this model. CapacityError where `capacity` is past its context."""
        if capacity > config.context_length:
            raise CapacityError(f"{capacity} tokens do not fit: the model's context holds {config.context_length}")
        windows = [layer.attention.window for layer in config.layers]
        return cls(windows, batch, capacity, device, source, config.long_text, reach)

    @property
    def bytes(self) -> int:
        """What the kept keys and values take, a source's too."""
        return sum(t.nbytes for slot in self.slots for t in slot.tensors())

    def extend(self, counts: Sequence[int]) -> Int[Tensor, "#B T"]:
        """Make room for `counts[b]` more tokens in row b. Returns their positions, -1 for padding at the right.

        CapacityError when a row would grow past the capacity, or from a short text to a long one; nothing is changed
        then.
        """
        lengths = [old + new for old, new in zip(self.lengths, counts, strict=True)]
        if max(lengths) > self.capacity:
            row = lengths.index(max(lengths))
            raise CapacityError(
                f"row {row} would hold {lengths[row]} tokens, and there is room for {self.capacity}: "
                "give a shorter prompt or ask for fewer tokens"
            )
        reach = [max(pair) for pair in zip(self.reach, lengths, strict=True)]
        for row, (kept, old, new) in enumerate(zip(self.lengths, self.reach, reach, strict=True)):
            if self.long_text is not None and kept and old < self.long_text <= new:
                raise CapacityError(
                    f"row {row} would grow to {new} tokens: from {self.long_text} on this model turns all positions by "
                    "other angles, so that the row must be read anew"
                )
        self.lengths, self.counts, self.reach = lengths, list(counts), reach
        width = max(counts)
        self.uniform = len(set(lengths)) == 1 and len(set(counts)) == 1
        self.old, self.end = max(n - c for n, c in zip(lengths, counts, strict=True)), max(lengths)
        if self.uniform:
            self.positions = torch.arange(lengths[0] - width, lengths[0], device=self.device)[None]
            return self.positions
        steps = torch.arange(width)
        starts = torch.tensor([n - c for n, c in zip(lengths, counts, strict=True)])[:, None]
        self.positions = torch.where(steps < torch.tensor(counts)[:, None], starts + steps, -1).to(self.device)
        # which (row, place in the pass, position) each real token has: made once here, used by every layer
        self.row, self.place = (self.positions >= 0).nonzero(as_tuple=True)
        self.position = self.positions[self.row, self.place]
        self.row_end = torch.tensor(lengths, device=self.device)[self.row]
        return self.positions

    def layer(self, i: int) -> FullSlot | RingSlot:
        return self.slots[i]

    def view(self, spec: AttendSpec) -> Visibility:
        """What this pass's queries see of the kept keys, in the order in which `keep` returns them."""
        if spec.window is not None and spec.window < self.capacity:
            keys = self._ring_keys(spec.window)
        else:
            keys = torch.arange(self.end, device=self.device)[None]
        width = self.positions.shape[-1]
        if self.uniform and (width == 1 or width == keys.shape[-1]) and (spec.window or width) >= width:
            return Visibility(self.positions, keys, None, causal=width > 1)
        return Visibility(self.positions, keys, visible(spec, self.positions, keys))

    def _ring_keys(self, window: int) -> Int[Tensor, "#B S"]:
        """Positions of the keys a ring returns: one token reads the ring after writing, several read ring + chunk."""
        one = self.positions.shape[-1] == 1
        rows = range(1 if self.uniform else len(self.lengths))
        lengths = torch.tensor([self.lengths[b] - (0 if one else self.counts[b]) for b in rows])[:, None]
        slots = torch.arange(min(window, int(lengths.max())))
        held = lengths - 1 - (lengths - 1 - slots) % window  # the last position that fell into each slot
        held = torch.where(held >= 0, held, -1).to(self.device)
        return held if one else torch.cat([held, self.positions.expand(len(held), -1)], -1)

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order; a row may be named several times (continuations of one prompt)."""
        index = torch.tensor(list(rows), device=self.device)
        for slot in self.slots:
            slot.select(index)
        if self.source is not None:
            self.source = self.source.select(index)
        self.lengths = [self.lengths[b] for b in rows]
        self.counts = [self.counts[b] for b in rows]
        self.reach = [self.reach[b] for b in rows]


class FullSlot:
    """One layer's keys and values, slot = position. Stored [B, Hkv, S, Dh], so that a head's keys lie together."""

    def __init__(self, cache: DenseCache):
        self.cache = cache
        self.size = cache.capacity
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self.source: tuple[Tensor, Tensor] | None = None  # [B, Hkv, S, Dh] too

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.k, self.v, *(self.source or ())) if t is not None]

    def select(self, rows: Int[Tensor, "B"]) -> None:
        """Keep these rows. Only filled slots are copied: what was never written takes no memory on a CPU."""

        def picked(kept: Tensor) -> Tensor:
            filled = slice(0, min(self.size, self.cache.end))
            new = kept.new_zeros(len(rows), *kept.shape[1:])
            new[:, :, filled] = kept[:, :, filled].index_select(0, rows)
            return new

        if self.k is not None and self.v is not None:
            self.k, self.v = picked(self.k), picked(self.v)
        if self.source is not None:
            k, v = self.source
            self.source = k.index_select(0, rows), v.index_select(0, rows)

    def store(self, k: Float[Tensor, "B T Hkv Dh"], v: Float[Tensor, "B T Hkv Dv"]) -> tuple[Tensor, Tensor]:
        """The storage, made when tokens first come. Zeros: hidden values are multiplied by 0, and 0 * NaN is NaN."""
        if self.k is None or self.v is None:
            batch = len(self.cache.lengths)
            self.k, self.v = (t.new_zeros(batch, t.shape[2], self.size, t.shape[3]) for t in (k, v))
        return self.k, self.v

    def keep(self, k: Float[Tensor, "B T Hkv Dh"], v: Float[Tensor, "B T Hkv Dv"]) -> KV:
        """Write these tokens at their positions; returns every slot up to the longest row, as [B, S, Hkv, Dh]."""
        cache = self.cache
        for kept, new in zip(self.store(k, v), (k, v), strict=True):
            if cache.uniform:
                kept[:, :, cache.old : cache.end] = new.transpose(1, 2)
            else:
                kept[cache.row, :, cache.position] = new[cache.row, cache.place]
        return self._read(slice(0, cache.end))

    def _read(self, slots: slice) -> KV:
        assert self.k is not None
        assert self.v is not None
        return KV(self.k[:, :, slots].transpose(1, 2), self.v[:, :, slots].transpose(1, 2))

    def keep_source(self, make: Callable[[], tuple[Tensor, Tensor]]) -> KV:
        """An encoder's keys and values: made once, then kept."""
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

    def keep(self, k: Float[Tensor, "B T Hkv Dh"], v: Float[Tensor, "B T Hkv Dv"]) -> KV:
        """One token: write, then return the ring. Several: return the ring as it was, and them, then write."""
        self.store(k, v)
        if k.shape[1] == 1:
            self._write(k, v)
            return self._read(slice(0, min(self.size, self.cache.end)))
        before = self._read(slice(0, min(self.size, self.cache.old)))
        kv = KV(torch.cat([before.k, k], 1), torch.cat([before.v, v], 1))
        self._write(k, v)
        return kv

    def _write(self, k: Tensor, v: Tensor) -> None:
        cache, tensors = self.cache, self.store(k, v)
        if cache.uniform:
            last = slice(-min(self.size, k.shape[1]), None)
            slots = cache.positions[0, last] % self.size
            for kept, new in zip(tensors, (k, v), strict=True):
                kept[:, :, slots] = new[:, last].transpose(1, 2)
            return
        newest = cache.position >= cache.row_end - self.size  # of two tokens for one slot, only the later
        row, place, slots = cache.row[newest], cache.place[newest], cache.position[newest] % self.size
        for kept, new in zip(tensors, (k, v), strict=True):
            kept[row, :, slots] = new[row, place]
