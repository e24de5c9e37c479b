"""Multi-head self-attention: queries, keys and values from one x."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn

from glassformer.config import AttentionConfig
from glassformer.nn.attend import AttendSpec
from glassformer.nn.norm import make_norm
from glassformer.nn.rope import rotate
from glassformer.nn.step import LayerStep


def spec_of(config: AttentionConfig) -> AttendSpec:
    """The part of an attention's configuration that the product itself needs."""
    scale = 1 / math.sqrt(config.head_dim) if config.scale is None else config.scale
    return AttendSpec(scale=scale, window=config.window)


class Attention(nn.Module):
    """MultiHead(x) = Concat(head_1 .. head_H) W_o (Vaswani et al. 2017, section 3.2.2)."""

    def __init__(self, config: AttentionConfig, d_model: int):
        super().__init__()
        self.config, self.spec = config, spec_of(config)
        width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q = nn.Linear(d_model, width, config.bias)
        self.k = nn.Linear(d_model, kv_width, config.bias)
        self.v = nn.Linear(d_model, kv_width, config.bias)
        self.o = nn.Linear(width, d_model, config.out_bias)
        self.q_norm = make_norm(config.qk_norm, config.head_dim)
        self.k_norm = make_norm(config.qk_norm, config.head_dim)

    def forward(self, x: Float[Tensor, "B T D"], step: LayerStep) -> Float[Tensor, "B T D"]:
        heads = (-1, self.config.head_dim)
        q = step.see("attn.q", self.q(x).unflatten(-1, heads))  # [B, T, H, Dh]
        k = step.see("attn.k", self.k(x).unflatten(-1, heads))  # [B, T, Hkv, Dh]
        v = step.see("attn.v", self.v(x).unflatten(-1, heads))  # [B, T, Hkv, Dh]
        q, k = self.q_norm(q), self.k_norm(k)
        if self.config.rope is not None:
            cos, sin = step.rotation(self.config.rope, self.config.head_dim)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q = step.see("attn.q_rot", q)
        k = step.see("attn.k_rot", k)
        z = step.attend(self.spec, q, step.keep(k, v))  # [B, T, H, Dh]
        return self.o(step.see("attn.z", z).flatten(-2))
