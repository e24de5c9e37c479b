"""Linear layers: the protocol that every weight matrix follows, and the variants that are not `nn.Linear`."""

from __future__ import annotations

from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's parameters and buffers."""
    return next(chain(module.parameters(), module.buffers())).device


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the dtype of a module's activations: its parameters', or float32 with native or packed matrices."""
    if isinstance(dtype := getattr(module, "activation_dtype", None), torch.dtype):
        return dtype
    return next((p.dtype for p in module.parameters()), torch.float32)


@runtime_checkable
class Linear(Protocol):
    """x W^T + b. `nn.Linear` is one; packed, quantized or sharded matrices are others.

    `weight` [out, in] may be materialized on demand, for inspection: forward passes call the layer only.
    """

    bias: Any

    @property
    def weight(self) -> Any: ...
    def __call__(self, x: Tensor) -> Tensor: ...


class TiedLinear(nn.Module):
    """A head that multiplies by the embedding's table [V, D] and has no matrix of its own (Press & Wolf 2017)."""

    def __init__(self, embed: nn.Embedding, bias: bool = False):
        super().__init__()
        self._embed = (embed,)  # in a tuple, so that its table is not registered a second time
        self.bias = nn.Parameter(torch.zeros(embed.num_embeddings)) if bias else None

    @property
    def weight(self) -> Float[Tensor, "V D"]:
        return self._embed[0].weight

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        return F.linear(x, self.weight, self.bias)


class HeadLinear(nn.Linear):
    """One matrix W_h [out, in] per head, stored as one matrix [H * out, in]; no bias."""

    def __init__(self, n_in: int, n_heads: int, n_out: int):
        super().__init__(n_in, n_heads * n_out, bias=False)
        self.n_heads = n_heads

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B H O"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return W_h x for every head h."""
        return super().forward(x).unflatten(-1, (self.n_heads, -1))

    def per_head(self, x: Float[Tensor, "*B H I"]) -> Float[Tensor, "*B H O"]:
        """Return W_h x_h: each head has its own input."""
        return torch.einsum("...hi,hoi->...ho", x, self.weight.unflatten(0, (self.n_heads, -1)))

    def transposed(self, y: Float[Tensor, "*B H O"]) -> Float[Tensor, "*B H I"]:
        """Return W_h^T y_h."""
        return torch.einsum("...ho,hoi->...hi", y, self.weight.unflatten(0, (self.n_heads, -1)))


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, whatever the dtype of its weights and its input."""

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())
