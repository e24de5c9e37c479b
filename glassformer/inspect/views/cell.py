"""One attention cell worked out: how much one query takes of one key, and what it gets for it. View 6.

q·k products -> sum -> scale -> softcap -> (bias) -> mask -> exp -> / sum over all keys -> * v, added up over all keys
"Attention Is All You Need" (Vaswani et al. 2017), equation 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from glassformer.generate.sampling import check_number
from glassformer.inspect.trace.trace import Receipt, Trace
from glassformer.inspect.views.layer import Which, at, attention_of, position_of, side_of
from glassformer.inspect.views.result import off
from glassformer.nn.attention import Attention
from glassformer.nn.latent import LatentAttention


@dataclass(frozen=True)
class Unscaled:
    """What a cell's later numbers would be with a scale of 1, its softcap, bias and sink kept: see `Cell`."""

    capped: float
    score: float
    largest: float
    exp: float
    total: float
    prob: float
    probs: Float[Tensor, "S"]
    entropy: float
    weighted: Float[Tensor, "Dv"]
    z: Float[Tensor, "Dv"]


@dataclass(frozen=True)
class Cell:
    """Every number of a cell, in the order in which they arise.

    Of this cell: `products` q_i k_i [Dh], their `sum`, `scale`, `scaled` = sum * scale, `softcap` c and `capped` =
    c tanh(scaled / c) (the same as `scaled` without one), `bias` that a model adds, whether the query may see the key,
    `score`; `exp` = e^(score - the row's largest), `total` = the row's sum of them (with the sink's), `prob`.
    Of the query's whole row [S]: `scores` and `probs`, `entropy` in nats of these. `v` [Dv] is what the key offers,
    `weighted` = prob * v, `z` the sum over all keys. `unscaled`: the same if nothing were scaled.
    """

    layer: int
    head: int
    attention: Which
    kv_head: int
    query: int
    key: int
    q: Float[Tensor, "Dh"]
    k: Float[Tensor, "Dh"]
    products: Float[Tensor, "Dh"]
    sum: float
    scale: float
    scaled: float
    softcap: float | None
    capped: float
    bias: float
    visible: bool
    window: int | None
    score: float
    largest: float
    exp: float
    sink: float | None
    total: float
    prob: float
    scores: Float[Tensor, "S"]
    probs: Float[Tensor, "S"]
    entropy: float
    v: Float[Tensor, "Dv"]
    weighted: Float[Tensor, "Dv"]
    z: Float[Tensor, "Dv"]
    unscaled: Unscaled
    receipt: Receipt


@torch.no_grad()
def cell(t: Trace, *, layer: int, head: int, query: int, key: int, attention: Which = "attn") -> Cell:
    """One attention cell of a trace. Negative positions count from the end.

    attention: "cross" is that of a decoder to its source, where keys are the source's tokens; "encoder" is the source's
    own, where queries are too.

    RequestError for a layer, head or position that there is not.
    """
    if attention == "encoder":
        side, own = side_of(t, attention)
        found = cell(side, layer=layer, head=head, query=query, key=key, attention=own)
        return replace(found, attention=attention, receipt=replace(found.receipt, python=_line(found, attention)))
    module = attention_of(t, layer, head, attention)
    name, spec = f"blocks.{layer}.{attention}", module.spec
    query, n_keys = position_of(t, "query", query), t.shape(f"{name}.probs")[-1]
    check_number("key", key, -n_keys, n_keys - 1)
    key %= n_keys
    kv_head = head // (module.config.n_heads // module.config.n_kv_heads)
    row = t.cached(("row", name, head, query), lambda: row_of(t, module, name, head, kv_head, query))
    own, free = row.own, row.unscaled
    unscaled = Unscaled(
        free.capped[key].item(), free.scores[key].item(), free.largest.item(), free.exp[key].item(), free.total.item(),
        free.probs[key].item(), free.probs, row.unscaled_entropy, free.probs[key] * row.v[key], free.z,
    )  # fmt: skip
    found = Cell(
        layer, head, attention, kv_head, query, key,
        row.q, row.k[key], row.q * row.k[key], row.sums[key].item(), spec.scale, row.scaled[key].item(), spec.softcap,
        own.capped[key].item(), row.bias[key].item(), bool(row.seen[key]), spec.window, own.scores[key].item(),
        own.largest.item(), own.exp[key].item(), None if row.sink is None else row.sink.item(), own.total.item(),
        own.probs[key].item(), own.scores, row.probs, row.entropy,
        row.v[key], own.probs[key] * row.v[key], row.z, unscaled,
        Receipt("", "max |sum of prob * v - z|, and of the probabilities by either way", row.error),
    )  # fmt: skip
    return replace(found, receipt=replace(found.receipt, python=_line(found, attention)))


@dataclass(frozen=True, eq=False)
class Weighed:
    """A row from its capped products to its end: as in `Cell`, `capped`, `scores`, `exp` and `probs` by key."""

    capped: Float[Tensor, "S"]
    scores: Float[Tensor, "S"]
    largest: Float[Tensor, ""]
    exp: Float[Tensor, "S"]
    total: Float[Tensor, ""]
    probs: Float[Tensor, "S"]
    z: Float[Tensor, "Dv"]


@dataclass(frozen=True, eq=False)
class CellRow:
    """What the cells of one query in one head have in common, or by key. `probs` and `z` are the pass's, `own` is
    worked out from the products that it used, `unscaled` from the same with a scale of 1.
    """

    q: Float[Tensor, "Dh"]
    k: Float[Tensor, "S Dh"]
    v: Float[Tensor, "S Dv"]
    z: Float[Tensor, "Dv"]
    probs: Float[Tensor, "S"]
    sums: Float[Tensor, "S"]
    scaled: Float[Tensor, "S"]
    seen: Bool[Tensor, "S"]
    bias: Float[Tensor, "S"]
    sink: Float[Tensor, ""] | None
    own: Weighed
    unscaled: Weighed
    entropy: float
    unscaled_entropy: float
    error: float


def row_of(t: Trace, module: Attention | LatentAttention, name: str, head: int, kv_head: int, query: int) -> CellRow:
    """A query's row of an attention, worked out from what its product used."""
    spec = module.spec
    q, k = at(t, f"{name}.q_rot", query)[head], at(t, f"{name}.k_rot")[:, kv_head]  # [Dh], [S, Dh]
    v, z = at(t, f"{name}.v")[:, kv_head], at(t, f"{name}.z", query)[head]  # [S, Dv], [Dv]
    scores = t.rows(f"{name}.scores", head=head, query=query).tensor.float()  # [S]
    probs = t.rows(f"{name}.probs", head=head, query=query).tensor.float()
    sums, seen = k @ q, scores > -math.inf
    scaled = sums * spec.scale
    capped = _capped(scaled, spec.softcap)
    bias = (scores - capped).where(seen, 0.0)
    bias = bias.where(
        bias.abs() > 1e-4 * scores.where(seen, 0.0).abs().max().clamp(min=1e-6), 0.0
    )  # more than rounding
    sink = None if module.sinks is None else module.sinks[head].float()
    own = _weighed(capped, scores, sink, v)
    free = _capped(sums, spec.softcap)
    unscaled = _weighed(free, (free + bias).masked_fill(~seen, -math.inf), sink, v)
    return CellRow(
        q, k, v, z, probs, sums, scaled, seen, bias, sink, own, unscaled, entropy(probs), entropy(unscaled.probs),
        max(off(own.z, z), off(own.probs, probs)),
    )  # fmt: skip


def _capped(scaled: Float[Tensor, "S"], softcap: float | None) -> Float[Tensor, "S"]:
    return scaled if softcap is None else softcap * torch.tanh(scaled / softcap)


def _weighed(
    capped: Float[Tensor, "S"], scores: Float[Tensor, "S"], sink: Tensor | None, v: Float[Tensor, "S Dv"]
) -> Weighed:
    """e^(score - largest) of each, their sum, with the sink's in both, and what they weigh."""
    largest = scores.max() if sink is None else torch.maximum(scores.max(), sink)
    exp = (scores - largest).exp()
    total = exp.sum() if sink is None else exp.sum() + (sink - largest).exp()
    probs = exp / total
    return Weighed(capped, scores, largest, exp, total, probs, probs @ v)


def _line(found: Cell, attention: Which) -> str:
    which = "" if attention == "attn" else f", attention={attention!r}"
    return f"t.cell(layer={found.layer}, head={found.head}, query={found.query}, key={found.key}{which})"


def entropy(probs: Float[Tensor, "S"]) -> float:
    """In nats."""
    return torch.special.entr(probs.double()).sum().item()
