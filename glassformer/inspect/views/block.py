"""A block as a running sum: what attention and the feed-forward layer add for one token, and which neurons. View 10."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.generate.sampling import check_number
from glassformer.inspect.trace.trace import Receipt, Trace
from glassformer.inspect.views.layer import block_of, position_of
from glassformer.inspect.views.result import Named, named, off
from glassformer.nn.mlp import MLP


@dataclass(frozen=True)
class Neuron:
    """`act` is what the down projection reads, `written` the length of what it writes for this token: |act| |w|.

    `promotes`: tokens whose rows of the head lie most along what it writes, with that product.
    """

    index: int
    act: float
    written: float
    promotes: tuple[Named, ...]
    suppresses: tuple[Named, ...]


@dataclass(frozen=True)
class Expert:
    """One that the router chose for this token, and how much it weighs."""

    index: int
    weight: float


@dataclass(frozen=True)
class BlockSum:
    """The residual stream before, what is added, and after, each [D]; `norms` are their lengths."""

    layer: int
    position: int
    resid_pre: Float[Tensor, "D"]
    attn_add: Float[Tensor, "D"]
    cross_add: Float[Tensor, "D"] | None
    mlp_add: Float[Tensor, "D"]
    resid_post: Float[Tensor, "D"]
    norms: dict[str, float]
    parallel: bool
    d_ff: int
    neurons: tuple[Neuron, ...]
    experts: tuple[Expert, ...]
    refused: str | None
    receipt: Receipt


@torch.no_grad()
def block(t: Trace, *, layer: int, position: int, top: int = 12) -> BlockSum:
    """What one block adds to one token's residual stream; the `top` neurons by what they write, or the experts chosen.

    RequestError for a layer or position that there is not.
    """
    module, position = block_of(t, layer), position_of(t, "position", position)
    check_number("top", top, 0, 200)
    config, name = t.config.layers[layer], f"blocks.{layer}"
    plain = isinstance(module.mlp, MLP)
    ends = ["resid_pre", "attn.add", "mlp.add", "resid_post"]
    ends += ["cross.add"] if config.cross is not None else []
    ends += ["mlp.act"] if plain and top else []
    got = t.values([f"{name}.{end}" for end in ends], position)  # of one run of the block
    value = {end: got[f"{name}.{end}"].tensor.detach().float() for end in ends}
    pre, attn, mlp, post = (value[end] for end in ends[:4])
    cross = value.get("cross.add")
    middle = module.attn_post_norm(pre + attn)
    if cross is not None:
        middle = module.cross_post_norm(middle + cross)
    whole = pre + attn + mlp if config.parallel else module.mlp_post_norm(middle + mlp)
    how = "resid_pre + attn.add + mlp.add" if "post" not in config.norm_at else "norm(norm(resid_pre + attn) + mlp)"
    receipt = Receipt(f't["{name}.resid_post"][{position}]', f"max |{how} - resid_post|", off(whole, post))
    parts = {end: value[end] for end in ends[:4]}
    neurons, experts, refused = (), (), None
    if not t.causal:
        refused = "nothing is written after an encoder: its neurons have no tokens of their own to name"
    elif plain:
        neurons = _neurons(t, layer, value["mlp.act"], top) if top else ()
    else:
        refused = "each token goes through a few of many feed-forward layers here; the experts chosen are shown instead"
        experts = _experts(t, layer, position)
    return BlockSum(
        layer, position, pre, attn, cross, mlp, post, {key: part.norm().item() for key, part in parts.items()},
        config.parallel, config.mlp.d_ff, neurons, experts, refused, receipt,
    )  # fmt: skip


def _neurons(t: Trace, layer: int, act: Float[Tensor, "F"], top: int) -> tuple[Neuron, ...]:
    mlp = block_of(t, layer).mlp
    assert isinstance(mlp, MLP)
    written = act.abs() * torch.linalg.vector_norm(mlp.down.weight, dim=0, dtype=torch.float32)
    best = written.topk(min(top, len(act))).indices
    directions = (mlp.down.weight[:, best].float() * act[best]).T  # [top, D]
    logits = directions @ t.model.head.weight.float().T  # [top, V]
    most, least = logits.topk(4, -1), logits.topk(4, -1, largest=False)
    found = []
    for row, index in enumerate(best.tolist()):
        both = [named(t.lm, side.indices[row], side.values[row]) for side in (most, least)]
        found.append(Neuron(index, act[index].item(), written[index].item(), *both))
    return tuple(found)


def _experts(t: Trace, layer: int, position: int) -> tuple[Expert, ...]:
    from glassformer.nn.moe import MoE, route

    moe = block_of(t, layer).mlp
    if not isinstance(moe, MoE):
        raise RequestError(f"block {layer} has neither a feed-forward layer nor experts that can be shown")
    logits = t.at(f"blocks.{layer}.mlp.router", [position]).tensor
    weights, chosen = route(moe.config, logits, moe.score_correction)
    return tuple(Expert(index, weight) for index, weight in zip(chosen[0].tolist(), weights[0].tolist(), strict=True))
