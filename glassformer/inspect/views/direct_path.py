"""The direct path from a branch of a block to the logits: through the norms above it, past all later blocks.

    logits = W · (head_scale · norm(x)),   x = embed.out + what each branch adds

A norm divides by a statistic of its input. With the statistics of this forward pass frozen, a norm is linear, so each
part of x has its own share of every logit, and the shares add up to the logits before the softcap ("direct logit
attribution", Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.inspect.trace.trace import Trace
from glassformer.kernels.packed_linear import weight_chunks
from glassformer.nn.norm import LayerNorm, RMSNorm

VOCAB_CHUNK = 1 << 14  # rows of the head that are in float32 at a time


class FrozenNorm:
    """A norm with the statistics of one x: a linear map of parts of x, and the constant `shift`."""

    def __init__(self, norm: torch.nn.Module, x: Float[Tensor, "D"]):
        x = x.double()
        self.mean, self.shift = False, x.new_zeros(())
        weight: Tensor | None = None
        if isinstance(norm, LayerNorm):
            self.mean, weight = True, None if norm.weight is None else norm.weight.double()
            self.shift = self.shift if norm.bias is None else norm.bias.double()
            size = (x.var(unbiased=False) + norm.eps).sqrt()
        elif isinstance(norm, RMSNorm):
            weight = norm.weight.double() + (1 if norm.scale == "float32 1+" else 0)
            size = (x.square().mean() + norm.eps).sqrt()
        else:
            size = torch.ones_like(x[0])
        self.gain = (1 if weight is None else weight) / size

    def __call__(self, part: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        part = part.double()
        return (part - part.mean(-1, keepdim=True) if self.mean else part) * self.gain


class DirectPath:
    """The direct path from the residual stream at one position to the logits.

    Only for models without `why_no_direct_path`.
    """

    def __init__(self, t: Trace, position: int):
        self.scale, self.head = t.config.head_scale, t.model.head
        self.final = FrozenNorm(t.model.norm, t.at(f"blocks.{t.config.n_layers - 1}.resid_post", position).tensor)

    def head_input(self, part: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Return the part of the head's input that a part of the residual stream makes."""
        return self.final(part) * self.scale

    def logits(self, part: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """Return the share of a part of the residual stream in each logit, before the softcap."""
        x = self.head_input(part).float()
        return torch.cat([x @ rows.T for rows in weight_chunks(self.head, VOCAB_CHUNK)], -1)


def why_no_direct_path(t: Trace, first: int = 0) -> str | None:
    """Return why the branches of block `first` and of later blocks have no direct path to the logits, else None."""
    for i, layer in enumerate(t.config.layers[first:], first):
        if "post" in layer.norm_at:
            return (
                f"block {i} normalizes the residual stream itself (norm_at {list(layer.norm_at)}): the output of "
                "earlier blocks is rescaled after every branch"
            )
    edited = sorted({edit.point for edit in t.edits} & {"final.norm", "final.logits"})
    return f"{edited[0]} is edited" if edited else None
