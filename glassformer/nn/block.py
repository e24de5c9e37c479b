"""The Transformer block: attention and the feed-forward layer, each added to the residual stream.

    sequential:  x -> post(x + out(f(pre(x))))       for f = attention, then cross-attention, then the MLP
    parallel:    x -> x + attn(pre(x)) + mlp(pre(x))

`norm_at` of a `LayerConfig` names the norms that exist; the others are the identity.
pre: GPT-2, Llama. post: BERT. out: OLMo 2. pre and out: Gemma 2. Parallel: GPT-NeoX, Falcon, Phi.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from glassformer.config import LayerConfig
from glassformer.nn.attention import Attention
from glassformer.nn.cross_attention import CrossAttention
from glassformer.nn.latent import LatentAttention
from glassformer.nn.mlp import MLP
from glassformer.nn.moe import MoE
from glassformer.nn.norm import make_norm
from glassformer.nn.step import LayerStep


class Block(nn.Module):
    """One layer of an encoder or a decoder.

    Attention moves information between tokens; the feed-forward layer processes each token independently. In the
    decoder of an encoder-decoder, cross-attention comes between them. A parallel block adds both branches to the same
    x; with `shared_norm` the input of both is `attn_norm(x)`, and `mlp_norm` is the identity.
    """

    def __init__(self, config: LayerConfig, d_model: int):
        super().__init__()
        self.parallel, self.shared_norm = config.parallel, config.shared_norm

        def norms(exist: bool = True) -> tuple[nn.Module, nn.Module, nn.Module]:
            pre, out, post = (config.norm if exist and at in config.norm_at else None for at in ("pre", "out", "post"))
            return make_norm(pre, d_model), make_norm(out, d_model), make_norm(post, d_model)

        attention = Attention if config.attention.latent is None else LatentAttention
        self.attn = attention(config.attention, d_model)
        self.mlp = MLP(config.mlp, d_model) if config.experts is None else MoE(config.experts, config.mlp, d_model)
        self.attn_norm, self.attn_out_norm, self.attn_post_norm = norms()
        self.mlp_norm, self.mlp_out_norm, self.mlp_post_norm = norms(exist=not config.shared_norm)
        self.cross = None if config.cross is None else CrossAttention(config.cross, d_model)
        self.cross_norm, self.cross_out_norm, self.cross_post_norm = norms(exist=config.cross is not None)

    def forward(self, x: Float[Tensor, "B T D"], step: LayerStep) -> Float[Tensor, "B T D"]:
        x = step.see("resid_pre", x)
        attn_x = self.attn_norm(x)
        attn = branch("attn", self.attn, self.attn_out_norm, attn_x, step)
        if self.parallel:
            mlp_x = attn_x if self.shared_norm else self.mlp_norm(x)
            return step.see("resid_post", x + attn + branch("mlp", self.mlp, self.mlp_out_norm, mlp_x, step))
        x = step.see("resid_mid", self.attn_post_norm(x + attn))
        if self.cross is not None:
            cross = branch("cross", self.cross, self.cross_out_norm, self.cross_norm(x), step)
            x = step.see("resid_cross", self.cross_post_norm(x + cross))
        mlp = branch("mlp", self.mlp, self.mlp_out_norm, self.mlp_norm(x), step)
        return step.see("resid_post", self.mlp_post_norm(x + mlp))


def branch(
    name: str, f: nn.Module, out_norm: nn.Module, x: Float[Tensor, "B T D"], step: LayerStep
) -> Float[Tensor, "B T D"]:
    """Return out_norm(f(x)), the term that a sublayer adds to the residual stream."""
    out = step.see(f"{name}.out", f(step.see(f"{name}.x", x), step))
    return step.see(f"{name}.add", out_norm(out))
