"""What a head does, measured on random tokens said twice: nothing but the repetition tells what comes next.

    a b c d  a b c d
             ^ here a previous-token head looks at the d before it, an induction head at the b after the first a
("In-context Learning and Induction Heads", Olsson et al. 2022.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.inspect.derive import derive
from glassformer.inspect.kept import Kept
from glassformer.inspect.points import needs
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step


class Roles(NamedTuple):
    """For each layer and head, [L, H], the mean probability (0 to 1) that it gives to the key of that role."""

    previous_token: Float[Tensor, "L H"]
    induction: Float[Tensor, "L H"]


@torch.no_grad()
def head_roles(model: Decoder, *, period: int = 24, rows: int = 16, seed: int = 0) -> Roles:
    """Roles of all heads, over `rows` texts of `period` different random tokens said twice; second half's queries.

    Fewer tokens where vocabulary or context hold no more.
    """
    period = min(period, model.config.vocab_size, model.config.context_length // 2)
    generator = torch.Generator().manual_seed(seed)
    once = torch.stack([torch.randperm(model.config.vocab_size, generator=generator)[:period] for _ in range(rows)])
    ids = once.repeat(1, 2).to(model.embed.weight.device)
    names = [f"blocks.{i}.attn.probs" for i in range(model.config.n_layers)]
    tap = Kept(*(need for name in names for need in needs(model.config, name)))
    step = Step.of(ids, tap=tap)
    model.hidden(ids, step)
    kept = {name: value for name, (value,) in tap.items()}
    previous, induction = [], []
    for name, block in zip(names, model.blocks, strict=True):
        view = step.view(block.attn.spec)  # pyright: ignore
        probs = derive(model, name, kept, view).value[:, :, period:]  # [B, H, period, 2 period]
        previous.append(probs.diagonal(period - 1, -2, -1).mean((0, -1)))
        induction.append(probs.diagonal(1, -2, -1).mean((0, -1)))
    return Roles(torch.stack(previous), torch.stack(induction))
