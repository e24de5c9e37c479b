"""Which head and which feed-forward layer speaks for a token, and against another: shares of a difference of logits.

    logit[target] - logit[rival] = (W_target - W_rival) · norm(x),   x = embed.out + sum over blocks of heads + mlp

The final norm divides by a size that all of x has together. Held at what it was in this pass, it is linear, and so each
part of x has its own share; their sum is the difference. ("A Mathematical Framework for Transformer Circuits", Elhage
et al. 2021: "direct logit attribution".) Norms inside a branch (`norm_at` "out") are held the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.inspect.trace.trace import Receipt, Trace, token_text
from glassformer.nn.norm import LayerNorm, RMSNorm

STREAM = ("resid_mid", "resid_cross", "resid_post")
SUM = "|sum of all shares - difference of the logits|"


@dataclass(frozen=True)
class Attribution:
    """Shares of logit[target] - logit[rival], in logits, at one position.

    heads [L, H], attention_bias [L] (what attention writes beside its heads), mlp [L]; embedding; constant: what the
    final norm and the head add whatever they read; edits: what edits of the residual stream itself put there.
    `difference` is of the logits before a cap on them, `capped` after it (the same where there is none).
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


class Held:
    """A norm whose statistics are held at those of one x: linear in a part of x, and a constant."""

    def __init__(self, norm: torch.nn.Module, x: Float[Tensor, "D"]):
        x = x.double()
        self.mean, self.shift = False, x.new_zeros(())
        weight: Tensor | None = None
        if isinstance(norm, LayerNorm):
            self.mean, weight = True, None if norm.weight is None else norm.weight.double()
            self.shift = self.shift if norm.bias is None else norm.bias.double()
            size = (x.var(unbiased=False) + norm.eps).sqrt()
        elif isinstance(norm, RMSNorm):
            weight = norm.weight.double() + (1 if norm.scale == "float32 1+" else 0)
            size = (x.square().mean() + norm.eps).sqrt()
        else:
            size = torch.ones_like(x[0])
        self.gain = (1 if weight is None else weight) / size

    def __call__(self, part: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        part = part.double()
        return (part - part.mean(-1, keepdim=True) if self.mean else part) * self.gain


@torch.no_grad()
def attribution(
    t: Trace, *, position: int = -1, target: int | str | None = None, rival: int | str | None = None
) -> Attribution:
    """Every head's and feed-forward layer's share of how much likelier `target` is than `rival` after this position.

    target: a token (its id, or its text); None: the likeliest. rival: the same; None: the likeliest beside the target.
    RequestError where the model norms the residual stream itself after each branch.
    """
    config, where = t.config, t.index("position", position)
    for i, layer in enumerate(config.layers):
        if "post" in layer.norm_at:
            raise RequestError(
                f"block {i} norms the residual stream itself (norm_at {list(layer.norm_at)}): what an earlier block "
                "wrote is divided again after every branch, so that no part of it reaches the logits as it was written",
                param="view",
            )
    edited = {edit.point for edit in t.edits}
    if behind := sorted(edited & {"final.norm", "final.logits"}):
        raise RequestError(f"{behind[0]} is edited, which is behind all that has a share", param="view")
    logits = t.at("final.logits", where).tensor
    one, other = pick(t, logits, target, rival)
    last = f"blocks.{config.n_layers - 1}.resid_post"
    x = t.at(last, where).tensor
    final = Held(t.model.norm, x)
    weight = t.model.head.weight
    direction = (weight[one].double() - weight[other].double()) * config.head_scale
    bias = t.model.head.bias
    of_head = 0.0 if bias is None else (bias[one].double() - bias[other].double()).item()
    constant = (final.shift * direction).sum().item() + of_head

    def share(part: Tensor) -> Tensor:
        return final(part) @ direction

    heads, biases, mlps, jumps = [], [], [], 0.0
    for i, (layer, block) in enumerate(zip(config.layers, t.model.blocks, strict=True)):
        kinds = ("attn",) if layer.cross is None else ("attn", "cross")
        names = [f"blocks.{i}.{kind}.{end}" for kind in kinds for end in ("heads", "out", "add")]
        got = t.values([*names, f"blocks.{i}.mlp.add"], where)
        value = {name.removeprefix(f"blocks.{i}."): one.tensor.double() for name, one in got.items()}
        parts, rest = [], 0.0
        for kind in kinds:
            branch, bias = Held(getattr(block, f"{kind}_out_norm"), value[f"{kind}.out"]), getattr(block, kind).o.bias
            parts.append(branch(value[f"{kind}.heads"]))
            beside = branch.shift if bias is None else branch(bias) + branch.shift
            rest += share(beside.expand_as(x)).item()
            if edited & {f"blocks.{i}.{kind}.{end}" for end in ("out", "add")}:
                jumps += share(value[f"{kind}.add"] - parts[-1].sum(0) - beside).item()
        heads.append(tuple(share(torch.cat(parts)).tolist()))
        biases.append(rest)
        mlps.append(share(value["mlp.add"]).item())
        if edited & {f"blocks.{i}.{end}" for end in STREAM} | edited & {f"blocks.{i + 1}.resid_pre"}:
            leaves = x if i + 1 == config.n_layers else t.at(f"blocks.{i + 1}.resid_pre", where).tensor
            written = sum(value[f"{kind}.add"] for kind in (*kinds, "mlp"))
            jumps += share(leaves.double() - t.at(f"blocks.{i}.resid_pre", where).tensor.double() - written).item()
    embedding = share(t.at("blocks.0.resid_pre", where).tensor).item()
    capped = (logits[one] - logits[other]).item()
    read = t.at("final.norm", where).tensor.double()
    raw = capped if config.logit_softcap is None else (read @ direction).item() + of_head
    total = sum(map(sum, heads)) + sum(biases) + sum(mlps) + embedding + constant + jumps
    named = [(token, token_text(t.lm.tokenizer, token)) for token in (one, other)]
    code = f"t.attribution(position={where}, target={one}, rival={other})"
    return Attribution(
        where, named[0], named[1], raw, capped, tuple(heads), tuple(biases), tuple(mlps), embedding, constant, jumps,
        Receipt(code, SUM, abs(total - raw)),
    )  # fmt: skip


def pick(t: Trace, logits: Float[Tensor, "V"], target: int | str | None, rival: int | str | None) -> tuple[int, int]:
    """The two tokens: named by id or text, or the likeliest, and the likeliest beside it. RequestError otherwise."""
    order = logits.float().topk(min(2, len(logits))).indices.tolist()
    one = order[0] if target is None else token_of(t, "target", target)
    other = next(token for token in order if token != one) if rival is None else token_of(t, "rival", rival)
    if one == other:
        raise RequestError(f"target and rival are the same token, {one}: between them there is nothing", param="rival")
    return one, other


def token_of(t: Trace, what: str, given: int | str) -> int:
    """A token by its id, or by a text that is one token. RequestError where it is none, or several."""
    (size,), tokenizer = t.shape("final.logits")[-1:], t.lm.tokenizer
    if isinstance(given, str):
        if tokenizer is None:
            raise RequestError(f"{what}: this model has no tokenizer, so give a token's id", param=what)
        ids = tokenizer.target_tokenizer().encode(given, bare=True)
        if len(ids) != 1:
            parts = ", ".join(repr(token_text(tokenizer, token)) for token in ids)
            raise RequestError(f"{what} must be one token, and {given!r} is {len(ids)}: {parts}", param=what)
        return ids[0]
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < size:
        raise RequestError(f"{what} must be a token's text, or its id from 0 to {size - 1}, got {given!r}", param=what)
    return given
