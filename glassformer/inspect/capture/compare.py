"""Compare a model with another implementation of it, point by point, to find the first difference.

The mapping of checkpoint tensors matches modules with points: the output of the module that owns the tensor of
`blocks.3.attn.q.weight` is compared with our point `blocks.3.attn.q`.
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
from glassformer.kernels.packed_linear import weight_shapes
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.model import Decoder, EncoderDecoder
from glassformer.nn.step import Step

TABLES = (["embed.tokens"], ["embed.types"], ["encoder.embed.tokens"])
# Our modules and the points of their outputs, inside blocks and outside.
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
SOURCE_POINT = re.compile(r"encoder\.|blocks\.\d+\.cross\.[kv]$")  # points with one value per source token


@dataclass(frozen=True)
class PointDifference:
    """The difference at one point: `off` is max |ours - theirs| / max |theirs|."""

    point: str
    off: float


@torch.no_grad()
def compare(
    ours: Decoder | TextEncoder,
    theirs: nn.Module,
    ids: Int[Tensor, "B T"],
    sources: Int[Tensor, "B S"] | None = None,
) -> list[PointDifference]:
    """Return the difference at each common point, in the order of the forward pass.

    The points of an encoder come before those of its decoder. The logits are last, or the final states if the model is
    encoder-only and has no head.

    Args:
        ours: the model.
        theirs: a `transformers` model with the same weights, on the same device and in the same dtype.
        ids: token ids; the decoder input of an encoder-decoder.
        sources: source token ids of an encoder-decoder.
    """
    points = live(ours.config)
    parameters = weight_shapes(ours)
    modules, seen, hooks = dict(theirs.named_modules()), {}, []
    family = family_of(ours.config)
    for entry in map_tensors(family, ours.config, parameters):
        path, _, kind = entry.tensor_name.rpartition(".")
        path = path if path in modules else path.removeprefix(family.prefix)  # a model without its head
        names = [_output_point(name) for name in entry.parameter_names]
        if kind == "weight" and path in modules and all(name in points for name in names):
            sizes = [parameters[name].shape[-1 if names in TABLES else 0] for name in entry.parameter_names]
            hook = _output_hook(replace(entry, transposed=False), names, sizes, seen)
            hooks.append(modules[path].register_forward_hook(hook))
    inputs = {"input_ids": ids} if sources is None else {"input_ids": sources, "decoder_input_ids": ids}
    try:
        options = {} if isinstance(ours, TextEncoder) else {"use_cache": False}
        result = theirs(**inputs, output_hidden_states=True, **options)
    finally:
        for hook in hooks:
            hook.remove()
    stacks = {"": "hidden_states"} if sources is None else {side: f"{name}_hidden_states" for side, name in SIDES}
    for prefix, name in stacks.items():
        for i, states in enumerate(result[name][:-1]):  # the last one is normalized
            seen[prefix + ("embed.out" if i == 0 else f"blocks.{i - 1}.resid_post")] = _columns(states)
    has_head = "final.logits" in points
    seen["final.logits" if has_head else "final.norm"] = _columns(
        result.logits if has_head else result.last_hidden_state
    )
    tap = RecorderTap(*(name for name in points if name in seen))
    source = None
    if isinstance(ours, EncoderDecoder) and sources is not None:
        source = ours.encode(sources, Step.of(sources, tap=tap))
    step = Step.of(ids, tap=tap, source=source)
    states = ours(ids, step)
    if isinstance(ours, TextEncoder) and has_head:
        ours.logits(states, step)

    shapes = {name: (ids if sources is None or not SOURCE_POINT.match(name) else sources).shape for name in tap}
    return [
        PointDifference(name, _relative_error(_columns(tap[name][-1], shapes[name]), seen[name]))
        for name in points
        if name in seen
    ]


def _output_point(parameter: str) -> str:
    """Return the point of the output of a parameter's module, or "" if it has no point."""
    module = parameter.rpartition(".")[0]
    side, module = ("encoder.", module[8:]) if module.startswith("encoder.") else ("", module)
    words = module.split(".")
    layer, end = (f"blocks.{words[1]}.", words[2:]) if words[0] == "blocks" else ("", words)
    point = OUTPUTS.get(".".join(end), "")
    return side + layer + point if point else ""


def _columns(value: Tensor, batch: torch.Size | None = None) -> Tensor:
    """Reshape [B, T, ...] to one column per token: [features, B T]."""
    size = value.shape[:2] if batch is None else batch
    return value.reshape(size[0] * size[1], -1).T


def _output_hook(entry: Any, names: list[str], sizes: list[int], seen: dict[str, Tensor]) -> Callable[..., None]:
    """Return a hook that stores a module's output with the features in our order, as the rows of the weight are."""

    def store(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        columns = _columns(output)
        values = [columns.new_empty(size, columns.shape[1]) for size in sizes]
        entry.fill(values, 0, columns)
        seen.update(zip(names, values, strict=True))

    return store


def _relative_error(ours: Tensor, theirs: Tensor) -> float:
    size = theirs.abs().max().item()
    return (ours.double() - theirs.double()).abs().max().item() / (size or 1.0)
