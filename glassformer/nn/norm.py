"""LayerNorm and RMSNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.config import NormConfig


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias, over the last axis (Ba et al. 2016)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size)), eps

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019), over the last axis; in float32, as Llama is."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        if x.is_cuda or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return rms_norm(x, self.eps).to(x.dtype) * self.weight.to(x.dtype)
        return TrainedRMSNorm.apply(x, self.weight, self.eps)  # pyright: ignore[reportReturnType]


def rms_norm(x: Float[Tensor, "*B D"], eps: float) -> Float[Tensor, "*B D"]:
    """x / sqrt(mean(x^2) + eps), in float32."""
    return F.rms_norm(x.float(), x.shape[-1:], None, eps)


class TrainedRMSNorm(torch.autograd.Function):
    """The same numbers with a gradient written out: PyTorch's, on a CPU, takes two to five times as long.

    n = x r,  r = 1 / sqrt(mean(x^2) + eps),  g = dL/dy * w:   dL/dx = r (g - n mean(g n)),   dL/dw = sum(dL/dy * n)
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        n = rms_norm(x, eps)
        ctx.save_for_backward(x, n, weight)
        ctx.eps = eps
        return n.to(x.dtype) * weight.to(x.dtype)

    @staticmethod
    def backward(ctx, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, n, weight = ctx.saved_tensors
        size, w = n.shape[-1], weight.float()
        r = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True).square_().div_(size).add_(ctx.eps).rsqrt_()
        dy = dy.float()
        dy_n = dy * n  # [..., D]
        mean = (dy_n.flatten(0, -2) @ w).div_(size).view_as(r)
        dx = torch.addcmul(dy * w, n, mean, value=-1).mul_(r)
        return dx.to(x.dtype), dy_n.flatten(0, -2).sum(0).to(weight.dtype), None


def make_norm(config: NormConfig | None, size: int) -> nn.Module:
    """The norm a config names; None is the identity."""
    if config is None:
        return nn.Identity()
    return {"layer": LayerNorm, "rms": RMSNorm}[config.kind](size, config.eps)
