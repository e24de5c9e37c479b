"""Points that no pass ever holds, computed afterwards from those that were kept.

Fast attention never writes its scores down. They are recomputed from the very queries and keys that the pass used, and
carry the error of an identity that would hold exactly in exact arithmetic: it is shown beside them, never hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from glassformer.nn.attend import KV, AttendSpec, Visibility, attend_reference
from glassformer.nn.attention import Attention, by_head
from glassformer.nn.linear import Linear
from glassformer.nn.model import Stack
from glassformer.nn.position import RelativePositions


class Derived(NamedTuple):
    """A value computed afterwards, and how far the identity that ties it to the pass is off, in the value's units."""

    value: Tensor
    error: float


class Attended(NamedTuple):
    """Scores and probabilities [B, H, T, S]; `error` is max |P·V - z|."""

    scores: Tensor
    probs: Tensor
    error: float


def attended(
    spec: AttendSpec,
    q_rot: Float[Tensor, "B T H Dh"],
    k_rot: Float[Tensor, "B S Hkv Dh"],
    v: Float[Tensor, "B S Hkv Dv"],
    z: Float[Tensor, "B T H Dv"],
    view: Visibility,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Attended:
    """What one attention weighed, from what its product used. S keys: those of a cache too, in `view`'s order."""
    again, scores, probs = attend_reference(spec, q_rot, KV(k_rot, v), view, bias, sinks)
    return Attended(scores, probs, _off(again, z))


def heads(
    o: Linear, z: Float[Tensor, "B T H Dh"], out: Float[Tensor, "B T D"]
) -> tuple[Float[Tensor, "B T H D"], float]:
    """Each head's own part of what attention writes. The error is max |sum of heads + bias - out|."""
    parts, bias = by_head(o, z), o.bias
    whole = parts.sum(-2) if bias is None else parts.sum(-2) + bias
    return parts, _off(whole, out)


def derive(model: Stack, name: str, kept: Mapping[str, Tensor], view: Visibility) -> Derived:
    """A derived point of a model, from the live points that `points.needs` names.

    `view` is `step.view(spec)` of the pass that they were kept in: the encoder's own for its points. The keys and
    values of a source are seen by a cache's first pass only: keep them for the later ones.
    """
    layer, end = name.rsplit(".", 1)
    attention: Attention = model.get_submodule(layer)  # pyright: ignore[reportAssignmentType]
    if end == "heads":
        return Derived(*heads(attention.o, kept[f"{layer}.z"], kept[f"{layer}.out"]))
    q_rot, k_rot, v, z = (kept[f"{layer}.{part}"] for part in ("q_rot", "k_rot", "v", "z"))
    stack = model.get_submodule(layer.split("blocks.")[0].rstrip("."))  # whose layer it is: the encoder, or the model
    relative: RelativePositions | None = stack.relative_positions  # pyright: ignore[reportAssignmentType]
    bias = None if relative is None or layer.endswith("cross") else relative(view.queries, view.keys)
    found = attended(attention.spec, q_rot, k_rot, v, z, view, bias, attention.sinks)
    return Derived({"scores": found.scores, "probs": found.probs}[end], found.error)


def _off(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()
