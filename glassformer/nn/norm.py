"""LayerNorm and RMSNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.config import NormConfig


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias, over the last axis (Ba et al. 2016).

    Without weight and bias (OLMo) it computes in float32: torch's kernel would round intermediate values.
    """

    def __init__(self, size: int, eps: float, scale: str | None = "weight", bias: bool = True):
        super().__init__()
        self.size, self.eps = (size,), eps
        self.weight = None if scale is None else nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias and scale is not None else None

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        if self.weight is None:
            return F.layer_norm(x.float(), self.size, None, None, self.eps).to(x.dtype)
        return F.layer_norm(x, self.size, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019), over the last axis; normalizes in float32.

    The weight multiplies after the cast to x's dtype (Llama) or before it ("float32": OLMo 2); with "float32 1+" the
    factor is 1 + weight (Gemma).
    """

    def __init__(self, size: int, eps: float, scale: str = "weight"):
        super().__init__()
        self.eps, self.scale = eps, scale
        self.weight = nn.Parameter(torch.zeros(size) if scale == "float32 1+" else torch.ones(size))

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        normed = F.rms_norm(x.float(), self.weight.shape, None, self.eps)
        if self.scale == "weight":
            return normed.to(x.dtype) * self.weight.to(x.dtype)
        weight = self.weight.float()
        return (normed * (1 + weight if self.scale == "float32 1+" else weight)).to(x.dtype)


class HeadNorms(nn.ModuleList):
    """One norm per head, each with its own weight and no bias, over x [..., H, Dh]."""

    def __init__(self, config: NormConfig, n_heads: int, head_dim: int):
        options = {"bias": False} if config.kind == "layer" else {}
        super().__init__(KINDS[config.kind](head_dim, config.eps, config.scale, **options) for _ in range(n_heads))

    def forward(self, x: Float[Tensor, "*B H Dh"]) -> Float[Tensor, "*B H Dh"]:
        return torch.stack([norm(head) for norm, head in zip(self, x.unbind(-2), strict=True)], -2)


KINDS = {"layer": LayerNorm, "rms": RMSNorm}


def make_norm(config: NormConfig | None, size: int) -> nn.Module:
    """Return the norm that a configuration describes; None is the identity."""
    return nn.Identity() if config is None else KINDS[config.kind](size, config.eps, config.scale)
