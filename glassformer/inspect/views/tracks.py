"""Tokens on parallel tracks: each one's residual stream, block by block, and what a change reaches. View 4."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.inspect.capture.points import layer_of
from glassformer.inspect.trace.trace import Receipt, Trace
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
class Touched:
    """A cell that an edit reaches: `row` of the grid and token `position`. `point` is what it changes."""

    row: int
    position: int
    point: str


@dataclass(frozen=True)
class ChangedView:
    """`distances` [L + 1, T]: how far the two residual streams are apart in each cell. `token`: the first that differs
    between the texts. `edited`: the first cell that an edit reaches which one of them has and the other has not. None
    where there is none. `first`: the earlier of both; `before`: the largest distance left of it, which is 0: no token
    sees a later one.
    """

    distances: Float[Tensor, "L1 T"]
    token: int | None
    edited: Touched | None
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
def changed(t: Trace, *, other: Trace) -> ChangedView:
    """Which cells of a token x block grid another text, or an edit, changes: those at and after the first difference.

    RequestError where the other trace is of another shape of model.
    """
    if other.config.n_layers != t.config.n_layers or other.config.d_model != t.config.d_model:
        raise RequestError("the other trace is of a model of another shape: no cell is beside a cell", param="other")
    if t.source_ids != other.source_ids:
        raise RequestError("the two were read beside different sources: every cell differs", param="other")
    n = min(len(t.ids), len(other.ids))
    distances = (stream(t)[:, :n] - stream(other)[:, :n]).norm(dim=-1)
    token = next((i for i in range(n) if t.ids[i] != other.ids[i]), None)
    edited = touched(t, other, n)
    first = min((at for at in (token, edited and edited.position) if at is not None), default=None)
    before = distances[:, :first].max().item() if first else 0.0
    receipt = Receipt("t.changed(other=other)", "largest distance left of the first difference", before)
    return ChangedView(distances, token, edited, first, before, receipt)


def touched(t: Trace, other: Trace, n: int) -> Touched | None:
    """The first cell, of `n` tokens, that an edit of one of them reaches and none of the other's."""
    only = set(t.edits) ^ set(other.edits)
    if not only and t.edits != other.edits:  # the same in another order
        only = set(t.edits)
    cells = [
        Touched(row, edit.first(one.n_prompt), edit.point)
        for one in (t, other)
        for edit in one.edits
        if edit in only and (row := row_of(edit.point)) is not None
    ]
    return min((one for one in cells if one.position < n), key=lambda one: (one.position, one.row), default=None)


def row_of(point: str) -> int | None:
    """The first row of the grid that a change of a point shows in; None past the last block."""
    if point.startswith("encoder."):
        return 1  # where block 0 has read the source
    i = layer_of(point)
    if i is None:
        return 0 if point.startswith("embed.") else None
    return i if point.endswith(".resid_pre") else i + 1
