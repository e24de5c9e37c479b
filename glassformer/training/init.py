"""Initial weights for training."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor, nn

from glassformer.config import ModelConfig
from glassformer.errors import ConfigError
from glassformer.nn.attention import Attention
from glassformer.nn.model import Decoder
from glassformer.nn.position import LearnedPositions, RelativePositions

ROTARY_PAIRS = 6  # the fastest rotary pairs of a head: they distinguish neighbouring positions
SUBLAYERS = ("attn.o", "cross.o", ".mlp")  # each adds to the residual stream once
OUT_PROJECTIONS = ("attn.o", "cross.o", ".down")  # the output matrices of these sublayers


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
    """Draw weights as GPT-2 does: N(0, std), output projections with std / sqrt(2 n_layers), biases 0, norms 1.

    A decoder with cross-attention has three sublayers: sqrt(3 n_layers). Draws on the CPU with its own generator: the
    same seed gives the same weights on every device.

    Args:
        out_std: the std of output projections, instead.
        qk_gain: the weight of the norms of queries and keys.
        look_back: above 0, the heads of the first layer attend to the tokens 1, 2, 3, ... before, more sharply with
            larger values (`add_previous_token_heads`).

    Raises:
        ConfigError: qk_gain without norms of queries and keys, or look_back without rotary positions.
    """
    check_init(model.config, qk_gain=qk_gain, look_back=look_back)
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())
    n_sublayers = Counter(name.startswith("encoder.") for name in modules if name.endswith(SUBLAYERS))
    for name, module in modules.items():
        if isinstance(module, nn.Linear | nn.Embedding | LearnedPositions | RelativePositions):
            is_out = name.endswith(OUT_PROJECTIONS)
            scale = (out_std or std / math.sqrt(n_sublayers[name.startswith("encoder.")])) if is_out else std
            module.weight.copy_(torch.empty(module.weight.shape).normal_(0, scale, generator=generator))
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        elif name.endswith(("attn.q_norm", "attn.k_norm")):
            for weight in module.parameters():
                weight.fill_(qk_gain)
    if look_back:
        add_previous_token_heads(model, std, look_back, generator)
    return model


def check_init(config: ModelConfig, *, qk_gain: float, look_back: float) -> None:
    """Raise ConfigError for a qk_gain without norms of queries and keys, or look_back without rotary positions."""
    first = config.layers[0].attention
    if qk_gain != 1 and first.qk_norm is None:
        raise ConfigError(f"init.qk_gain must be 1 in a model without norms of queries and keys, got {qk_gain}")
    if look_back and first.rope is None:
        raise ConfigError(f"init.look_back must be 0 in a model without rotary positions, got {look_back}")


@torch.no_grad()
def init_glorot(model: Decoder, seed: int) -> Decoder:
    """Draw weights as Vaswani et al. 2017: Glorot uniform, embeddings and head N(0, 1 / d_model), biases 0.

    U(-b, b) with b = sqrt(6 / (inputs + outputs)) preserves the variance of signals and gradients from layer to layer
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


def add_previous_token_heads(model: Decoder, std: float, strength: float, generator: torch.Generator) -> None:
    """Make head h of the first layer attend to the token h + 1 positions before, for any tokens.

    Adds the same direction u, as long as an embedding, to every embedding. In head h, W_k maps u to 1 in the fastest
    rotary pairs, and W_q to the same rotated back by h + 1 positions, so that q.k is largest for the key at that
    distance. Copying in context takes a previous-token head and an induction head; a small model spends most of a short
    training on finding the first. In the spirit of "Mimetic Initialization of Self-Attention Layers" (Trockman & Kolter
    2023).
    """
    attention: Attention = model.blocks[0].attn  # pyright: ignore[reportAssignmentType]
    config, d_model = attention.config, model.config.d_model
    assert config.rope is not None, "previous-token heads need rotary positions"
    u = torch.empty(d_model).normal_(0, 1, generator=generator)
    u /= u.norm()
    model.embed.weight += std * math.sqrt(d_model) * u
    half = config.head_dim // 2
    pairs = min(ROTARY_PAIRS, half)
    frequencies = config.rope.theta ** (-torch.arange(pairs, dtype=torch.float32) / half)
    size = strength * std * math.sqrt(2 * config.head_dim / pairs)  # relative to N(0, std) times the rest of x

    def add(weight: Tensor, n_heads: int, rotated: bool) -> None:
        for head in range(n_heads):
            angles = -frequencies * (head + 1) * rotated
            target = torch.zeros(config.head_dim)
            target[:pairs], target[half : half + pairs] = angles.cos(), angles.sin()
            weight[head * config.head_dim : (head + 1) * config.head_dim] += size * target[:, None] * u

    add(attention.q.weight, config.n_heads, True)
    add(attention.k.weight, config.n_kv_heads, False)
