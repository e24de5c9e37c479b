"""Linear layers of PyTorch operations that are faster on a CPU: prepacked for many sequences, widened for slow dtypes.

They serve models without native modules (`native/modules.py`), and decoding of many sequences by encoder-decoders.

    nn.Linear        weight [out, in]                 oneDNN reorders the matrix in every forward pass
    PrepackedLinear  the same weight, and its blocks  ... once: at 32 sequences a product takes 0.5 to 0.8 of the time
    WidenedLinear    weight in bfloat16 or float16    multiplied in float32, converted a tile at a time: where the CPU
                                                      has no instructions for the dtype: `bench/widened.py`

PyTorch has the two operations of `PrepackedLinear` for `torch.compile` of a frozen model; they have no gradient. The
blocks take as much memory as the weights. A prepacked model is made for one call: weights may change between calls.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.kernels.cpu import multiplies_natively
from glassformer.kernels.placement import Choice
from glassformer.nn.linear import TiedLinear, device_of, dtype_of
from glassformer.nn.model import Decoder

Model = TypeVar("Model", bound=Decoder)
Module = TypeVar("Module", bound=nn.Module)
WIDEN_ROWS = 4  # rows of x; below, PyTorch's own product reads less memory
TILE = 1 << 18  # numbers of a matrix that are converted at a time: 1 MB of float32
PREPACK_ROWS = 8  # sequences; packing takes as long as about 5 forward passes, which pays off soon from here on


class PrepackedLinear(nn.Module):
    """x W^T + b without gradients, as `nn.Linear`. `rows`: the expected number of rows of x; others are slower."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return torch.ops.mkldnn._linear_pointwise(x, self.blocks, self.bias, "none", [], "")


def widened_product(
    x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None
) -> Float[Tensor, "*B O"]:
    """x W^T + b, computed in float32 for `WIDEN_ROWS` rows or more, and returned in the dtype of x."""
    n_out, n_in = weight.shape
    if x.numel() < WIDEN_ROWS * n_in:
        return F.linear(x, weight, bias)
    rows, wide = max(1, TILE // n_in), x.float()
    biases = [None] * -(-n_out // rows) if bias is None else [part.float() for part in bias.split(rows)]
    parts = zip(weight.split(rows), biases, strict=True)
    return torch.cat([F.linear(wide, part.float(), b).to(x.dtype) for part, b in parts], -1)


class WidenedLinear(nn.Linear):
    """`nn.Linear` with `widened_product`."""

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return widened_product(x, self.weight, self.bias)


class WidenedTiedLinear(TiedLinear):
    """`TiedLinear` with `widened_product`."""

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        return widened_product(x, self.weight, self.bias)


WIDENED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: WidenedLinear, TiedLinear: WidenedTiedLinear}


def widen(model: nn.Module) -> None:
    """Widen the linear layers of a model, which have one device and dtype, if `choose_linear` returns "widened"."""
    if choose_linear(device_of(model), dtype_of(model), 1).value == "widened":
        widen_layers(model)


def widen_layers(model: nn.Module) -> None:
    """Change the type of a model's linear layers; their parameters stay."""
    for module in model.modules():
        if type(module) in WIDENED:
            module.__class__ = WIDENED[type(module)]


def choose_linear(device: torch.device | str, dtype: torch.dtype, rows: int, packed: bool = False) -> Choice:
    """Choose how to multiply `rows` rows at a time: packed, prepacked or widened, or as the model's own layers do.

    packed: whether the model has packed matrices, which `choose_weights` decides.
    """
    if packed:
        return Choice("linear", "packed", "quantized matrices are multiplied by activations in 8 bits")
    if torch.device(device).type != "cpu":
        return Choice("linear", "torch", "weights are prepacked on a CPU only")
    if not multiplies_natively(dtype):
        name = str(dtype).removeprefix("torch.")
        return Choice("linear", "widened", f"this CPU has no {name} instructions: rows are multiplied in float32")
    if rows < PREPACK_ROWS:
        return Choice("linear", "torch", f"below {PREPACK_ROWS} sequences prepacking takes longer than it saves")
    if not can_prepack(dtype):
        return Choice("linear", "torch", f"oneDNN does not multiply prepacked {dtype} weights on this CPU")
    return Choice("linear", "prepacked", f"oneDNN multiplies {rows} sequences fastest with weights in its own layout")


def prepack(model: Model, rows: int) -> Model:
    """Return a model with the same parameters, faster for forward passes of `rows` sequences without gradients.

    Returns the model itself unless `choose_linear` returns "prepacked". A linear layer with hooks keeps its type.
    """
    chosen = choose_linear(device_of(model), dtype_of(model), rows).value
    return _prepack(model, rows) if chosen == "prepacked" else model


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
