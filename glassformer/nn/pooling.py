"""Sentence embeddings: the states of a text's tokens, pooled into one vector.

    states [B, S, D] -> pools, concatenated [B, n D] -> dense layers, normalization -> [B, E]

"Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks" (Reimers & Gurevych 2019).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from glassformer.config import DenseConfig, PoolingConfig

DENSE_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "identity": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
}


def pool(how: str, states: Float[Tensor, "B S D"], counted: Bool[Tensor, "B S"]) -> Float[Tensor, "B D"]:
    """Pool the counted states, at least one per sequence, into one vector; sums are in float32.

    cls, lasttoken: the first and the last counted state. mean_sqrt_len_tokens: the sum divided by the root of the
    count. weightedmean: the weight of a state is its position, from 1 (Muennighoff 2022).
    """
    x, count = states.float(), counted[..., None].float()  # [B, S, 1]
    ordinals = torch.arange(1, states.shape[1] + 1, device=states.device)
    sequences = torch.arange(len(states), device=states.device)
    match how:
        case "cls":
            return states[sequences, counted.int().argmax(-1)]
        case "lasttoken":
            return states[sequences, (counted * ordinals).argmax(-1)]
        case "max":
            return states.masked_fill(~counted[..., None], -torch.inf).amax(1)
        case "mean":
            pooled = (x * count).sum(1) / count.sum(1)
        case "mean_sqrt_len_tokens":
            pooled = (x * count).sum(1) / count.sum(1).sqrt()
        case "weightedmean":
            weight = count * ordinals[:, None]
            pooled = (x * weight).sum(1) / weight.sum(1)
        case _:
            raise AssertionError(how)
    return pooled.to(states.dtype)


class Dense(nn.Module):
    """act(W x + b); with `residual` plus x, or plus W' x if the sizes differ."""

    def __init__(self, config: DenseConfig):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.d_in, config.d_out, config.bias)
        projected = config.residual and config.d_in != config.d_out
        self.residual = nn.Linear(config.d_in, config.d_out, bias=False) if projected else None

    def forward(self, x: Float[Tensor, "B E"]) -> Float[Tensor, "B F"]:
        y = DENSE_ACTIVATIONS[self.config.activation](self.linear(x))
        if not self.config.residual:
            return y
        return y + (x if self.residual is None else self.residual(x))


class Normalize(nn.Module):
    """x / |x|; the zero vector is unchanged."""

    def forward(self, x: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        return F.normalize(x, dim=-1)


class SentencePooling(nn.Module):
    """States [B, S, D] to sentence embeddings [B, E]."""

    def __init__(self, config: PoolingConfig):
        super().__init__()
        self.config = config
        self.after = nn.ModuleList(Normalize() if one == "normalize" else Dense(one) for one in config.after)

    def forward(self, states: Float[Tensor, "B S D"], counted: Bool[Tensor, "B S"]) -> Float[Tensor, "B E"]:
        """Pool the tokens that `counted` marks (not padding), then apply the layers after pooling."""
        x = torch.cat([pool(how, states, counted) for how in self.config.pools], -1)
        for module in self.after:
            x = module(x)
        return x[..., : self.config.dimensions]
