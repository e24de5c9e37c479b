"""The arithmetic of one attention cell: one query, one key. View 6.

q·k products -> sum -> scale -> softcap -> (bias) -> mask -> exp -> / sum over all keys -> * v, summed over all keys
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
from glassformer.inspect.views.layer import AttentionKind, get_attention, resolve_position, select_stack, values_at
from glassformer.inspect.views.result import off
from glassformer.nn.attention import Attention
from glassformer.nn.latent import LatentAttention


@dataclass(frozen=True)
class Unscaled:
    """The numbers of a cell with a scale of 1 and the same softcap, bias and sink: see `Cell`."""

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
    """Every number of a cell, in the order of computation.

    Of this cell: `products` q_i k_i [Dh], their `sum`, `scale`, `scaled` = sum * scale, `softcap` c and `capped` =
    c tanh(scaled / c) (equal to `scaled` without a softcap), the position `bias`, `visible` (the mask), `score`;
    `exp` = e^(score - largest), `total` = the sum of exp over all keys (and the sink), `prob` = exp / total.
    Of the query and all keys [S]: `scores`, `probs`, and the `entropy` of `probs` in nats. `v` [Dv] of the key,
    `weighted` = prob * v, `z` the sum over all keys. `unscaled`: the same numbers with a scale of 1.
    """

    layer: int
    head: int
    attention: AttentionKind
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
def cell(t: Trace, *, layer: int, head: int, query: int, key: int, attention: AttentionKind = "attn") -> Cell:
    """The arithmetic of one attention cell.

    Args:
        query: A position; negative ones count from the end.
        key: The same.
        attention: "attn" is self-attention; "cross" the decoder's attention to the source, whose tokens are the keys;
            "encoder" the self-attention of the encoder.

    Raises:
        RequestError: The layer, head or a position is out of range.
    """
    if attention == "encoder":
        stack, kind = select_stack(t, attention)
        found = cell(stack, layer=layer, head=head, query=query, key=key, attention=kind)
        receipt = replace(found.receipt, python=_python_line(found, attention))
        return replace(found, attention=attention, receipt=receipt)
    module = get_attention(t, layer, head, attention)
    name, spec = f"blocks.{layer}.{attention}", module.spec
    query, n_keys = resolve_position(t, "query", query), t.shape(f"{name}.probs")[-1]
    check_number("key", key, -n_keys, n_keys - 1)
    key %= n_keys
    kv_head = head // (module.config.n_heads // module.config.n_kv_heads)
    row = t.cached(("row", name, head, query), lambda: compute_row(t, module, name, head, kv_head, query))
    own, free = row.recomputed, row.unscaled
    unscaled = Unscaled(
        free.capped[key].item(), free.scores[key].item(), free.largest.item(), free.exp[key].item(), free.total.item(),
        free.probs[key].item(), free.probs, row.unscaled_entropy, free.probs[key] * row.v[key], free.z,
    )  # fmt: skip
    found = Cell(
        layer, head, attention, kv_head, query, key,
        row.q, row.k[key], row.q * row.k[key], row.sums[key].item(), spec.scale, row.scaled[key].item(), spec.softcap,
        own.capped[key].item(), row.bias[key].item(), bool(row.visible[key]), spec.window, own.scores[key].item(),
        own.largest.item(), own.exp[key].item(), None if row.sink is None else row.sink.item(), own.total.item(),
        own.probs[key].item(), own.scores, row.probs, row.entropy,
        row.v[key], own.probs[key] * row.v[key], row.z, unscaled,
        Receipt("", "max |sum of prob * v - z|, and max |softmax(scores) - probs|", row.error),
    )  # fmt: skip
    return replace(found, receipt=replace(found.receipt, python=_python_line(found, attention)))


@dataclass(frozen=True, eq=False)
class SoftmaxRow:
    """A softmax over the keys of one query, and its weighted sum of v. The fields are as in `Cell`, by key."""

    capped: Float[Tensor, "S"]
    scores: Float[Tensor, "S"]
    largest: Float[Tensor, ""]
    exp: Float[Tensor, "S"]
    total: Float[Tensor, ""]
    probs: Float[Tensor, "S"]
    z: Float[Tensor, "Dv"]


@dataclass(frozen=True, eq=False)
class CellRow:
    """All cells of one query in one head, by key.

    probs, z: as the forward pass computed them. recomputed: from q and k; unscaled: the same with a scale of 1.
    """

    q: Float[Tensor, "Dh"]
    k: Float[Tensor, "S Dh"]
    v: Float[Tensor, "S Dv"]
    z: Float[Tensor, "Dv"]
    probs: Float[Tensor, "S"]
    sums: Float[Tensor, "S"]
    scaled: Float[Tensor, "S"]
    visible: Bool[Tensor, "S"]
    bias: Float[Tensor, "S"]
    sink: Float[Tensor, ""] | None
    recomputed: SoftmaxRow
    unscaled: SoftmaxRow
    entropy: float
    unscaled_entropy: float
    error: float


def compute_row(
    t: Trace, module: Attention | LatentAttention, name: str, head: int, kv_head: int, query: int
) -> CellRow:
    """Compute all cells of one query in one head."""
    spec = module.spec
    q, k = values_at(t, f"{name}.q_rot", query)[head], values_at(t, f"{name}.k_rot")[:, kv_head]  # [Dh], [S, Dh]
    v, z = values_at(t, f"{name}.v")[:, kv_head], values_at(t, f"{name}.z", query)[head]  # [S, Dv], [Dv]
    scores = t.rows(f"{name}.scores", head=head, query=query).tensor.float()  # [S]
    probs = t.rows(f"{name}.probs", head=head, query=query).tensor.float()
    sums, visible = k @ q, scores > -math.inf
    scaled = sums * spec.scale
    capped = _capped(scaled, spec.softcap)
    bias = (scores - capped).where(visible, 0.0)
    rounding = 1e-4 * scores.where(visible, 0.0).abs().max().clamp(min=1e-6)
    bias = bias.where(bias.abs() > rounding, 0.0)
    sink = None if module.sinks is None else module.sinks[head].float()
    own = _softmax_row(capped, scores, sink, v)
    free = _capped(sums, spec.softcap)
    unscaled = _softmax_row(free, (free + bias).masked_fill(~visible, -math.inf), sink, v)
    return CellRow(
        q, k, v, z, probs, sums, scaled, visible, bias, sink, own, unscaled, entropy(probs), entropy(unscaled.probs),
        max(off(own.z, z), off(own.probs, probs)),
    )  # fmt: skip


def _capped(scaled: Float[Tensor, "S"], softcap: float | None) -> Float[Tensor, "S"]:
    return scaled if softcap is None else softcap * torch.tanh(scaled / softcap)


def _softmax_row(
    capped: Float[Tensor, "S"], scores: Float[Tensor, "S"], sink: Tensor | None, v: Float[Tensor, "S Dv"]
) -> SoftmaxRow:
    """Compute a softmax, with the sink in the largest score and in the total, and the weighted sum of v."""
    largest = scores.max() if sink is None else torch.maximum(scores.max(), sink)
    exp = (scores - largest).exp()
    total = exp.sum() if sink is None else exp.sum() + (sink - largest).exp()
    probs = exp / total
    return SoftmaxRow(capped, scores, largest, exp, total, probs, probs @ v)


def _python_line(found: Cell, attention: AttentionKind) -> str:
    which = "" if attention == "attn" else f", attention={attention!r}"
    return f"t.cell(layer={found.layer}, head={found.head}, query={found.query}, key={found.key}{which})"


def entropy(probs: Float[Tensor, "S"]) -> float:
    """Return the entropy in nats."""
    return torch.special.entr(probs.double()).sum().item()
