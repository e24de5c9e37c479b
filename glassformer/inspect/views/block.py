"""A block as a sum: what attention and the feed-forward layer add for one token, and its top neurons. View 10."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.generate.sampling import check_number
from glassformer.inspect.trace.trace import Receipt, Trace
from glassformer.inspect.views.direct_path import DirectPath, FrozenNorm, why_no_direct_path
from glassformer.inspect.views.layer import get_block, resolve_position
from glassformer.inspect.views.result import Named, named, off
from glassformer.nn.mlp import MLP


@dataclass(frozen=True)
class Neuron:
    """One neuron. act: the input of the down projection; norm: the norm of its output, |act| |w_down|.

    promotes, suppresses: the tokens whose logits its output raises or lowers most on the direct path, with the amount
    (see `direct_path.py`); empty if the model has no direct path.
    """

    index: int
    act: float
    norm: float
    promotes: tuple[Named, ...]
    suppresses: tuple[Named, ...]


@dataclass(frozen=True)
class Expert:
    """An expert that the router chose for this token, and its weight."""

    index: int
    weight: float


@dataclass(frozen=True)
class BlockSum:
    """The residual stream before a block, the parts added, and after, each [D]; norms: their L2 norms.

    note: the reason if there are no neurons, or if they have no tokens.
    """

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
    note: str | None
    receipt: Receipt


@torch.no_grad()
def block(t: Trace, *, layer: int, position: int, top: int = 12) -> BlockSum:
    """What one block adds to the residual stream of a token, with the `top` neurons by output norm or the experts.

    Raises:
        RequestError: The layer or position is out of range.
    """
    module, position = get_block(t, layer), resolve_position(t, "position", position)
    check_number("top", top, 0, 200)
    config, name = t.config.layers[layer], f"blocks.{layer}"
    plain = isinstance(module.mlp, MLP)
    ends = ["resid_pre", "attn.add", "mlp.add", "resid_post"]
    ends += ["cross.add"] if config.cross is not None else []
    ends += ["mlp.act", "mlp.out"] if plain and top else []
    got = t.values([f"{name}.{end}" for end in ends], position)  # one run of the block
    value = {end: got[f"{name}.{end}"].tensor.detach().float() for end in ends}
    pre, attn, mlp, post = (value[end] for end in ends[:4])
    cross = value.get("cross.add")
    middle = module.attn_post_norm(pre + attn)
    if cross is not None:
        middle = module.cross_post_norm(middle + cross)
    total = pre + attn + mlp if config.parallel else module.mlp_post_norm(middle + mlp)
    formula = "resid_pre + attn.add + mlp.add" if "post" not in config.norm_at else "norm(norm(resid_pre + attn) + mlp)"
    receipt = Receipt(f't["{name}.resid_post"][{position}]', f"max |{formula} - resid_post|", off(total, post))
    parts = {end: value[end] for end in ends[:4]}
    neurons, experts, note = (), (), None
    if not t.causal:
        note = "an encoder-only model predicts no next token, so its neurons promote none"
    elif plain:
        reason = why_no_direct_path(t, layer)
        note = reason and f"{reason}, so the tokens that a neuron promotes are not defined"
        direct = None if reason else DirectPath(t, position)
        neurons = _neurons(t, layer, value["mlp.act"], value["mlp.out"], direct, top) if top else ()
    else:
        note = "this feed-forward layer is a mixture of experts: the chosen experts are shown instead of neurons"
        experts = _experts(t, layer, position)
    return BlockSum(
        layer, position, pre, attn, cross, mlp, post, {key: part.norm().item() for key, part in parts.items()},
        config.parallel, config.mlp.d_ff, neurons, experts, note, receipt,
    )  # fmt: skip


def _neurons(
    t: Trace, layer: int, act: Float[Tensor, "F"], out: Float[Tensor, "D"], direct: DirectPath | None, top: int
) -> tuple[Neuron, ...]:
    """Return the neurons with the largest outputs. out: of the feed-forward layer, before its norm."""
    module = get_block(t, layer)
    mlp = module.mlp
    assert isinstance(mlp, MLP)
    down = mlp.down.weight
    norms = act.abs() * torch.linalg.vector_norm(down, dim=0, dtype=torch.float32)
    best = norms.topk(min(top, len(act))).indices
    tokens: list[tuple[tuple[Named, ...], tuple[Named, ...]]] = [((), ())] * len(best)
    if direct is not None:
        written = (down[:, best].float() * act[best]).T  # [top, D]
        logits = direct.logits(FrozenNorm(module.mlp_out_norm, out)(written))  # [top, V]
        n = min(4, logits.shape[-1])
        most, least = (logits.topk(n, -1, largest=largest) for largest in (True, False))
        tokens = [
            (named(t.lm, most.indices[row], most.values[row]), named(t.lm, least.indices[row], least.values[row]))
            for row in range(len(best))
        ]
    return tuple(
        Neuron(index, act[index].item(), norms[index].item(), *both)
        for index, both in zip(best.tolist(), tokens, strict=True)
    )


def _experts(t: Trace, layer: int, position: int) -> tuple[Expert, ...]:
    from glassformer.nn.moe import MoE, route

    moe = get_block(t, layer).mlp
    if not isinstance(moe, MoE):
        raise RequestError(f"block {layer} has no feed-forward layer or experts that this view supports", param="layer")
    logits = t.at(f"blocks.{layer}.mlp.router", [position]).tensor
    weights, chosen = route(moe.config, logits, moe.score_correction)
    return tuple(Expert(index, weight) for index, weight in zip(chosen[0].tolist(), weights[0].tolist(), strict=True))
