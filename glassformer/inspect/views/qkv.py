"""Queries, keys and values of one token in one head: all three from one x. View 5."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.errors import RequestError
from glassformer.generate.sampling import check_number
from glassformer.inspect.trace import Receipt, Trace
from glassformer.inspect.views.layer import at, attention_of, position_of
from glassformer.inspect.views.result import off
from glassformer.nn.attention import Attention


@dataclass(frozen=True)
class Product:
    """One number of q, k or v: `weights` [D] are its row of the matrix; value = sum of x * weights + bias.

    The same rows of W_q, W_k and W_v make it for every token.
    """

    weights: Float[Tensor, "D"]
    bias: float
    sum: float
    value: float


@dataclass(frozen=True)
class QKV:
    """`residual` is what the block gets, `x` what attention reads (after its norm); q, k, v as projected; `q_rot` and
    `k_rot` after their norm and rotation. `kv_head` is the key/value head that this query head reads. `products`: how
    number `dim` of each came about. `lengths`: of each vector, before and after: a rotation alone changes none.
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
    q: Float[Tensor, "Dh"]
    k: Float[Tensor, "Dh"]
    v: Float[Tensor, "Dv"]
    q_rot: Float[Tensor, "Dh"]
    k_rot: Float[Tensor, "Dh"]
    products: dict[str, Product]
    lengths: dict[str, float]
    rotated: bool
    normed: bool
    receipt: Receipt


@torch.no_grad()
def qkv(t: Trace, *, layer: int, head: int, position: int, dim: int = 0) -> QKV:
    """One token's query, key and value in one head, and how their `dim`-th numbers came about.

    RequestError for a layer, head, position or dimension that there is not.
    """
    attention = attention_of(t, layer, head)
    if not isinstance(attention, Attention):
        raise RequestError(
            f"block {layer} makes its keys and values of a latent: they have no matrices of their own to show here; "
            f'its numbers are t["blocks.{layer}.attn.q"] and the other points',
            param="view",
        )
    position = position_of(t, "position", position)
    config, name = attention.config, f"blocks.{layer}.attn"
    kv_head = head // (config.n_heads // config.n_kv_heads)
    residual, x = at(t, f"blocks.{layer}.resid_pre", position), at(t, f"{name}.x", position)
    heads = {"q": head, "k": kv_head, "v": kv_head, "q_rot": head, "k_rot": kv_head}
    rows = {end: at(t, f"{name}.{end}", position)[which] for end, which in heads.items()}
    check_number("dim", dim, 0, min(len(rows["q"]), len(rows["v"])) - 1)
    made, wrong = {}, 0.0
    for end in ("q", "k", "v"):
        linear: nn.Linear = getattr(attention, end)
        size = len(rows[end])
        own = slice(heads[end] * size, (heads[end] + 1) * size)
        bias = x.new_zeros(size) if linear.bias is None else linear.bias[own].float()
        sums = linear.weight[own].float() @ x
        worked = sums + bias
        wrong = max(wrong, off(worked if config.clip is None else worked.clamp(-config.clip, config.clip), rows[end]))
        weights = linear.weight[own][dim].detach().float()
        made[end] = Product(weights, bias[dim].item(), sums[dim].item(), rows[end][dim].item())
    return QKV(
        layer, head, kv_head, config.n_heads, config.n_kv_heads, position, dim,
        residual, x, rows["q"], rows["k"], rows["v"], rows["q_rot"], rows["k_rot"], made,
        {end: row.norm().item() for end, row in rows.items()},
        config.rope is not None, config.qk_norm is not None,
        Receipt(f't["{name}.q"][{position}, {head}]', "max |W x + b - what the pass had|, over q, k and v", wrong),
    )  # fmt: skip
