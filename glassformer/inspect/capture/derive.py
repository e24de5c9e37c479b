"""Derived points: values that no forward pass stores, computed from the live points that it captured.

Fused attention never stores its scores. They are recomputed from the queries and keys of the forward pass, and carry
the error of an identity that holds exactly in exact arithmetic.
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
    """A derived value, and the error of the identity that ties it to the forward pass, in the value's units."""

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
    """Recompute scores and probabilities of one attention. S: all keys, those of a cache too, ordered as in `view`."""
    recomputed, scores, probs = attend_reference(spec, q_rot, KV(k_rot, v), view, bias, sinks)
    return Attended(scores, probs, _off(recomputed, z))


def heads(
    o: Linear, z: Float[Tensor, "B T H Dh"], out: Float[Tensor, "B T D"]
) -> tuple[Float[Tensor, "B T H D"], float]:
    """Return each head's contribution to attention's output, and max |sum of heads + bias - out|."""
    parts, bias = by_head(o, z), o.bias
    total = parts.sum(-2) if bias is None else parts.sum(-2) + bias
    return parts, _off(total, out)


def derive(model: Stack, name: str, captured: Mapping[str, Tensor], view: Visibility) -> Derived:
    """Return a derived point of a model, from the live points that `points.needs` names.

    captured: the live points by name. view: `step.view(spec)` of their forward pass, of the encoder for its points.
        Only the first forward pass with a cache computes the keys and values of a source: store them for later ones.
    """
    layer, end = name.rsplit(".", 1)
    attention: Attention = model.get_submodule(layer)  # pyright: ignore[reportAssignmentType]
    if end == "heads":
        return Derived(*heads(attention.o, captured[f"{layer}.z"], captured[f"{layer}.out"]))
    q_rot, k_rot, v, z = (captured[f"{layer}.{part}"] for part in ("q_rot", "k_rot", "v", "z"))
    stack = model.get_submodule(layer.split("blocks.")[0].rstrip("."))  # the encoder, or the model itself
    relative: RelativePositions | None = stack.relative_positions  # pyright: ignore[reportAssignmentType]
    bias = None if relative is None or layer.endswith("cross") else relative(view.queries, view.keys)
    found = attended(attention.spec, q_rot, k_rot, v, z, view, bias, attention.sinks)
    return Derived({"scores": found.scores, "probs": found.probs}[end], found.error)


def _off(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()
