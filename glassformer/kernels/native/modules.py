"""The modules of nn/ on the native kernels, with the same parameters: `use_native` changes the classes of a model's.

Matrices and embeddings keep their dtype; activations and all other parameters are float32. Each module computes with
PyTorch where a kernel cannot: with gradients, on another device, and under torch.compile.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glassformer.config import EncoderConfig, ModelConfig, RecurrentConfig
from glassformer.kernels.cpu import cpu_features, multiplies_natively
from glassformer.kernels.memory import HUGE_PAGE, in_huge_pages
from glassformer.kernels.native import ops, rows
from glassformer.kernels.native.library import is_fast
from glassformer.kernels.native.program import NativeDecoder, activation_options, norm_options
from glassformer.kernels.placement import Choice
from glassformer.nn.linear import TiedLinear
from glassformer.nn.mlp import ACTIVATIONS, MLP
from glassformer.nn.model import Decoder
from glassformer.nn.norm import LayerNorm, RMSNorm


def runs_natively(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether the kernels can compute with these tensors: on the CPU, without gradients, not compiled."""
    if torch.compiler.is_compiling() or x.dtype != torch.float32:
        return False
    tensors = [x, *(t for t in parameters if t is not None)]
    if not all(t.is_cpu for t in tensors):
        return False
    return not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors)


def native_norm(norm: nn.Module, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """Return the norm of x, with parameters in float32: `Module.half` and the like change those of `use_native`."""
    options = norm_options(norm).items()
    wide = {name: value.float() if isinstance(value, Tensor) else value for name, value in options}
    return rows.norm(x.contiguous(), **wide)


def native_product(x: Float[Tensor, "*B I"], weight: Tensor, bias: Tensor | None) -> Float[Tensor, "*B O"]:
    """Return x W^T + b in float32."""
    if weight.dtype in ops.FLOAT_FORMATS and runs_natively(x, weight, bias):
        return ops.linear(x, weight, bias)
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


class NativeLinear(nn.Linear):
    """`nn.Linear` with `native_product`."""

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return native_product(x, self.weight, self.bias)


class NativeTiedLinear(TiedLinear):
    """`TiedLinear` with `native_product`."""

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        return native_product(x, self.weight, self.bias)


class NativeEmbedding(nn.Embedding):
    """`nn.Embedding` whose rows are returned in float32."""

    def forward(self, ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B D"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(ids).float()


class NativeRMSNorm(RMSNorm):
    """`RMSNorm` on the native kernels."""

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        if not runs_natively(x, self.weight):
            return super().forward(x)
        return native_norm(self, x)


class NativeLayerNorm(LayerNorm):
    """`LayerNorm` on the native kernels."""

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        if not runs_natively(x, self.weight, self.bias):
            return super().forward(x)
        return native_norm(self, x)


class NativeMLP(MLP):
    """`MLP` whose activation runs on the native kernels."""

    def gated(self, gate: Float[Tensor, "*B F"], up: Float[Tensor, "*B F"]) -> Float[Tensor, "*B F"]:
        if not (runs_natively(gate, up) and up.dtype == torch.float32):
            return super().gated(gate, up)
        return rows.activate(gate.contiguous(), up.contiguous(), **activation_options(self))


class NativeActivation:
    """An activation function of nn/mlp.py on the native kernels."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, x: Tensor) -> Tensor:
        return rows.activate(x.contiguous(), activation=self.name) if runs_natively(x) else ACTIVATIONS[self.name](x)


NATIVE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: NativeLinear,
    TiedLinear: NativeTiedLinear,
    nn.Embedding: NativeEmbedding,
    RMSNorm: NativeRMSNorm,
    LayerNorm: NativeLayerNorm,
    MLP: NativeMLP,
    Decoder: NativeDecoder,
}
KEEP_DTYPE = (nn.Linear, nn.Embedding)  # modules whose matrix keeps its dtype


def choose_native(
    config: ModelConfig | EncoderConfig | RecurrentConfig, device: torch.device, dtype: torch.dtype
) -> Choice | None:
    """Return the choice of native modules, or None where PyTorch's are at least as fast.

    In float32 only for decoder-only models, whose decoding gains more than the products of many rows lose.
    """
    if device.type != "cpu" or isinstance(config, RecurrentConfig) or not is_fast():
        return None
    if dtype == torch.float32:
        decoder_only = isinstance(config, ModelConfig) and config.encoder is None
        if not decoder_only or "avx512f" in cpu_features():
            return None
        reason = "blocks run in one call, and the bits of a row do not depend on other rows"
    elif multiplies_natively(dtype):
        return None
    else:
        name = str(dtype).removeprefix("torch.")
        reason = f"this CPU has no {name} instructions, without which PyTorch is slow"
    return Choice("linear", "native", f"{reason}; activations are float32")


def use_native(model: nn.Module) -> None:
    """Change the classes of a model's modules to those of this file, and copy large matrices to huge pages.

    A mapped file has small pages, and reading it needs more address translations.
    """
    model.__dict__["activation_dtype"] = torch.float32  # see `dtype_of`
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if type(module) in KEEP_DTYPE and name == "weight":
                if parameter.nbytes >= HUGE_PAGE // 2:
                    parameter.data = in_huge_pages(parameter.data)
            elif parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.float32, copy=True)  # a view would keep its file mapped
    for module in model.modules():
        if type(module) in NATIVE:
            module.__class__ = NATIVE[type(module)]
        if isinstance(module, MLP):
            module.activation = NativeActivation(module.config.activation)
