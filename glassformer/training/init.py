"""The first weights of a model that is going to be trained."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor, nn

from glassformer.errors import ConfigError
from glassformer.nn.attention import Attention
from glassformer.nn.model import Decoder
from glassformer.nn.position import LearnedPositions, RelativePositions

PAIRS = 6  # of a head's rotary pairs, the fastest: they tell neighbours apart
SUBLAYERS = ("attn.o", "cross.o", ".mlp")  # each writes to the residual stream once
WRITERS = ("attn.o", "cross.o", ".down")  # by these


@torch.no_grad()
def init_weights(
    model: Decoder,
    seed: int,
    std: float = 0.02,
    *,
    out_std: float | None = None,
    qk_gain: float = 1.0,
    look_back: float = 0.0,
) -> Decoder:
    """Draw weights as GPT-2 does: N(0, std), what writes to the residual / sqrt(2 n_layers), biases 0, norms 1.

    With a source it is sqrt(3 n_layers), for three sublayers write; an encoder's residual is a stream of its own.
    out_std: of what writes to the residual, instead. qk_gain: the weight of the norms of queries and keys.
    look_back: above 0, the heads of the first layer begin as heads that look 1, 2, 3, ... tokens back, the more sharply
    the larger it is (`let_look_back`). Drawn on the CPU with a generator of its own: the same seed gives the same
    weights on every device.

    ConfigError for a qk_gain without norms of queries and keys, and a look_back without rotary positions.
    """
    first = model.config.layers[0].attention
    if qk_gain != 1 and first.qk_norm is None:
        raise ConfigError(f"init.qk_gain {qk_gain} has no effect: this model has no norms of queries and keys")
    if look_back and first.rope is None:
        raise ConfigError(f"init.look_back {look_back} has no effect: this model has no rotary positions")
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())
    writers = Counter(name.startswith("encoder.") for name in modules if name.endswith(SUBLAYERS))
    for name, module in modules.items():
        if isinstance(module, nn.Linear | nn.Embedding | LearnedPositions | RelativePositions):
            writes = name.endswith(WRITERS)
            scale = (out_std or std / math.sqrt(writers[name.startswith("encoder.")])) if writes else std
            module.weight.copy_(torch.empty(module.weight.shape).normal_(0, scale, generator=generator))
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        elif name.endswith(("attn.q_norm", "attn.k_norm")):
            for weight in module.parameters():
                weight.fill_(qk_gain)
    if look_back:
        let_look_back(model, std, look_back, generator)
    return model


@torch.no_grad()
def init_glorot(model: Decoder, seed: int) -> Decoder:
    """Draw weights as the Transformer of 2017 did: Glorot's uniform, embeddings and head N(0, 1 / d_model), biases 0.

    U(-b, b) with b = sqrt(6 / (inputs + outputs)): the variance of signals and of gradients stays, layer after layer
    ("Understanding the difficulty of training deep feedforward neural networks", Glorot & Bengio 2010, equation 16).
    The same seed gives the same weights on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Embedding | LearnedPositions | RelativePositions):
            continue
        drawn = torch.empty(module.weight.shape)
        if isinstance(module, nn.Linear) and module is not model.head:
            bound = math.sqrt(6 / sum(drawn.shape))
            module.weight.copy_(drawn.uniform_(-bound, bound, generator=generator))
        else:
            module.weight.copy_(drawn.normal_(0, model.config.d_model**-0.5, generator=generator))
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
    return model


def let_look_back(model: Decoder, std: float, strength: float, generator: torch.Generator) -> None:
    """Add to the first layer what makes head h look h + 1 tokens back, whatever the tokens are.

    Every embedding gets the same direction u added, as long as an embedding is. In head h W_k sends u to a 1 in the
    fastest rotary pairs, and W_q to the same turned back by h + 1 positions: their product is then largest for the key
    at that distance. Copying what went with a word before takes two heads in a row, and the first must look at
    neighbours; a small model spends most of a short training finding that. In the spirit of "Mimetic Initialization of
    Self-Attention Layers" (Trockman & Kolter 2023).
    """
    attention: Attention = model.blocks[0].attn  # pyright: ignore[reportAssignmentType]
    config, d_model = attention.config, model.config.d_model
    assert config.rope is not None, "heads look back by rotary positions"
    u = torch.empty(d_model).normal_(0, 1, generator=generator)
    u /= u.norm()
    model.embed.weight += std * math.sqrt(d_model) * u
    half = config.head_dim // 2
    pairs = min(PAIRS, half)
    frequencies = config.rope.theta ** (-torch.arange(pairs, dtype=torch.float32) / half)
    size = strength * std * math.sqrt(2 * config.head_dim / pairs)  # against N(0, std) times what else is in x

    def add(weight: Tensor, n_heads: int, turned: bool) -> None:
        for head in range(n_heads):
            angles = -frequencies * (head + 1) * turned
            target = torch.zeros(config.head_dim)
            target[:pairs], target[half : half + pairs] = angles.cos(), angles.sin()
            weight[head * config.head_dim : (head + 1) * config.head_dim] += size * target[:, None] * u

    add(attention.q.weight, config.n_heads, True)
    add(attention.k.weight, config.n_kv_heads, False)
