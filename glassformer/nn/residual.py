"""The residual stream: each sublayer reads it and adds to it."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from glassformer.config import LayerConfig
from glassformer.nn.attention import Attention, CrossAttention
from glassformer.nn.latent import LatentAttention
from glassformer.nn.mlp import MLP
from glassformer.nn.moe import MoE
from glassformer.nn.norm import make_norm
from glassformer.nn.step import LayerStep


class Residual(nn.Module):
    """x -> post(x + out(f(pre(x)))).  pre: GPT-2, Llama.  post: BERT.  out: OLMo-2.  pre and out: Gemma 2.

    `bare`: without norms, for somebody else's norm is read through.
    """

    def __init__(self, name: str, config: LayerConfig, d_model: int, bare: bool = False):
        super().__init__()
        self.name = name
        norms = {at: config.norm if at in config.norm_at and not bare else None for at in ("pre", "out", "post")}
        self.pre, self.out, self.post = (make_norm(norms[at], d_model) for at in ("pre", "out", "post"))

    def forward(self, x: Float[Tensor, "*B D"], f: nn.Module, step: LayerStep) -> Float[Tensor, "*B D"]:
        return self.post(x + self.branch(self.pre(x), f, step))

    def branch(self, read: Float[Tensor, "*B D"], f: nn.Module, step: LayerStep) -> Float[Tensor, "*B D"]:
        """out(f(read)): what is added to the residual."""
        written = step.see(f"{self.name}.out", f(step.see(f"{self.name}.x", read), step))
        return step.see(f"{self.name}.add", self.out(written))


class Block(nn.Module):
    """Attention, which moves information between tokens, then the feed-forward layer, which works on each alone.

    Between the two, in the decoder of an encoder-decoder, attention to the source. Parallel, both at once:
    x -> x + attn(pre(x)) + mlp(pre'(x)), where pre' may be pre.
    """

    def __init__(self, config: LayerConfig, d_model: int):
        super().__init__()
        self.parallel, self.shared_norm = config.parallel, config.shared_norm
        kind = Attention if config.attention.latent is None else LatentAttention
        self.attn = kind(config.attention, d_model)
        self.mlp = MLP(config.mlp, d_model) if config.experts is None else MoE(config.experts, config.mlp, d_model)
        self.attn_residual = Residual("attn", config, d_model)
        self.mlp_residual = Residual("mlp", config, d_model, bare=config.shared_norm)
        self.cross = None if config.cross is None else CrossAttention(config.cross, d_model)
        self.cross_residual = None if config.cross is None else Residual("cross", config, d_model)

    def forward(self, x: Float[Tensor, "B T D"], step: LayerStep) -> Float[Tensor, "B T D"]:
        x = step.see("resid_pre", x)
        if self.parallel:
            return step.see("resid_post", self.both(x, step))
        x = step.see("resid_mid", self.attn_residual(x, self.attn, step))
        if self.cross is not None and self.cross_residual is not None:
            x = step.see("resid_cross", self.cross_residual(x, self.cross, step))
        x = self.mlp_residual(x, self.mlp, step)
        return step.see("resid_post", x)

    def both(self, x: Float[Tensor, "B T D"], step: LayerStep) -> Float[Tensor, "B T D"]:
        """The parallel block."""
        read = self.attn_residual.pre(x)
        attended = self.attn_residual.branch(read, self.attn, step)
        read = read if self.shared_norm else self.mlp_residual.pre(x)
        return x + attended + self.mlp_residual.branch(read, self.mlp, step)
