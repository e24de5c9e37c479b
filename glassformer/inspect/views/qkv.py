"""The query, key and value of one token in one head. View 5.

x -> W_q, W_k, W_v -> q, k, v;  q and k -> (norm) -> rotated
latent attention:
x -> (down, norm -> c_q) -> W_uq -> q              -> its first part rotated
x -> W_kr, the same for all heads -> [k_r          -> rotated
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
from glassformer.inspect.views.layer import get_attention, resolve_position, values_at
from glassformer.inspect.views.result import off
from glassformer.kernels.packed_linear import rounding_of, weight_rows
from glassformer.nn.attention import Attention
from glassformer.nn.latent import LatentAttention


@dataclass(frozen=True)
class Product:
    """One number of q, k or v: value = sum of x * weights + bias, with `weights` one row of `matrix`.

    of: the input vector: "x", or the latent "q" or "kv".
    """

    matrix: str
    of: str
    weights: Float[Tensor, "D"]
    bias: float
    sum: float
    value: float


@dataclass(frozen=True)
class LatentView:
    """A latent of x, from which heads are computed: reduced = W x + b; normed: after its norm."""

    reduced: Float[Tensor, "C"]
    normed: Float[Tensor, "C"]


@dataclass(frozen=True)
class QKV:
    """The result of `qkv`.

    residual: the input of the block; x: the input of attention, after its norm; q, k, v: as projected; q_rot, k_rot:
    after their norm and rotation. kv_head: the key/value head of this query head. latents: "q" and "kv", of latent
    attention only. products: the computation of number `dim` of q, k and v, for those with more than `dim` numbers.
    rotated: how many of the first numbers of q and k are rotated. lengths: the L2 norm of each vector; a rotation
    preserves it.
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
    rotated: int
    normed: bool
    receipt: Receipt


class VectorRows(NamedTuple):
    """Rows of a matrix, W [N, D] and b [N], which multiply the vector `of`."""

    matrix: str
    of: str
    weight: Tensor
    bias: Tensor


def matrix_rows(linear: nn.Linear, some: slice, matrix: str = "", of: str = "x") -> VectorRows:
    """Return some rows of a matrix in float32."""
    weight = weight_rows(linear, some)
    return VectorRows(
        matrix, of, weight, weight.new_zeros(len(weight)) if linear.bias is None else linear.bias[some].float()
    )


def projection_rows(
    attention: Attention | LatentAttention, head: int, kv_head: int
) -> dict[str, tuple[VectorRows, ...]]:
    """Return the rows that compute q, k and v of one head. With a latent, k has rows of two matrices."""
    config = attention.config

    def head_rows(linear: Any, size: int, which: int, *named: str) -> VectorRows:
        return matrix_rows(linear, slice(which * size, (which + 1) * size), *named)

    size = config.head_dim
    if isinstance(attention, Attention):
        heads = {"q": head, "k": kv_head, "v": kv_head}
        return {end: (head_rows(getattr(attention, end), size, which, f"W_{end}"),) for end, which in heads.items()}
    shared, q = attention.parts[0], attention.q
    latent_q = isinstance(q, nn.Sequential)
    return {
        "q": (head_rows(q.expand, size, head, "W_uq", "q") if latent_q else head_rows(q, size, head, "W_q"),),
        "k": (
            matrix_rows(attention.kv, slice(shared), "W_kr"),
            head_rows(attention.expand_k, size - shared, kv_head, "W_uk", "kv"),
        ),
        "v": (head_rows(attention.expand_v, config.v_dim, kv_head, "W_uv", "kv"),),
    }


def compute_latents(attention: Attention | LatentAttention, x: Float[Tensor, "D"]) -> dict[str, LatentView]:
    """Return the latents from which queries, and keys and values, are computed."""

    def reduced(linear: Any, norm: Any, some: slice) -> LatentView:
        rows = matrix_rows(linear, some)
        short = rows.weight @ x + rows.bias
        return LatentView(short, norm(short))

    if isinstance(attention, Attention):
        return {}
    q = attention.q
    found = {"q": reduced(q.reduce, q.norm, slice(None))} if isinstance(q, nn.Sequential) else {}
    return found | {"kv": reduced(attention.kv, attention.kv_norm, slice(attention.parts[0], None))}


@torch.no_grad()
def qkv(t: Trace, *, layer: int, head: int, position: int, dim: int = 0) -> QKV:
    """The query, key and value of one token in one head, and the computation of their `dim`-th numbers.

    Raises:
        RequestError: The layer, head, position or dimension is out of range.
    """
    attention = get_attention(t, layer, head)
    position = resolve_position(t, "position", position)
    config, name = attention.config, f"blocks.{layer}.attn"
    kv_head = head // (config.n_heads // config.n_kv_heads)
    residual, x = values_at(t, f"blocks.{layer}.resid_pre", position), values_at(t, f"{name}.x", position)
    heads = {"q": head, "k": kv_head, "v": kv_head, "q_rot": head, "k_rot": kv_head}
    rows = {end: values_at(t, f"{name}.{end}", position)[which] for end, which in heads.items()}
    check_number("dim", dim, 0, max(len(rows["q"]), len(rows["v"])) - 1)
    latents = compute_latents(attention, x)
    vectors = {"x": x} | {of: latent.normed for of, latent in latents.items()}
    products, error = {}, 0.0
    if "kv" in latents:
        error = off(latents["kv"].normed, values_at(t, f"{name}.latent", position))
    for end, parts in projection_rows(attention, head, kv_head).items():
        sums, bias = torch.cat([one.weight @ vectors[one.of] for one in parts]), torch.cat([one.bias for one in parts])
        total = sums + bias
        error = max(error, off(total if config.clip is None else total.clamp(-config.clip, config.clip), rows[end]))
        before = 0
        for one in parts:
            if before <= dim < before + len(one.weight):
                numbers = bias[dim].item(), sums[dim].item(), rows[end][dim].item()
                products[end] = Product(one.matrix, one.of, one.weight[dim - before], *numbers)
            before += len(one.weight)
    rotated = 0 if config.rope is None else config.rope.dim or config.head_dim
    over = "the latent, q, k and v" if latents else "q, k and v"
    identity = f"max |W x + b - value of the forward pass|, over {over}{rounding_of(*attention.children())}"
    return QKV(
        layer, head, kv_head, config.n_heads, config.n_kv_heads, position, dim,
        residual, x, latents, rows["q"], rows["k"], rows["v"], rows["q_rot"], rows["k_rot"], products,
        {end: row.norm().item() for end, row in rows.items()},
        rotated, config.qk_norm is not None,
        Receipt(f't["{name}.q"][{position}, {head}]', identity, error),
    )  # fmt: skip
