"""A model's twin for writing many rows: its matrices lie once more, as oneDNN multiplies few rows by them fastest.

    Linear  weight [out, in]             x W^T of R rows: the matrix is brought into blocks anew in every pass
    Packed  the same weight, and blocks  ... once: with 32 rows the product takes 0.5 to 0.8 of the time

PyTorch has these two operations for what `torch.compile` makes of a frozen model; they have no gradient. The blocks are
as large as the weights. They are made for one call and belong to nobody else: weights may change between calls.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.nn.linear import TiedLinear
from glassformer.nn.model import Decoder

Model = TypeVar("Model", bound=Decoder)
Part = TypeVar("Part", bound=nn.Module)
PACKED_ROWS = 8  # from so many rows on the blocks are soon paid for: they take as long to make as about 5 passes


class PackedLinear(nn.Module):
    """x W^T + b, as `nn.Linear`, for inference alone. `rows`: of the x that it is going to see; others are allowed."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return torch.ops.mkldnn._linear_pointwise(x, self.blocks, self.bias, "none", [], "")


def packed(model: Model, rows: int) -> Model:
    """The same model, with the same parameters, for passes of about so many rows without gradients.

    Itself where that is no gain: for few rows, on another device, in a dtype or a PyTorch that has no such product. A
    matrix that somebody has hooked stays as it is.
    """
    if rows < PACKED_ROWS or not can_pack(model.head.weight):
        return model
    return _packed(model, rows)


def can_pack(weight: Tensor) -> bool:
    """Whether PyTorch has the two operations for such a weight."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32


def _packed(part: Part, rows: int) -> Part:
    if type(part) in (nn.Linear, TiedLinear) and not part._forward_hooks and not part._forward_pre_hooks:
        return PackedLinear(part.weight, part.bias, rows)  # pyright: ignore
    twin = copy.copy(part)
    twin._modules = {name: None if child is None else _packed(child, rows) for name, child in part._modules.items()}
    return twin
