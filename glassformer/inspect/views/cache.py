"""What the cache holds of a text, what it is looked at, and what it saves. View 12."""

from __future__ import annotations

import functools
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.cache.dense import DenseCache
from glassformer.config import LayerConfig
from glassformer.generate.sampling import check_number
from glassformer.inspect.trace.recompute import larger
from glassformer.inspect.trace.trace import Receipt, Trace
from glassformer.inspect.views.layer import block_of
from glassformer.inspect.views.result import off
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.step import Step


@dataclass(frozen=True)
class Slots:
    """As many slots, each of `bytes_per_slot`."""

    slots: int
    bytes_per_slot: int
    bytes: int


@dataclass(frozen=True)
class CacheLayer:
    """`slots` are filled of `capacity` (a window's, or the context's); each holds `what` of a token, and takes
    `bytes_per_slot`. `source`: the keys and values of a source, made with the first token and as many ever after; None
    where the model reads none.
    """

    layer: int
    what: str
    slots: int
    capacity: int
    window: int | None
    bytes_per_slot: int
    bytes: int
    source: Slots | None


@dataclass(frozen=True)
class CacheView:
    """`mass` [H, S] of one layer: how much attention each kept token received, summed over all queries of each head;
    `source_mass`: the same of a source's tokens. `bytes`: of all layers, a source's included.
    """

    layers: tuple[CacheLayer, ...]
    bytes: int
    layer: int
    mass: Float[Tensor, "H S"]
    source_mass: Float[Tensor, "H S2"] | None
    n_prompt: int
    receipt: Receipt


@dataclass(frozen=True)
class CacheSpeed:
    """Milliseconds, each the median of several: the whole text at once (prefill), the next token with the cache
    (decode), and the next token without one (everything again). `source`: reading a source, once either way, None
    where there is none; its keys and values are made at prefill, and without a cache each time. `error`: max |logits
    cached - uncached|.
    """

    tokens: int
    source: float | None
    prefill: float
    decode: float
    without: float
    receipt: Receipt


@torch.no_grad()
def cache(t: Trace, *, layer: int = 0) -> CacheView:
    """What each layer's cache holds after this text, and how much attention each slot of one layer received."""
    cross = block_of(t, layer).cross is not None
    kept = tuple(_layer(t, i, one) for i, one in enumerate(t.config.layers))
    total = sum(one.bytes + (one.source.bytes if one.source else 0) for one in kept)
    names = [f"blocks.{layer}.{which}.probs" for which in ("attn", "cross")[: 1 + cross]]
    values = [t[name] for name in names]
    own, *others = [value.tensor.float().sum(1) for value in values]  # [H, S]
    lines = [f't["{name}"].tensor.sum(1)' for name in names]
    error = functools.reduce(larger, (value.error or 0.0 for value in values))
    receipt = Receipt(", ".join(lines), values[0].identity, error)
    return CacheView(kept, total, layer, own, others[0] if others else None, t.n_prompt, receipt)


def _layer(t: Trace, i: int, config: LayerConfig) -> CacheLayer:
    """How many numbers each slot holds is the configuration's: keys and values, or the latent that stands for both."""
    itemsize, context = t.captured.require(f"blocks.{i}.attn.k_rot").element_size(), t.config.context_length
    capacity, each = min(config.attention.window or context, context), config.attention.cached_per_token * itemsize
    slots, source = min(len(t.ids), capacity), None
    if config.cross is not None:
        n, of_each = t.shape(f"blocks.{i}.cross.k_rot")[0], config.cross.cached_per_token * itemsize
        source = Slots(n, of_each, n * of_each)
    what = "a key and a value" if config.attention.latent is None else "a latent and a turned key"
    return CacheLayer(i, what, slots, capacity, config.attention.window, each, slots * each, source)


@torch.inference_mode()
def cache_speed(t: Trace, *, rounds: int = 3) -> CacheSpeed:
    """Measure, here and now, what the cache saves on this text's last token; and that it changes nothing."""
    check_number("rounds", rounds, 1, 20)
    model, device = t.model, t.model.embed.weight.device
    ids = torch.tensor([t.ids], device=device)
    n = len(t.ids)
    times: dict[str, list[float]] = {"source": [], "prefill": [], "decode": [], "without": []}
    source, wrong = None, 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        if isinstance(model, EncoderDecoder):
            sources = torch.tensor([t.source.ids], device=device)  # pyright: ignore[reportAttributeAccessIssue]
            source = model.encode(sources, Step.of(sources))
        begin = time.perf_counter()
        kept = DenseCache.of(model.config, 1, n, device, source, reach=[n])
        if n > 1:
            model.hidden(ids[:, :-1], Step(kept.extend([n - 1]), cache=kept))
        read = time.perf_counter()
        step = Step(kept.extend([1]), cache=kept)
        cached = model.logits(model.hidden(ids[:, -1:], step)[:, -1], step)
        wrote = time.perf_counter()
        step = Step.of(ids, source=source)
        whole = model.logits(model.hidden(ids, step)[:, -1], step)
        end = time.perf_counter()
        spans = {"source": begin - start, "prefill": read - begin, "decode": wrote - read, "without": end - wrote}
        for name, seconds in spans.items():
            times[name].append(seconds * 1e3)
        wrong = max(wrong, off(cached, whole))
    medians: dict[str, Any] = {name: statistics.median(values) for name, values in times.items()}
    if source is None:
        medians["source"] = None
    return CacheSpeed(n, **medians, receipt=Receipt("t.cache_speed()", "max |logits cached - uncached|", wrong))
