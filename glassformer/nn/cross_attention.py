"""Cross-attention: queries from the decoder's x, keys and values from an encoder's output."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from glassformer.nn.attention import Attention
from glassformer.nn.step import LayerStep


class CrossAttention(Attention):
    """Queries from x [B, T, D], keys and values from an encoder's output [B, S, D], computed once per source.

    "Encoder-decoder attention" of Vaswani et al. 2017, section 3.2.3.
    """

    source = True

    def forward(self, x: Float[Tensor, "B T D"], step: LayerStep) -> Float[Tensor, "B T D"]:
        q = step.see("cross.q", self.project(self.q, x))  # [B, T, H, Dh]
        q = step.see("cross.q_rot", self.normed(self.q_norm, q))
        kv = step.keep_source(lambda: self.keys_and_values(step.source, step))
        z = step.attend(self.spec, q, kv, name="cross")  # [B, T, H, Dh]
        return self.output(z, step, "cross")

    def keys_and_values(self, source: Float[Tensor, "B S D"], step: LayerStep) -> tuple[Tensor, Tensor]:
        """Return the source's keys and values, each [B, S, Hkv, Dh]."""
        k, v = step.see("cross.k", self.project(self.k, source)), step.see("cross.v", self.project(self.v, source))
        return step.see("cross.k_rot", self.normed(self.k_norm, k)), v
