"""The residual stream: each sublayer reads it and adds to it."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from glassformer.config import LayerConfig
from glassformer.nn.attention import Attention, CrossAttention
from glassformer.nn.mlp import MLP
from glassformer.nn.norm import make_norm
from glassformer.nn.step import LayerStep


class Residual(nn.Module):
    """x -> post(x + out(f(pre(x)))).  pre: GPT-2, Llama.  post: BERT.  out: OLMo-2.  pre and out: Gemma 2."""

    def __init__(self, name: str, config: LayerConfig, d_model: int):
        super().__init__()
        self.name = name
        norms = {at: config.norm if at in config.norm_at else None for at in ("pre", "out", "post")}
        self.pre, self.out, self.post = (make_norm(norms[at], d_model) for at in ("pre", "out", "post"))

    def forward(self, x: Float[Tensor, "*B D"], f: nn.Module, step: LayerStep) -> Float[Tensor, "*B D"]:
        read = step.see(f"{self.name}.x", self.pre(x))
        written = step.see(f"{self.name}.out", f(read, step))
        return self.post(x + step.see(f"{self.name}.add", self.out(written)))


class Block(nn.Module):
    """Attention, which moves information between tokens, then the feed-forward layer, which works on each alone.

    Between the two, in the decoder of an encoder-decoder, attention to the source.
    """

    def __init__(self, config: LayerConfig, d_model: int):
        super().__init__()
        self.attn = Attention(config.attention, d_model)
        self.mlp = MLP(config.mlp, d_model)
        self.attn_residual = Residual("attn", config, d_model)
        self.mlp_residual = Residual("mlp", config, d_model)
        self.cross = None if config.cross is None else CrossAttention(config.cross, d_model)
        self.cross_residual = None if config.cross is None else Residual("cross", config, d_model)

    def forward(self, x: Float[Tensor, "B T D"], step: LayerStep) -> Float[Tensor, "B T D"]:
        x = self.attn_residual(step.see("resid_pre", x), self.attn, step)
        x = step.see("resid_mid", x)
        if self.cross is not None and self.cross_residual is not None:
            x = step.see("resid_cross", self.cross_residual(x, self.cross, step))
        x = self.mlp_residual(x, self.mlp, step)
        return step.see("resid_post", x)
