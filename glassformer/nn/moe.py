"""Mixture of experts: a router sends each token through a few of many feed-forward networks.

    x [N, D] -> router [N, E] -> the best k of E -> their weights [N, k] -.
      |                                                                   v
      '----------------------------------------> experts -> sum of weight * expert(x) (+ shared(x)) -> [N, D]

"Outrageously Large Neural Networks" (Shazeer et al. 2017), equation 1; experts that are not chosen have weight 0.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from glassformer.config import MLPConfig, MoEConfig
from glassformer.nn.linear import Float32Linear
from glassformer.nn.mlp import MLP
from glassformer.nn.step import LayerStep

Routed = tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]


class MoE(nn.Module):
    """A mixture of experts: `router` scores the `experts` for each token; `shared` processes every token."""

    def __init__(self, config: MoEConfig, mlp: MLPConfig, d_model: int):
        super().__init__()
        self.config = config
        linear = Float32Linear if config.float32_router else nn.Linear
        self.router = linear(d_model, config.n_experts, config.router_bias)
        self.score_correction = nn.Parameter(torch.zeros(config.n_experts)) if config.score_correction else None
        self.experts = nn.ModuleList(MLP(mlp, d_model) for _ in range(config.n_experts))
        width = config.shared_d_ff
        self.shared = None if width is None else MLP(replace(mlp, d_ff=width), d_model)

    def forward(self, x: Float[Tensor, "*B D"], step: LayerStep) -> Float[Tensor, "*B D"]:
        logits = step.see("mlp.router", self.router(x))  # [..., E]
        weights, chosen = route(self.config, logits.flatten(0, -2), self.score_correction)
        out = experts_sorted(self.experts, x.flatten(0, -2), weights, chosen).view_as(x)
        return out if self.shared is None else out + self.shared(x, step)


def route(config: MoEConfig, logits: Float[Tensor, "N E"], correction: Float[Tensor, "E"] | None = None) -> Routed:
    """Return the weights, in float32, and the indices of the experts that each token goes through."""
    scores = logits.float().softmax(-1) if config.scores == "softmax" else logits.float().sigmoid()
    ranks = scores if correction is None else scores + correction.float()
    if config.n_groups > 1:
        groups = ranks.unflatten(-1, (config.n_groups, -1))  # [N, G, E / G]
        best = groups.topk(config.group_best, -1).values.sum(-1).topk(config.top_groups, -1).indices
        excluded = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(-1, best, False)
        ranks = groups.masked_fill(excluded[..., None], -torch.inf).flatten(-2)
    chosen = ranks.topk(config.top_k, -1).indices
    weights = scores.gather(-1, chosen)
    if config.normed:
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-20)
    return weights * config.scale, chosen


def experts_reference(
    experts: nn.ModuleList, x: Float[Tensor, "N D"], weights: Float[Tensor, "N K"], chosen: Int[Tensor, "N K"]
) -> Float[Tensor, "N D"]:
    """The definition: every expert on every token, times its weight, which is 0 if it was not chosen."""
    dense = weights.new_zeros(len(x), len(experts)).scatter(-1, chosen, weights)  # [N, E]
    return sum((dense[:, e, None] * expert(x) for e, expert in enumerate(experts)), torch.zeros_like(x)).to(x.dtype)


def experts_sorted(
    experts: nn.ModuleList, x: Float[Tensor, "N D"], weights: Float[Tensor, "N K"], chosen: Int[Tensor, "N K"]
) -> Float[Tensor, "N D"]:
    """The fast implementation: sort the tokens by expert; each expert processes its own tokens.

    On an accelerator the counts are copied to the host once per layer.
    """
    flat = chosen.flatten()
    order = flat.argsort(stable=True)  # [N K]
    counts = flat.bincount(minlength=len(experts)).tolist()
    out = torch.zeros_like(x)
    tokens, parts = (order // chosen.shape[-1]).split(counts), weights.flatten()[order].split(counts)
    for expert, index, weight in zip(experts, tokens, parts, strict=True):
        if len(index):
            out.index_add_(0, index, (expert(x[index]) * weight[:, None]).to(x.dtype))
    return out
