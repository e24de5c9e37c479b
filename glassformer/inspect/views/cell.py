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
from glassformer.inspect.trace import Receipt, Trace
from glassformer.inspect.views.layer import Which, at, attention_of, position_of, side_of
from glassformer.inspect.views.result import off
from glassformer.nn.attention import Attention
from glassformer.nn.latent import LatentAttention


@dataclass(frozen=True)
class Cell:
    """Every number of a cell, in the order in which they arise.

    Of this cell: `products` q_i k_i [Dh], their `sum`, `scale`, `scaled` = sum * scale, `softcap` c and `capped` =
    c tanh(scaled / c) (the same as `scaled` without one), `bias` that a model adds, whether the query may see the key,
    `score`; `exp` = e^(score - the row's largest), `total` = the row's sum of them (with the sink's), `prob`.
    Of the query's whole row [S]: `scores`, `probs`, and `unscaled`, the probabilities if nothing were scaled.
    `v` [Dv] is what the key offers, `weighted` = prob * v, `z` the sum over all keys. `entropy` in nats of `probs`.
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
    unscaled: Float[Tensor, "S"]
    entropy: float
    unscaled_entropy: float
    v: Float[Tensor, "Dv"]
    weighted: Float[Tensor, "Dv"]
    z: Float[Tensor, "Dv"]
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
    row = t.hold(("row", name, head, query), lambda: row_of(t, module, name, head, kv_head, query))
    found = Cell(
        layer, head, attention, kv_head, query, key,
        row.q, row.k[key], row.q * row.k[key], row.sums[key].item(), spec.scale, row.scaled[key].item(), spec.softcap,
        row.capped[key].item(), row.bias[key].item(), bool(row.seen[key]), spec.window, row.scores[key].item(),
        row.largest.item(), row.exp[key].item(), None if row.sink is None else row.sink.item(), row.total.item(),
        row.worked[key].item(), row.scores, row.probs, row.unscaled, row.entropy, row.unscaled_entropy,
        row.v[key], row.worked[key] * row.v[key], row.z,
        Receipt("", "max |sum of prob * v - z|, and of the probabilities by either way", row.error),
    )  # fmt: skip
    return replace(found, receipt=replace(found.receipt, python=_line(found, attention)))


@dataclass(frozen=True, eq=False)
class Row:
    """What the cells of one query in one head have in common, or by key: as in `Cell`; `worked`: exp / total."""

    q: Float[Tensor, "Dh"]
    k: Float[Tensor, "S Dh"]
    v: Float[Tensor, "S Dv"]
    z: Float[Tensor, "Dv"]
    scores: Float[Tensor, "S"]
    probs: Float[Tensor, "S"]
    sums: Float[Tensor, "S"]
    scaled: Float[Tensor, "S"]
    capped: Float[Tensor, "S"]
    seen: Bool[Tensor, "S"]
    bias: Float[Tensor, "S"]
    sink: Float[Tensor, ""] | None
    largest: Float[Tensor, ""]
    exp: Float[Tensor, "S"]
    total: Float[Tensor, ""]
    worked: Float[Tensor, "S"]
    unscaled: Float[Tensor, "S"]
    entropy: float
    unscaled_entropy: float
    error: float


def row_of(t: Trace, module: Attention | LatentAttention, name: str, head: int, kv_head: int, query: int) -> Row:
    """A query's row of an attention, worked out from what its product used."""
    spec = module.spec
    q, k = at(t, f"{name}.q_rot", query)[head], at(t, f"{name}.k_rot")[:, kv_head]  # [Dh], [S, Dh]
    v, z = at(t, f"{name}.v")[:, kv_head], at(t, f"{name}.z", query)[head]  # [S, Dv], [Dv]
    scores = t.rows(f"{name}.scores", head=head, query=query).tensor.float()  # [S]
    probs = t.rows(f"{name}.probs", head=head, query=query).tensor.float()
    sums = k @ q
    scaled = sums * spec.scale
    capped = scaled if spec.softcap is None else spec.softcap * torch.tanh(scaled / spec.softcap)
    seen = scores > -math.inf
    bias = (scores - capped).where(seen, 0.0)
    bias = bias.where(
        bias.abs() > 1e-4 * scores.where(seen, 0.0).abs().max().clamp(min=1e-6), 0.0
    )  # more than rounding
    sink = None if module.sinks is None else module.sinks[head].float()
    largest = scores.max() if sink is None else torch.maximum(scores.max(), sink)
    exp = (scores - largest).exp()
    total = exp.sum() if sink is None else exp.sum() + (sink - largest).exp()
    worked = exp / total
    unscaled = sums.masked_fill(~seen, -math.inf).softmax(-1)
    return Row(
        q, k, v, z, scores, probs, sums, scaled, capped, seen, bias, sink, largest, exp, total, worked, unscaled,
        entropy(probs), entropy(unscaled), max(off(worked @ v, z), off(worked, probs)),
    )  # fmt: skip


def _line(found: Cell, attention: Which) -> str:
    which = "" if attention == "attn" else f", attention={attention!r}"
    return f"t.cell(layer={found.layer}, head={found.head}, query={found.query}, key={found.key}{which})"


def entropy(probs: Float[Tensor, "S"]) -> float:
    """In nats."""
    return torch.special.entr(probs.double()).sum().item()
