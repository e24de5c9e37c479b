"""Modules with packed matrices (`packed.py`), and a model's weights by name, packed ones included.

    PackedLinear      takes the place of `nn.Linear`
    PackedEmbedding   takes the place of `nn.Embedding`: decodes the rows of the tokens
    PackedTiedLinear  takes the place of `TiedLinear`: multiplies by the embedding's packed matrix

Their `weight` is decoded anew at each access: forward passes do not use it, and views use `weight_rows`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from glassformer.errors import ConfigError
from glassformer.kernels.native.library import is_fast, load_library
from glassformer.kernels.native.ops import linear, look_up
from glassformer.kernels.packed import PackedMatrix, decode, product
from glassformer.nn.linear import TiedLinear


def runs_packed() -> bool:
    """Whether models are loaded with packed matrices by default: where packed products are faster than float ones."""
    return is_fast()


def packed_product(x: Float[Tensor, "*B I"], matrix: PackedMatrix, bias: Tensor | None) -> Float[Tensor, "*B O"]:
    """Return x W^T + b in the dtype of x, by the native kernels where there are any: the same bits as `product`.

    Gradients are those of the decoded matrix: the rounding of x to 8 bits passes them on unchanged.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, bias)):
        return _WithGradients.apply(x, matrix, bias)  # pyright: ignore[reportReturnType]
    return _packed_product(x, matrix, bias)


def _packed_product(x: Float[Tensor, "*B I"], matrix: PackedMatrix, bias: Tensor | None) -> Float[Tensor, "*B O"]:
    if load_library() is not None:
        return linear(x, matrix, bias).to(x.dtype)
    y = product(x, matrix)
    return (y if bias is None else y + bias).to(x.dtype)


class _WithGradients(torch.autograd.Function):
    """`packed_product` with gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: PackedMatrix, bias: Tensor | None) -> Tensor:
        ctx.matrix, ctx.bias_dtype = matrix, None if bias is None else bias.dtype
        return _packed_product(x, matrix, bias)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "*B O"]) -> tuple[Tensor, None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        bias = None if ctx.bias_dtype is None else grad.flatten(0, -2).sum(0).to(ctx.bias_dtype)
        return grad @ decode(ctx.matrix).to(grad.dtype), None, bias


class PackedModule(nn.Module):
    """Base class: a packed matrix as a buffer, so that it is part of the state dict."""

    packed: Tensor

    def __init__(self, matrix: PackedMatrix):
        super().__init__()
        self.format, self.n_out, self.n_in = matrix.format, matrix.n_out, matrix.n_in
        self.register_buffer("packed", matrix.data)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Called by `to` and the like. Raises ConfigError if they move it from the CPU."""
        device = fn(self.packed[:0]).device
        if device.type != "cpu":
            raise ConfigError(f"packed matrices run on the CPU only, got {device}: load the model with this device")
        return super()._apply(fn, recurse)

    @property
    def matrix(self) -> PackedMatrix:
        """The matrix in the buffer, which `load_state_dict` may replace."""
        return PackedMatrix(self.format, self.n_out, self.n_in, self.packed)

    @property
    def weight(self) -> Float[Tensor, "O I"]:
        """The decoded matrix in float32, for inspection."""
        return decode(self.matrix)

    def extra_repr(self) -> str:
        return f"{self.n_out}, {self.n_in}, {self.format}"


class PackedLinear(PackedModule):
    """x W^T + b of a packed matrix, with quantized activations: see `product`."""

    def __init__(self, matrix: PackedMatrix, bias: nn.Parameter | None):
        super().__init__(matrix)
        self.bias = bias

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return packed_product(x, self.matrix, self.bias)


class PackedEmbedding(PackedModule):
    """A table of embeddings whose rows are decoded when they are looked up."""

    def forward(self, ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B D"]:
        if load_library() is not None and ids.is_cpu:
            return look_up(ids, self.matrix)
        return decode(self.matrix, ids)


class PackedTiedLinear(nn.Module):
    """A head that multiplies by the embedding's packed table, as `TiedLinear`."""

    def __init__(self, embed: PackedEmbedding, bias: nn.Parameter | None):
        super().__init__()
        self._embed = (embed,)  # in a tuple, so that its table is not registered a second time
        self.bias = bias

    @property
    def matrix(self) -> PackedMatrix:
        return self._embed[0].matrix

    @property
    def weight(self) -> Float[Tensor, "V D"]:
        return self._embed[0].weight

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        return packed_product(x, self.matrix, self.bias)


PACKED = PackedLinear | PackedEmbedding | PackedTiedLinear


def can_replace(model: nn.Module, name: str) -> bool:
    """Whether a parameter is the matrix of a layer that `replace_matrix` can replace."""
    path, _, last = name.rpartition(".")
    return last == "weight" and type(model.get_submodule(path)) in (nn.Linear, nn.Embedding)


def replace_matrix(model: nn.Module, name: str, matrix: PackedMatrix) -> None:
    """Replace the layer of the parameter `name`, wherever the model uses it, by one with a packed matrix.

    The new layer has the old `bias`. Heads that are tied to an embedding are replaced with it.
    """
    old: Any = model.get_submodule(name.removesuffix(".weight"))
    assert can_replace(model, name), f"{name} is not the matrix of a linear layer or an embedding"
    new = PackedEmbedding(matrix) if isinstance(old, nn.Embedding) else PackedLinear(matrix, old.bias)
    for module in list(model.modules()):
        for key, child in module._modules.items():
            if child is old:
                module._modules[key] = new
            elif isinstance(child, TiedLinear) and child._embed[0] is old and isinstance(new, PackedEmbedding):
                module._modules[key] = PackedTiedLinear(new, child.bias)


def packed_modules(model: nn.Module) -> Iterator[tuple[str, PackedModule]]:
    """Yield each packed matrix once, with the name of its module."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, PackedModule))


def weight_shapes(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters by name, with a tensor without storage (meta, float32) for each packed matrix."""
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, PackedModule):
            found[f"{prefix}weight"] = torch.empty(module.n_out, module.n_in, device="meta")
        found |= {f"{prefix}{name}": p for name, p in module.named_parameters(recurse=False)}
    return found


def count_weights(model: nn.Module) -> int:
    """Return the number of a model's parameters, those of packed matrices included."""
    return sum(p.numel() for p in weight_shapes(model).values())


class ModelWeights(Mapping[str, Tensor]):
    """A model's weights by name; packed matrices are decoded when they are requested, and not stored.

    Attributes:
        shapes: see `weight_shapes`.
    """

    def __init__(self, model: nn.Module):
        self.model, self.shapes = model, weight_shapes(model)

    def __getitem__(self, name: str) -> Tensor:
        value = self.shapes[name]
        return self.model.get_submodule(name.rpartition(".")[0]).weight if value.is_meta else value  # pyright: ignore

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def rounding_of(*layers: Any) -> str:
    """Return the words that an identity of W x and the forward pass needs: "" unless a layer's matrix is packed."""
    return ", where x has 8 bits in the forward pass" if any(isinstance(layer, PACKED) for layer in layers) else ""


def weight_shape(layer: Any) -> tuple[int, int]:
    """Return [rows, columns] of a layer's matrix."""
    n_out, n_in = layer.matrix.shape if isinstance(layer, PACKED) else layer.weight.shape
    return n_out, n_in


def weight_rows(layer: Any, rows: slice | int | list[int] | Tensor) -> Float[Tensor, "*B I"]:
    """Return rows of a layer's matrix in float32; of a packed one only these are decoded."""
    if not isinstance(layer, PACKED):
        return layer.weight.detach()[rows].float()
    return decode(layer.matrix, torch.arange(layer.matrix.n_out)[rows])


def weight_chunks(layer: Any, n: int) -> Iterator[Float[Tensor, "N I"]]:
    """Yield a layer's matrix, `n` rows at a time, in float32."""
    return (weight_rows(layer, slice(first, first + n)) for first in range(0, weight_shape(layer)[0], n))


def weight_pointer(layer: Any) -> int:
    """Return the address of a layer's matrix: equal for layers that share one."""
    return (layer.matrix.data if isinstance(layer, PACKED) else layer.weight).data_ptr()
