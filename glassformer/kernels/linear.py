"""Prepacked weights: a copy of each matrix in the layout in which oneDNN multiplies many sequences fastest.

    nn.Linear        weight [out, in]                 oneDNN reorders the matrix in every forward pass
    PrepackedLinear  the same weight, and its blocks  ... once: at 32 sequences a product takes 0.5 to 0.8 of the time

PyTorch has these two operations for `torch.compile` of a frozen model; they have no gradient. The blocks take as much
memory as the weights. A prepacked model is made for one call: weights may change between calls.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.kernels.placement import Choice
from glassformer.nn.linear import TiedLinear
from glassformer.nn.model import Decoder

Model = TypeVar("Model", bound=Decoder)
Module = TypeVar("Module", bound=nn.Module)
PREPACK_ROWS = 8  # sequences; packing takes as long as about 5 forward passes, which pays off soon from here on


class PrepackedLinear(nn.Module):
    """x W^T + b without gradients, as `nn.Linear`. `rows`: the expected number of rows of x; others are slower."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return torch.ops.mkldnn._linear_pointwise(x, self.blocks, self.bias, "none", [], "")


def choose_linear(device: torch.device | str, dtype: torch.dtype, rows: int) -> Choice:
    """Choose how to decode `rows` sequences at a time: with prepacked weights, or with the model's own."""
    if torch.device(device).type != "cpu":
        return Choice("linear", "torch", "weights are prepacked on a CPU only")
    if rows < PREPACK_ROWS:
        return Choice("linear", "torch", f"below {PREPACK_ROWS} sequences prepacking takes longer than it saves")
    if not can_prepack(dtype):
        return Choice("linear", "torch", f"oneDNN does not multiply prepacked {dtype} weights on this CPU")
    return Choice("linear", "prepacked", f"oneDNN multiplies {rows} sequences fastest with weights in its own layout")


def prepack(model: Model, rows: int) -> Model:
    """Return a model with the same parameters, faster for forward passes of `rows` sequences without gradients.

    Returns the model itself if `choose_linear` chooses "torch". A linear layer with hooks keeps its type.
    """
    weight = model.head.weight
    return _prepack(model, rows) if choose_linear(weight.device, weight.dtype, rows).value == "prepacked" else model


@cache
def can_prepack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch and CPU multiply prepacked weights of a dtype correctly, by one test product."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    weight, x = torch.eye(16, dtype=dtype), torch.arange(32.0, dtype=dtype).view(2, 16)
    try:
        return torch.equal(PrepackedLinear(weight, None, 2)(x), x)
    except (AttributeError, RuntimeError):  # the operation does not exist, or not for this dtype on this CPU
        return False


def _prepack(module: Module, rows: int) -> Module:
    if type(module) in (nn.Linear, TiedLinear) and not module._forward_hooks and not module._forward_pre_hooks:
        return PrepackedLinear(module.weight, module.bias, rows)  # pyright: ignore
    twin = copy.copy(module)
    twin._modules = {name: None if one is None else _prepack(one, rows) for name, one in module._modules.items()}
    return twin
