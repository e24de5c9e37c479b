"""The feed-forward layer, which processes each token independently."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.config import MLPConfig
from glassformer.nn.step import LayerStep

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}


class MLP(nn.Module):
    """down(act(up x)); gated, down(act(gate x) * up x) ("GLU Variants Improve Transformer", Shazeer 2020)."""

    def __init__(self, config: MLPConfig, d_model: int):
        super().__init__()
        self.config = config
        self.activation = ACTIVATIONS[config.activation]
        self.gate = nn.Linear(d_model, config.d_ff, config.bias) if config.gated else None
        self.up = nn.Linear(d_model, config.d_ff, config.bias)
        self.down = nn.Linear(config.d_ff, d_model, config.bias)

    def forward(self, x: Float[Tensor, "*B D"], step: LayerStep | None = None) -> Float[Tensor, "*B D"]:
        see = step.see if step is not None else lambda _, value: value  # an expert has no tap points
        up = see("mlp.up", self.up(x))  # [..., F]
        if self.gate is None:
            act = self.activation(up)
        else:
            act = self.gated(see("mlp.gate", self.gate(x)), up)
        return self.down(see("mlp.act", act))

    def gated(self, gate: Float[Tensor, "*B F"], up: Float[Tensor, "*B F"]) -> Float[Tensor, "*B F"]:
        """Return act(gate) * up, both bounded first if the configuration has a limit."""
        if (limit := self.config.limit) is not None:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return self.activation(gate) * (up + 1 if self.config.up_plus_one else up)
