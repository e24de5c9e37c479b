"""The feed-forward layer: what a block does to each token alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.config import MLPConfig
from glassformer.nn.step import LayerStep

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


class MLP(nn.Module):
    """down(act(up x)); gated, down(act(gate x) * up x) ("GLU Variants Improve Transformer", Shazeer 2020)."""

    def __init__(self, config: MLPConfig, d_model: int):
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.gate = nn.Linear(d_model, config.d_ff, config.bias) if config.gated else None
        self.up = nn.Linear(d_model, config.d_ff, config.bias)
        self.down = nn.Linear(config.d_ff, d_model, config.bias)

    def forward(self, x: Float[Tensor, "*B D"], step: LayerStep) -> Float[Tensor, "*B D"]:
        up = step.see("mlp.up", self.up(x))  # [..., F]
        if self.gate is None:
            act = self.activation(up)
        else:
            act = self.activation(step.see("mlp.gate", self.gate(x))) * up
        return self.down(step.see("mlp.act", act))
