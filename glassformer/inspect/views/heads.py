"""What each head writes: its z through its own slice of W_o. View 7. And all heads' patterns, small. View 8.

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
from glassformer.inspect.trace.trace import Receipt, Trace
from glassformer.inspect.views.layer import Which, at, attention_of, block_of, position_of, side_of
from glassformer.inspect.views.result import off


@dataclass(frozen=True)
class Heads:
    """`z` [H, Dv] is the concatenation; `parts` [H, D] each head's through W_o; `out` their sum with the bias.

    `norms`: the length of each part. `shares`: each part's projection on `out`, over the length of `out`, so that they
    and the bias's share add up to 1.
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
    """What each head of a layer writes for one token. RequestError for a layer or position that there is not."""
    attention, position = attention_of(t, layer), position_of(t, "position", position)
    name = f"blocks.{layer}.attn"
    z, out = at(t, f"{name}.z", position), at(t, f"{name}.out", position)  # [H, Dv], [D]
    slices = attention.o.weight.float().unflatten(1, z.shape)  # [D, H, Dv]
    parts = torch.einsum("hv,dhv->hd", z, slices)
    bias = None if attention.o.bias is None else attention.o.bias.detach().float()
    whole = parts.sum(0) if bias is None else parts.sum(0) + bias
    square = (out @ out).clamp(min=1e-30)
    receipt = Receipt(f't["{name}.heads"][{position}]', "max |sum of heads + bias - attn.out|", off(whole, out))
    bias_share = 0.0 if bias is None else (bias @ out / square).item()
    return Heads(layer, position, z, parts, bias, out, parts.norm(dim=-1), parts @ out / square, bias_share, receipt)


@dataclass(frozen=True)
class Grid:
    """One layer's heads as pictures of `rows` x `columns` bytes each, base64, one behind the other.

    A byte b stands for b / 255, which is the largest probability of its field to within `bound`: the largest, for a
    mean hides spikes.
    """

    layer: int
    heads: int
    rows: int
    columns: int
    pictures: str
    bound: float
    receipt: Receipt


@torch.no_grad()
def grid(t: Trace, *, layer: int, size: int = 48, attention: Which = "attn") -> Grid:
    """All heads of one layer, each probability matrix max-pooled to at most `size` x `size`.

    attention: as of `cell`.

    RequestError for a layer that there is not, or a size outside 4 to 256.
    """
    side, own = side_of(t, attention)
    if own == "attn":
        block_of(side, layer)
    else:
        attention_of(side, layer, which=own)
    check_number("size", size, 4, 256)
    name = f"blocks.{layer}.{own}.probs" if side is t else f"encoder.blocks.{layer}.{own}.probs"
    value = t[name]
    probs = value.tensor.float()  # [H, T, S]
    small = F.adaptive_max_pool2d(probs, (min(size, probs.shape[1]), min(size, probs.shape[2])))
    data = (small * 255).round().to(torch.uint8).contiguous().cpu().numpy().tobytes()
    receipt = Receipt(f't["{name}"]', value.identity, value.error)
    n_heads, rows, columns = small.shape
    return Grid(layer, n_heads, rows, columns, base64.b64encode(data).decode(), 0.5 / 255, receipt)
