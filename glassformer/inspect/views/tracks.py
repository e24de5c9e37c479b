"""Tokens on parallel tracks: each one's residual stream, block by block, and what a change reaches. View 4."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.inspect.trace import Receipt, Trace
from glassformer.inspect.views.layer import at


@dataclass(frozen=True)
class Tracks:
    """`norms` [L + 1, T]: the length of what enters each block, and of what leaves the last.

    `windows`: how many tokens back each block's attention sees, itself included; None is all. `context`: where it ends.
    """

    norms: Float[Tensor, "L1 T"]
    windows: tuple[int | None, ...]
    context: int
    receipt: Receipt


@dataclass(frozen=True)
class Changed:
    """`distances` [L + 1, T]: how far the two residual streams are apart in each cell. `first`: the first token that
    differs, None where none does. `before`: the largest distance left of it, which is 0: no token sees a later one.
    """

    distances: Float[Tensor, "L1 T"]
    first: int | None
    before: float
    receipt: Receipt


def stream(t: Trace) -> Float[Tensor, "L1 T D"]:
    """What enters each block, and what leaves the last."""
    last = t.config.n_layers - 1
    return torch.stack([at(t, f"blocks.{i}.resid_pre") for i in range(last + 1)] + [at(t, f"blocks.{last}.resid_post")])


@torch.no_grad()
def tracks(t: Trace) -> Tracks:
    """The length of every token's residual stream before each block, and after the last."""
    windows = tuple(layer.attention.window for layer in t.config.layers)
    receipt = Receipt("t.tracks()")
    return Tracks(stream(t).norm(dim=-1), windows, t.config.context_length, receipt)


@torch.no_grad()
def changed(t: Trace, *, other: Trace) -> Changed:
    """Which cells of a token x block grid another text, or an edit, changes: those at and after the first difference.

    RequestError where the other trace is of another shape of model.
    """
    if other.config.n_layers != t.config.n_layers or other.config.d_model != t.config.d_model:
        raise RequestError("the other trace is of a model of another shape: no cell is beside a cell", param="other")
    sources = [one.source.ids for one in (t, other) if one.kind == "encoder-decoder"]  # pyright: ignore[reportAttributeAccessIssue]
    if len(set(sources)) > 1:
        raise RequestError("the two were read beside different sources: every cell differs", param="other")
    n = min(len(t.ids), len(other.ids))
    distances = (stream(t)[:, :n] - stream(other)[:, :n]).norm(dim=-1)
    differ = [i for i in range(n) if t.ids[i] != other.ids[i]]
    if not differ:
        touched = (distances > 0).any(0).nonzero().flatten().tolist()
        differ = touched[:1]
    first = differ[0] if differ else None
    before = distances[:, :first].max().item() if first else 0.0
    receipt = Receipt(
        "t.changed(other=other)",
        "largest distance left of the first difference",
        before,
    )
    return Changed(distances, first, before, receipt)
