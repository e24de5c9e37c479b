"""The contribution of each head and feed-forward layer to the difference of two logits.

    logit[target] - logit[rival] = (W_target - W_rival) · norm(x),   x = embed.out + sum over blocks of heads + mlp

Each part of x has a share, through the frozen final norm (`direct_path.py`), and the shares add up to the difference.
Norms inside a branch (`norm_at` "out") are frozen in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.inspect.trace.recompute import larger
from glassformer.inspect.trace.trace import Receipt, Trace, token_text
from glassformer.inspect.views.direct_path import DirectPath, FrozenNorm, why_no_direct_path
from glassformer.kernels.packed_linear import rounding_of, weight_rows

STREAM = ("resid_mid", "resid_cross", "resid_post")
SUM = "|sum of all shares - difference of the logits|"


@dataclass(frozen=True)
class Attribution:
    """Contributions to logit[target] - logit[rival], in logits, at one position.

    heads [L, H]; attention_bias [L]: of attention without its heads; mlp [L]; embedding; constant: of the biases of the
    final norm and the head; edits: of edits of the residual stream. difference: before the logit softcap; capped: after
    it (the same without a softcap).
    """

    position: int
    target: tuple[int, str]
    rival: tuple[int, str]
    difference: float
    capped: float
    heads: tuple[tuple[float, ...], ...]
    attention_bias: tuple[float, ...]
    mlp: tuple[float, ...]
    embedding: float
    constant: float
    edits: float
    receipt: Receipt


@torch.no_grad()
def attribution(
    t: Trace, *, position: int = -1, target: int | str | None = None, rival: int | str | None = None
) -> Attribution:
    """The contribution of every head and feed-forward layer to logit[target] - logit[rival] after a position.

    Args:
        target: A token by its id or text; None: the most likely one.
        rival: The same; None: the most likely one apart from the target.

    Raises:
        RequestError: The model normalizes the residual stream itself after each branch, or the final norm is edited.
    """
    config, where = t.config, t.index("position", position)
    if reason := why_no_direct_path(t):
        raise RequestError(f"{reason}, so contributions do not add up to the logits", param="view")
    edited = {edit.point for edit in t.edits}
    logits = t.at("final.logits", where).tensor
    one, other = choose_tokens(t, logits, target, rival)
    last = f"blocks.{config.n_layers - 1}.resid_post"
    x = t.at(last, where).tensor
    path, both = DirectPath(t, where), [one, other]
    weight = weight_rows(t.model.head, both).double()
    direction = weight[0] - weight[1]
    head_bias = x.new_zeros(2).double() if t.model.head.bias is None else t.model.head.bias[both].double()
    of_head = (head_bias[0] - head_bias[1]).item()
    constant = (path.final.shift * path.scale * direction).sum().item() + of_head

    def share(part: Tensor) -> Tensor:
        return path.head_input(part) @ direction

    heads, biases, mlps, of_edits = [], [], [], 0.0
    for i, (layer, block) in enumerate(zip(config.layers, t.model.blocks, strict=True)):
        kinds = ("attn",) if layer.cross is None else ("attn", "cross")
        names = [f"blocks.{i}.{kind}.{end}" for kind in kinds for end in ("heads", "out", "add")]
        got = t.values([*names, f"blocks.{i}.mlp.add"], where)
        value = {name.removeprefix(f"blocks.{i}."): one.tensor.double() for name, one in got.items()}
        parts, rest = [], 0.0
        for kind in kinds:
            bias, norm = (
                getattr(block, kind).o.bias,
                FrozenNorm(getattr(block, f"{kind}_out_norm"), value[f"{kind}.out"]),
            )
            parts.append(norm(value[f"{kind}.heads"]))
            constant_part = norm.shift if bias is None else norm(bias) + norm.shift
            rest += share(constant_part.expand_as(x)).item()
            if edited & {f"blocks.{i}.{kind}.{end}" for end in ("out", "add")}:
                of_edits += share(value[f"{kind}.add"] - parts[-1].sum(0) - constant_part).item()
        heads.append(tuple(share(torch.cat(parts)).tolist()))
        biases.append(rest)
        mlps.append(share(value["mlp.add"]).item())
        if edited & {f"blocks.{i}.{end}" for end in STREAM} | edited & {f"blocks.{i + 1}.resid_pre"}:
            after = x if i + 1 == config.n_layers else t.at(f"blocks.{i + 1}.resid_pre", where).tensor
            added = sum(value[f"{kind}.add"] for kind in (*kinds, "mlp"))
            before = t.at(f"blocks.{i}.resid_pre", where).tensor
            of_edits += share(after.double() - before.double() - added).item()
    embedding = share(t.at("blocks.0.resid_pre", where).tensor).item()
    capped = (logits[one] - logits[other]).item()
    raw, off = capped, 0.0
    if (cap := config.logit_softcap) is not None:
        normed = t.at("final.norm", where).tensor.double() * path.scale
        before = weight @ normed + head_bias
        after = cap * torch.tanh(before / cap)
        raw, off = (before[0] - before[1]).item(), abs((after[0] - after[1]).item() - capped)
    total = sum(map(sum, heads)) + sum(biases) + sum(mlps) + embedding + constant + of_edits
    tokens = [(token, token_text(t.lm.tokenizer, token)) for token in (one, other)]
    code = f"t.attribution(position={where}, target={one}, rival={other})"
    return Attribution(
        where, tokens[0], tokens[1], raw, capped, tuple(heads), tuple(biases), tuple(mlps), embedding, constant,
        of_edits, Receipt(code, SUM + rounding_of(*t.model.modules()), larger(abs(total - raw), off)),
    )  # fmt: skip


def choose_tokens(
    t: Trace, logits: Float[Tensor, "V"], target: int | str | None, rival: int | str | None
) -> tuple[int, int]:
    """Return the ids of target and rival; None is the most likely token, or the most likely other one."""
    order = logits.float().topk(min(2, len(logits))).indices.tolist()
    one = order[0] if target is None else resolve_token(t, "target", target)
    other = next(token for token in order if token != one) if rival is None else resolve_token(t, "rival", rival)
    if one == other:
        raise RequestError(f"target and rival are the same token, {one}: choose two different ones", param="rival")
    return one, other


def resolve_token(t: Trace, name: str, token: int | str) -> int:
    """Return the id of a token from its id or text. RequestError if the text is not exactly one token."""
    (size,), tokenizer = t.shape("final.logits")[-1:], t.lm.tokenizer
    if isinstance(token, str):
        if tokenizer is None:
            raise RequestError(f"{name} must be a token id: this model has no tokenizer", param=name)
        ids = tokenizer.target_tokenizer().encode(token, bare=True)
        if len(ids) != 1:
            parts = ", ".join(repr(token_text(tokenizer, id)) for id in ids)
            raise RequestError(f"{name} must be one token, and {token!r} is {len(ids)}: {parts}", param=name)
        return ids[0]
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
        raise RequestError(f"{name} must be a token's text, or its id from 0 to {size - 1}, got {token!r}", param=name)
    return token
