"""A model beside another implementation of it, place by place: where do they part first?

Which module of the other computes which point of ours is read off the checkpoint's rules: the module that owns the
tensor which fills `blocks.3.attn.q.weight` makes what we call `blocks.3.attn.q`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from glassformer.families import family_of
from glassformer.formats.tensor_mapping import map_tensors
from glassformer.inspect.capture.points import live
from glassformer.inspect.capture.recorder import RecorderTap
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.model import Decoder, EncoderDecoder
from glassformer.nn.step import Step

TABLES = (["embed.tokens"], ["embed.types"], ["encoder.embed.tokens"])
# What the output of a module of ours is called, inside a block and outside.
OUTPUTS = {
    "attn_norm": "attn.x", "attn.q": "attn.q", "attn.k": "attn.k", "attn.v": "attn.v", "attn.o": "attn.out",
    "attn.q.expand": "attn.q", "attn.kv_norm": "attn.latent",
    "attn_out_norm": "attn.add", "attn_post_norm": "resid_mid",
    "cross_norm": "cross.x", "cross.q": "cross.q", "cross.k": "cross.k", "cross.v": "cross.v",
    "cross.o": "cross.out", "cross_out_norm": "cross.add", "cross_post_norm": "resid_cross",
    "mlp_norm": "mlp.x", "mlp.gate": "mlp.gate", "mlp.up": "mlp.up", "mlp.down": "mlp.out",
    "mlp_out_norm": "mlp.add", "mlp_post_norm": "resid_post",
    "embed": "embed.tokens", "token_types": "embed.types", "embed_norm": "embed.out", "norm": "final.norm",
}  # fmt: skip

SIDES = (("encoder.", "encoder"), ("", "decoder"))
OF_SOURCE = re.compile(r"encoder\.|blocks\.\d+\.cross\.[kv]$")  # points that have a row for each token of it


@dataclass(frozen=True)
class PointDifference:
    """One point: `off` is max |ours - theirs| / max |theirs|."""

    point: str
    off: float


@torch.no_grad()
def compare(
    ours: Decoder | TextEncoder,
    theirs: nn.Module,
    ids: Int[Tensor, "B T"],
    sources: Int[Tensor, "B S"] | None = None,
) -> list[PointDifference]:
    """Every point that both have, in the order of the pass, an encoder's first, the logits last.

    Of an encoder by itself that has no head, the states are last.

    theirs: a `transformers` model with the same weights, on the same device and in the same dtype. sources: what an
    encoder-decoder reads, while it writes `ids`.
    """
    points = live(ours.config)
    parameters: dict[str, Tensor] = dict(ours.named_parameters())
    modules, seen, hooks = dict(theirs.named_modules()), {}, []
    family = family_of(ours.config)
    for entry in map_tensors(family, ours.config, parameters):
        path, _, kind = entry.tensor_name.rpartition(".")
        path = path if path in modules else path.removeprefix(family.prefix)  # a model without its head
        names = [_output(name) for name in entry.parameter_names]
        if kind == "weight" and path in modules and all(name in points for name in names):
            sizes = [parameters[name].shape[-1 if names in TABLES else 0] for name in entry.parameter_names]
            take = _taker(replace(entry, transposed=False), names, sizes, seen)
            hooks.append(modules[path].register_forward_hook(take))
    read = {"input_ids": ids} if sources is None else {"input_ids": sources, "decoder_input_ids": ids}
    try:
        kept = {} if isinstance(ours, TextEncoder) else {"use_cache": False}
        result = theirs(**read, output_hidden_states=True, **kept)
    finally:
        for hook in hooks:
            hook.remove()
    stacks = {"": "hidden_states"} if sources is None else {side: f"{name}_hidden_states" for side, name in SIDES}
    for prefix, name in stacks.items():
        for i, states in enumerate(result[name][:-1]):  # the last of them is normed
            seen[prefix + ("embed.out" if i == 0 else f"blocks.{i - 1}.resid_post")] = _columns(states)
    headed = "final.logits" in points
    seen["final.logits" if headed else "final.norm"] = _columns(result.logits if headed else result.last_hidden_state)
    kept = RecorderTap(*(name for name in points if name in seen))
    source = None
    if isinstance(ours, EncoderDecoder) and sources is not None:
        source = ours.encode(sources, Step.of(sources, tap=kept))
    step = Step.of(ids, tap=kept, source=source)
    made = ours(ids, step)
    if isinstance(ours, TextEncoder) and headed:
        ours.logits(made, step)

    rows = {name: (ids if sources is None or not OF_SOURCE.match(name) else sources).shape for name in kept}
    return [
        PointDifference(name, _off(_columns(kept[name][-1], rows[name]), seen[name])) for name in points if name in seen
    ]


def _output(parameter: str) -> str:
    """The point that the module of a parameter makes; "" where there is none."""
    module = parameter.rpartition(".")[0]
    side, module = ("encoder.", module[8:]) if module.startswith("encoder.") else ("", module)
    words = module.split(".")
    layer, end = (f"blocks.{words[1]}.", words[2:]) if words[0] == "blocks" else ("", words)
    point = OUTPUTS.get(".".join(end), "")
    return side + layer + point if point else ""


def _columns(value: Tensor, batch: torch.Size | None = None) -> Tensor:
    """[B, T, ...] as one column a token: [features, B T]."""
    rows = value.shape[:2] if batch is None else batch
    return value.reshape(rows[0] * rows[1], -1).T


def _taker(entry: Any, names: list[str], sizes: list[int], seen: dict[str, Tensor]) -> Callable[..., None]:
    """A hook that keeps a module's output, in our order of features: laid out as the weight's own rows are."""

    def take(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        columns = _columns(output)
        values = [columns.new_empty(size, columns.shape[1]) for size in sizes]
        entry.fill(values, 0, columns)
        seen.update(zip(names, values, strict=True))

    return take


def _off(ours: Tensor, theirs: Tensor) -> float:
    size = theirs.abs().max().item()
    return (ours.double() - theirs.double()).abs().max().item() / (size or 1.0)
