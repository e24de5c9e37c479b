"""The first weights of a model that is going to be trained."""

from __future__ import annotations

import math

import torch
from torch import nn

from glassformer.nn.model import Decoder
from glassformer.nn.position import LearnedPositions


@torch.no_grad()
def init_weights(model: Decoder, seed: int, std: float = 0.02) -> Decoder:
    """Draw weights as GPT-2 does: N(0, std), what writes to the residual / sqrt(2 n_layers), biases 0, norms 1.

    Drawn on the CPU with a generator of its own: the same seed gives the same weights on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | LearnedPositions):
            writes = name.endswith(("attn.o", "mlp.down"))
            scale = std / math.sqrt(2 * len(model.blocks)) if writes else std
            module.weight.copy_(torch.empty(module.weight.shape).normal_(0, scale, generator=generator))
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
    return model
