"""The output of each head through its slice of W_o (view 7), and small attention matrices of all heads (view 8).

MultiHead(x) = Concat(z_1 .. z_H) W_o + b = sum over heads of z_h W_o[h] + b (Vaswani et al. 2017, section 3.2.2)
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from glassformer.generate.sampling import check_number
from glassformer.inspect.trace.recompute import larger
from glassformer.inspect.trace.trace import Receipt, Trace
from glassformer.inspect.views.layer import (
    AttentionKind,
    get_attention,
    patterns_of,
    resolve_position,
    select_stack,
    values_at,
)
from glassformer.inspect.views.result import off
from glassformer.kernels.packed_linear import rounding_of, weight_rows


@dataclass(frozen=True)
class Heads:
    """The result of `heads`.

    z [H, Dv]: the concatenated head outputs; parts [H, D]: each head through W_o; out: their sum with the bias.
    norms: the L2 norm of each part. shares: the projection of each part on `out`, divided by the norm of `out`; with
    `bias_share` they add up to 1.
    """

    layer: int
    position: int
    z: Float[Tensor, "H Dv"]
    parts: Float[Tensor, "H D"]
    bias: Float[Tensor, "D"] | None
    out: Float[Tensor, "D"]
    norms: Float[Tensor, "H"]
    shares: Float[Tensor, "H"]
    bias_share: float
    receipt: Receipt


@torch.no_grad()
def heads(t: Trace, *, layer: int, position: int) -> Heads:
    """The vector that each head of a layer adds for one token.

    Raises:
        RequestError: The layer or position is out of range.
    """
    attention, position = get_attention(t, layer), resolve_position(t, "position", position)
    name = f"blocks.{layer}.attn"
    z, out = values_at(t, f"{name}.z", position), values_at(t, f"{name}.out", position)  # [H, Dv], [D]
    slices = weight_rows(attention.o, slice(None)).unflatten(1, z.shape)  # [D, H, Dv]
    parts = torch.einsum("hv,dhv->hd", z, slices)
    bias = None if attention.o.bias is None else attention.o.bias.detach().float()
    total = parts.sum(0) if bias is None else parts.sum(0) + bias
    square = (out @ out).clamp(min=1e-30)
    identity = f"max |sum of heads + bias - attn.out|{rounding_of(attention.o)}"
    receipt = Receipt(f't["{name}.heads"][{position}]', identity, off(total, out))
    bias_share = 0.0 if bias is None else (bias @ out / square).item()
    return Heads(layer, position, z, parts, bias, out, parts.norm(dim=-1), parts @ out / square, bias_share, receipt)


@dataclass(frozen=True)
class Grid:
    """The attention matrices of one layer, max-pooled to `rows` x `columns` bytes per head, concatenated, in base64.

    A byte b is the probability b / 255: the maximum of its field, within `bound`. A mean would hide spikes.
    """

    layer: int
    heads: int
    rows: int
    columns: int
    pixels: str
    bound: float
    receipt: Receipt


@torch.no_grad()
def grid(t: Trace, *, layer: int, size: int = 48, attention: AttentionKind = "attn") -> Grid:
    """All heads of one layer: each attention matrix, max-pooled to at most `size` x `size`.

    Args:
        attention: As in `cell`.

    Raises:
        RequestError: The layer is out of range, or the size is not from 4 to 256.
    """
    stack, kind = select_stack(t, attention)
    get_attention(stack, layer, kind=kind)
    check_number("size", size, 4, 256)
    name = f"{'' if stack is t else 'encoder.'}blocks.{layer}.{kind}.probs"
    _, n, n_keys = t.shape(name)
    rows, columns = min(size, n), min(size, n_keys)
    pooled, identity, error = [], None, 0.0
    fields = (range(i * n // rows, -(-(i + 1) * n // rows)) for i in range(rows))  # the queries of each row
    for value in patterns_of(t, name, fields):
        identity, error = value.identity, larger(error, value.error or 0.0)
        pooled.append(F.adaptive_max_pool1d(value.tensor.float().amax(1), columns))
    small = torch.stack(pooled, 1)  # [H, rows, columns]
    data = (small * 255).round().to(torch.uint8).contiguous().cpu().numpy().tobytes()
    receipt = Receipt(f't["{name}"]', identity, error)
    return Grid(layer, len(small), rows, columns, base64.b64encode(data).decode(), 0.5 / 255, receipt)
