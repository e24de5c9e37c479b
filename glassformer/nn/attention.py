"""Multi-head self-attention: queries, keys and values from the same x."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.config import AttentionConfig
from glassformer.nn.attend import AttendSpec
from glassformer.nn.linear import Linear
from glassformer.nn.norm import HeadNorms, make_norm
from glassformer.nn.rope import rotate
from glassformer.nn.step import LayerStep


def attend_spec(config: AttentionConfig, source: bool = False) -> AttendSpec:
    """Return the settings of the attention product. `source`: for cross-attention."""
    scale = 1 / math.sqrt(config.head_dim) if config.scale is None else config.scale
    return AttendSpec(scale, config.causal, config.window, config.softcap, source)


class MultiHead(nn.Module):
    """Base class of attention modules: the projection of all heads' z to the residual stream."""

    o: Linear

    def output(self, z: Float[Tensor, "B T H Dv"], step: LayerStep, name: str) -> Float[Tensor, "B T D"]:
        """Return Concat(heads) W_o. If a tap edits the outputs of single heads (`{name}.heads`), sum those instead."""
        z = step.see(f"{name}.z", z)
        if not step.wants(f"{name}.heads"):
            return self.o(z.flatten(-2))
        out = step.see(f"{name}.heads", by_head(self.o, z)).sum(-2)
        return (out if self.o.bias is None else out + self.o.bias).to(z.dtype)


def by_head(o: Linear, z: Float[Tensor, "B T H Dv"]) -> Float[Tensor, "B T H D"]:
    """Return the output of each head, z through the head's slice of W_o, in float32; their sum plus bias is o(z)."""
    slices = o.weight.unflatten(1, z.shape[-2:])  # [D, H, Dv]
    return torch.einsum("bthd,ohd->btho", z.float(), slices.float())


class Attention(MultiHead):
    """MultiHead(x) = Concat(head_1 .. head_H) W_o (Vaswani et al. 2017, section 3.2.2).

    T5's bias of the scores is not a parameter here: the stack computes it once for all layers (`step.bias`).
    """

    source = False

    def __init__(self, config: AttentionConfig, d_model: int):
        super().__init__()
        self.config, self.spec = config, attend_spec(config, self.source)
        width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q = nn.Linear(d_model, width, config.bias)
        self.k = nn.Linear(d_model, kv_width, config.bias)
        self.v = nn.Linear(d_model, kv_width, config.bias)
        self.o = nn.Linear(width, d_model, config.out_bias)
        self.sinks = nn.Parameter(torch.zeros(config.n_heads)) if config.sinks else None
        self.q_norm, self.k_norm = self.make_norm(config.n_heads), self.make_norm(config.n_kv_heads)

    def make_norm(self, n_heads: int) -> nn.Module:
        """Return the norm of queries or keys: one per head, one shared by all heads, or one over all of them."""
        norm, size = self.config.qk_norm, self.config.head_dim
        if norm is not None and self.config.qk_norm_over == "each":
            return HeadNorms(norm, n_heads, size)
        return make_norm(norm, size if self.config.qk_norm_over == "head" else size * n_heads)

    def project(self, linear: nn.Module, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T H Dh"]:
        """Project x to the queries, keys or values of all heads."""
        y, clip = linear(x), self.config.clip
        return (y if clip is None else y.clamp(-clip, clip)).unflatten(-1, (-1, self.config.head_dim))

    def normed(self, norm: nn.Module, x: Float[Tensor, "B T H Dh"]) -> Float[Tensor, "B T H Dh"]:
        """Normalize queries or keys, over each head or over all heads as one vector."""
        return norm(x.flatten(-2)).view_as(x) if self.config.qk_norm_over == "width" else norm(x)

    def forward(self, x: Float[Tensor, "B T D"], step: LayerStep) -> Float[Tensor, "B T D"]:
        q = step.see("attn.q", self.project(self.q, x))  # [B, T, H, Dh]
        k = step.see("attn.k", self.project(self.k, x))  # [B, T, Hkv, Dh]
        v = step.see("attn.v", self.project(self.v, x))  # [B, T, Hkv, Dh]
        q, k = self.normed(self.q_norm, q), self.normed(self.k_norm, k)
        if self.config.rope is not None:
            cos, sin = step.rotation(self.config.rope, self.config.head_dim)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q = step.see("attn.q_rot", q)
        k = step.see("attn.k_rot", k)
        z = step.attend(self.spec, q, step.keep(k, v), bias=step.bias, sinks=self.sinks)  # [B, T, H, Dh]
        return self.output(z, step, "attn")
