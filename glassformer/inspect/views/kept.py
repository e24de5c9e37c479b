"""What the cache holds of a text, what it is looked at, and what it saves. View 12."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.cache.dense import DenseCache
from glassformer.generate.sampling import check_number
from glassformer.inspect.trace import Receipt, Trace
from glassformer.inspect.views.layer import block_of
from glassformer.inspect.views.result import off
from glassformer.nn.step import Step


@dataclass(frozen=True)
class CacheLayer:
    """`slots` are filled of `capacity` (a window's, or the context's); each takes `bytes_per_slot`."""

    layer: int
    slots: int
    capacity: int
    window: int | None
    bytes_per_slot: int
    bytes: int


@dataclass(frozen=True)
class CacheView:
    """`mass` [H, S] of one layer: how much attention each kept token received, summed over all queries of each head."""

    layers: tuple[CacheLayer, ...]
    bytes: int
    layer: int
    mass: Float[Tensor, "H S"]
    n_prompt: int
    receipt: Receipt


@dataclass(frozen=True)
class CacheSpeed:
    """Milliseconds, each the median of several: the whole text at once (prefill), the next token with the cache
    (decode), and the next token without one (everything again). `error`: max |logits cached - uncached|.
    """

    tokens: int
    prefill: float
    decode: float
    without: float
    receipt: Receipt


@torch.no_grad()
def cache(t: Trace, *, layer: int = 0) -> CacheView:
    """What each layer's cache holds after this text, and how much attention each slot of one layer received."""
    block_of(t, layer)
    kept = []
    for i, one in enumerate(t.config.layers):
        k, v = t[f"blocks.{i}.attn.k_rot"].tensor, t[f"blocks.{i}.attn.v"].tensor
        each = (k[0].nbytes if k[0].is_contiguous() else k[0].numel() * k.element_size()) + v[
            0
        ].numel() * v.element_size()
        capacity = min(one.attention.window or t.config.context_length, t.config.context_length)
        slots = min(len(t.ids), capacity)
        kept.append(CacheLayer(i, slots, capacity, one.attention.window, each, slots * each))
    value = t[f"blocks.{layer}.attn.probs"]
    mass = value.tensor.float().sum(1)  # [H, S]
    total = sum(one.bytes for one in kept)
    receipt = Receipt(f't["blocks.{layer}.attn.probs"].tensor.sum(1)', value.identity, value.error)
    return CacheView(tuple(kept), total, layer, mass, t.n_prompt, receipt)


@torch.inference_mode()
def cache_speed(t: Trace, *, rounds: int = 3) -> CacheSpeed:
    """Measure, here and now, what the cache saves on this text's last token; and that it changes nothing."""
    check_number("rounds", rounds, 1, 20)
    model, device = t.model, t.model.embed.weight.device
    ids = torch.tensor([t.ids], device=device)
    n = len(t.ids)
    times: dict[str, list[float]] = {"prefill": [], "decode": [], "without": []}
    wrong = 0.0
    for _ in range(rounds):
        kept = DenseCache.of(model.config, 1, n, device, reach=[n])
        start = time.perf_counter()
        if n > 1:
            model.hidden(ids[:, :-1], Step(kept.extend([n - 1]), cache=kept))
        read = time.perf_counter()
        step = Step(kept.extend([1]), cache=kept)
        cached = model.logits(model.hidden(ids[:, -1:], step)[:, -1], step)
        wrote = time.perf_counter()
        step = Step.of(ids)
        whole = model.logits(model.hidden(ids, step)[:, -1], step)
        end = time.perf_counter()
        for name, seconds in (("prefill", read - start), ("decode", wrote - read), ("without", end - wrote)):
            times[name].append(seconds * 1e3)
        wrong = max(wrong, off(cached, whole))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return CacheSpeed(n, **medians, receipt=Receipt("t.cache_speed()", "max |logits cached - uncached|", wrong))
