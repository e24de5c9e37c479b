"""Queries, keys and values of one token in one head: all three from one x. View 5.

x -> W_q, W_k, W_v -> q, k, v;  q and k -> (norm) -> turned
latent attention:
x -> (down, norm -> c_q) -> W_uq -> q              -> its first part turned
x -> W_kr, the same for all heads -> [k_r          -> turned
x -> down, norm -> c_kv -> W_uk   ->     | W_uk c]    k
                        -> W_uv   -> v
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.generate.sampling import check_number
from glassformer.inspect.trace.trace import Receipt, Trace
from glassformer.inspect.views.layer import at, attention_of, position_of
from glassformer.inspect.views.result import off
from glassformer.nn.attention import Attention
from glassformer.nn.latent import LatentAttention


@dataclass(frozen=True)
class Product:
    """One number of q, k or v: `weights` are its row of the matrix; value = sum of x * weights + bias.

    `of` says what stands for x: "x" itself, or a latent. The same row of `matrix` makes it for every token.
    """

    matrix: str
    of: str
    weights: Float[Tensor, "D"]
    bias: float
    sum: float
    value: float


@dataclass(frozen=True)
class LatentView:
    """A short vector that stands for x where heads are made of it: `reduced` = W x + b, `normed` after its norm."""

    reduced: Float[Tensor, "C"]
    normed: Float[Tensor, "C"]


@dataclass(frozen=True)
class QKV:
    """`residual` is what the block gets, `x` what attention reads (after its norm); q, k, v as projected; `q_rot` and
    `k_rot` after their norm and rotation. `kv_head` is the key/value head that this query head reads. `latents`: "q",
    of which queries are made, and "kv", of which keys and values are; most models make them of x and have none.
    `products`: how number `dim` of each came about, of those that have so many. `turned`: how many numbers of q and k
    the rotation reaches, the first ones. `lengths`: of each vector, before and after: a rotation alone changes none.
    """

    layer: int
    head: int
    kv_head: int
    n_heads: int
    n_kv_heads: int
    position: int
    dim: int
    residual: Float[Tensor, "D"]
    x: Float[Tensor, "D"]
    latents: dict[str, LatentView]
    q: Float[Tensor, "Dh"]
    k: Float[Tensor, "Dh"]
    v: Float[Tensor, "Dv"]
    q_rot: Float[Tensor, "Dh"]
    k_rot: Float[Tensor, "Dh"]
    products: dict[str, Product]
    lengths: dict[str, float]
    turned: int
    normed: bool
    receipt: Receipt


class VectorRows(NamedTuple):
    """Rows of a matrix, W [N, D] and b [N], which make numbers of what `of` names."""

    matrix: str
    of: str
    weight: Tensor
    bias: Tensor


def rows_of(linear: nn.Linear, some: slice, matrix: str = "", of: str = "x") -> VectorRows:
    """Some rows of a matrix, in float32."""
    weight = linear.weight.detach()[some].float()
    return VectorRows(
        matrix, of, weight, weight.new_zeros(len(weight)) if linear.bias is None else linear.bias[some].float()
    )


def parts_of(attention: Attention | LatentAttention, head: int, kv_head: int) -> dict[str, tuple[VectorRows, ...]]:
    """The rows that make q, k and v of one head; those of k are of two matrices where there is a latent."""
    config = attention.config

    def own(linear: Any, size: int, which: int, *named: str) -> VectorRows:
        return rows_of(linear, slice(which * size, (which + 1) * size), *named)

    size = config.head_dim
    if isinstance(attention, Attention):
        heads = {"q": head, "k": kv_head, "v": kv_head}
        return {end: (own(getattr(attention, end), size, which, f"W_{end}"),) for end, which in heads.items()}
    shared, q = attention.parts[0], attention.q
    return {
        "q": (own(q.expand, size, head, "W_uq", "q") if isinstance(q, nn.Sequential) else own(q, size, head, "W_q"),),
        "k": (
            rows_of(attention.kv, slice(shared), "W_kr"),
            own(attention.expand_k, size - shared, kv_head, "W_uk", "kv"),
        ),
        "v": (own(attention.expand_v, config.v_dim, kv_head, "W_uv", "kv"),),
    }


def latents_of(attention: Attention | LatentAttention, x: Float[Tensor, "D"]) -> dict[str, LatentView]:
    """What queries, and what keys and values, are made of instead of x."""

    def reduced(linear: Any, norm: Any, some: slice) -> LatentView:
        rows = rows_of(linear, some)
        short = rows.weight @ x + rows.bias
        return LatentView(short, norm(short))

    if isinstance(attention, Attention):
        return {}
    q = attention.q
    found = {"q": reduced(q.reduce, q.norm, slice(None))} if isinstance(q, nn.Sequential) else {}
    return found | {"kv": reduced(attention.kv, attention.kv_norm, slice(attention.parts[0], None))}


@torch.no_grad()
def qkv(t: Trace, *, layer: int, head: int, position: int, dim: int = 0) -> QKV:
    """One token's query, key and value in one head, and how their `dim`-th numbers came about.

    RequestError for a layer, head, position or dimension that there is not.
    """
    attention = attention_of(t, layer, head)
    position = position_of(t, "position", position)
    config, name = attention.config, f"blocks.{layer}.attn"
    kv_head = head // (config.n_heads // config.n_kv_heads)
    residual, x = at(t, f"blocks.{layer}.resid_pre", position), at(t, f"{name}.x", position)
    heads = {"q": head, "k": kv_head, "v": kv_head, "q_rot": head, "k_rot": kv_head}
    rows = {end: at(t, f"{name}.{end}", position)[which] for end, which in heads.items()}
    check_number("dim", dim, 0, max(len(rows["q"]), len(rows["v"])) - 1)
    latents = latents_of(attention, x)
    vectors = {"x": x} | {of: latent.normed for of, latent in latents.items()}
    made, wrong = {}, 0.0
    if "kv" in latents:
        wrong = off(latents["kv"].normed, at(t, f"{name}.latent", position))
    for end, parts in parts_of(attention, head, kv_head).items():
        sums, bias = torch.cat([one.weight @ vectors[one.of] for one in parts]), torch.cat([one.bias for one in parts])
        worked = sums + bias
        wrong = max(wrong, off(worked if config.clip is None else worked.clamp(-config.clip, config.clip), rows[end]))
        before = 0
        for one in parts:
            if before <= dim < before + len(one.weight):
                numbers = bias[dim].item(), sums[dim].item(), rows[end][dim].item()
                made[end] = Product(one.matrix, one.of, one.weight[dim - before], *numbers)
            before += len(one.weight)
    turned = 0 if config.rope is None else config.rope.dim or config.head_dim
    over = "the latent, q, k and v" if latents else "q, k and v"
    return QKV(
        layer, head, kv_head, config.n_heads, config.n_kv_heads, position, dim,
        residual, x, latents, rows["q"], rows["k"], rows["v"], rows["q_rot"], rows["k_rot"], made,
        {end: row.norm().item() for end, row in rows.items()},
        turned, config.qk_norm is not None,
        Receipt(f't["{name}.q"][{position}, {head}]', f"max |W x + b - what the pass had|, over {over}", wrong),
    )  # fmt: skip
