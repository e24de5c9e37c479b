"""The contents of the KV cache after a text, the attention that each slot receives, and the time it saves. View 12."""

from __future__ import annotations

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
from glassformer.inspect.trace.recompute import MAX_SCORES, larger
from glassformer.inspect.trace.trace import Receipt, Trace
from glassformer.inspect.views.layer import get_block, patterns_of
from glassformer.inspect.views.result import off
from glassformer.kernels.native.attention import attend_native
from glassformer.nn.linear import device_of
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.step import Step


@dataclass(frozen=True)
class Slots:
    """The number of slots, and their sizes."""

    slots: int
    bytes_per_slot: int
    bytes: int


@dataclass(frozen=True)
class CacheLayer:
    """One layer's cache: `slots` of `capacity` (the window or the context length) are used; each holds `contents`.

    source: the keys and values of the source, computed once; None if the model has no source.
    """

    layer: int
    contents: str
    slots: int
    capacity: int
    window: int | None
    bytes_per_slot: int
    bytes: int
    source: Slots | None


@dataclass(frozen=True)
class CacheContents:
    """The result of `cache`.

    mass [H, S]: the attention that each cached token received in `layer`, summed over all queries; source_mass: the
    same of the source tokens. bytes: of all layers, with the source's.
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
    """Median times in milliseconds.

    prefill: all tokens but the last, at once; decode: the last token, with the cache; uncached: all tokens, without a
    cache. source: encoding of the source, None if there is none; its keys and values are computed at prefill, or
    without a cache in every step. The receipt's error is max |cached logits - uncached logits|.
    """

    tokens: int
    source: float | None
    prefill: float
    decode: float
    uncached: float
    receipt: Receipt


@torch.no_grad()
def cache(t: Trace, *, layer: int = 0) -> CacheContents:
    """The contents of each layer's cache after this text, and the attention that each slot of one layer received."""
    cross = get_block(t, layer).cross is not None
    layers = tuple(_layer(t, i, one) for i, one in enumerate(t.config.layers))
    total = sum(one.bytes + (one.source.bytes if one.source else 0) for one in layers)
    names = [f"blocks.{layer}.{which}.probs" for which in ("attn", "cross")[: 1 + cross]]
    masses, error, identity = [], 0.0, None
    for name in names:
        n_heads, n, n_keys = t.shape(name)
        mass = torch.zeros(n_heads, n_keys, device=t.captured.ids.device)
        size = max(1, MAX_SCORES // (n_heads * n_keys))
        for value in patterns_of(t, name, (range(i, min(n, i + size)) for i in range(0, n, size))):
            mass += value.tensor.float().sum(1)
            identity, error = value.identity, larger(error, value.error or 0.0)
        masses.append(mass)
    self_mass, *cross_mass = masses  # [H, S]
    lines = [f't["{name}"].tensor.sum(1)' for name in names]
    receipt = Receipt(", ".join(lines), identity, error)
    return CacheContents(layers, total, layer, self_mass, cross_mass[0] if cross_mass else None, t.n_prompt, receipt)


def _layer(t: Trace, i: int, config: LayerConfig) -> CacheLayer:
    """Describe one layer's cache, which stores keys and values, or a latent from which both are computed."""
    itemsize, context = t.captured.require(f"blocks.{i}.attn.k_rot").element_size(), t.config.context_length
    capacity, each = min(config.attention.window or context, context), config.attention.cached_per_token * itemsize
    slots, source = min(len(t.ids), capacity), None
    if config.cross is not None:
        n, source_slot = t.shape(f"blocks.{i}.cross.k_rot")[0], config.cross.cached_per_token * itemsize
        source = Slots(n, source_slot, n * source_slot)
    contents = "a key and a value" if config.attention.latent is None else "a latent and a rotated key"
    return CacheLayer(i, contents, slots, capacity, config.attention.window, each, slots * each, source)


@torch.inference_mode()
def cache_speed(t: Trace, *, rounds: int = 3) -> CacheSpeed:
    """The time that the cache saves on the last token of this text, and the error of the cached logits."""
    check_number("rounds", rounds, 1, 20)
    model, device = t.model, device_of(t.model)
    ids = torch.tensor([t.ids], device=device)
    n = len(t.ids)
    times: dict[str, list[float]] = {"source": [], "prefill": [], "decode": [], "uncached": []}
    source, error = None, 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        if isinstance(model, EncoderDecoder):
            sources = torch.tensor([t.source.ids], device=device)  # pyright: ignore[reportAttributeAccessIssue]
            source = model.encode(sources, Step.of(sources, attend=attend_native))
        begin = time.perf_counter()
        stored = DenseCache.of(model.config, 1, n, device, source, reach=[n])
        if n > 1:
            model.hidden(ids[:, :-1], Step(stored.extend([n - 1]), cache=stored, attend=attend_native))
        prefilled = time.perf_counter()
        step = Step(stored.extend([1]), cache=stored, attend=attend_native)
        cached = model.logits(model.hidden(ids[:, -1:], step)[:, -1], step)
        decoded = time.perf_counter()
        step = Step.of(ids, source=source, attend=attend_native)
        uncached = model.logits(model.hidden(ids, step)[:, -1], step)
        end = time.perf_counter()
        spans = {
            "source": begin - start,
            "prefill": prefilled - begin,
            "decode": decoded - prefilled,
            "uncached": end - decoded,
        }
        for name, seconds in spans.items():
            times[name].append(seconds * 1e3)
        error = max(error, off(cached, uncached))
    medians: dict[str, Any] = {name: statistics.median(values) for name, values in times.items()}
    if source is None:
        medians["source"] = None
    return CacheSpeed(n, **medians, receipt=Receipt("t.cache_speed()", "max |logits cached - uncached|", error))
