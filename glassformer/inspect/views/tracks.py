"""The residual stream of each token, block by block, and what a change affects. View 4."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.inspect.capture.points import layer_of
from glassformer.inspect.trace.trace import Receipt, Trace
from glassformer.inspect.views.layer import values_at


@dataclass(frozen=True)
class Tracks:
    """norms [L + 1, T]: L2 norms of the input of each block, and of the output of the last.

    windows: of each block's attention, in tokens with the query; None is unlimited. context: the context length.
    """

    norms: Float[Tensor, "L1 T"]
    windows: tuple[int | None, ...]
    context: int
    receipt: Receipt


@dataclass(frozen=True)
class EditedCell:
    """The first cell that an edit of `point` changes: a row of the grid, and a position."""

    row: int
    position: int
    point: str


@dataclass(frozen=True)
class ChangedView:
    """The result of `changed`.

    distances [L + 1, T]: between the two residual streams. token: the first position with different tokens; edited: the
    first cell that an edit of only one of the traces changes; None if there is none. first: the earlier position of
    both. max_before: the largest distance at earlier positions, which is 0 in a causal model.
    """

    distances: Float[Tensor, "L1 T"]
    token: int | None
    edited: EditedCell | None
    first: int | None
    max_before: float
    receipt: Receipt


def residual_stream(t: Trace) -> Float[Tensor, "L1 T D"]:
    """Return the input of each block, and the output of the last."""
    last = t.config.n_layers - 1
    return torch.stack(
        [values_at(t, f"blocks.{i}.resid_pre") for i in range(last + 1)] + [values_at(t, f"blocks.{last}.resid_post")]
    )


@torch.no_grad()
def tracks(t: Trace) -> Tracks:
    """The norm of every token's residual stream before each block, and after the last."""
    windows = tuple(layer.attention.window for layer in t.config.layers)
    receipt = Receipt("t.tracks()")
    return Tracks(residual_stream(t).norm(dim=-1), windows, t.config.context_length, receipt)


@torch.no_grad()
def changed(t: Trace, *, other: Trace) -> ChangedView:
    """The cells of a token x block grid that another text, or an edit, changes.

    Raises:
        RequestError: The other trace is of a model with other sizes, or has another source.
    """
    if other.config.n_layers != t.config.n_layers or other.config.d_model != t.config.d_model:
        raise RequestError(
            "the other trace has another number of layers or another width: it cannot be compared", param="other"
        )
    if t.source_ids != other.source_ids:
        raise RequestError("the two traces have different sources, so every cell differs", param="other")
    n = min(len(t.ids), len(other.ids))
    distances = (residual_stream(t)[:, :n] - residual_stream(other)[:, :n]).norm(dim=-1)
    token = next((i for i in range(n) if t.ids[i] != other.ids[i]), None)
    edited = first_edited_cell(t, other, n)
    first = min((at for at in (token, edited and edited.position) if at is not None), default=None)
    before = distances[:, :first].max().item() if first else 0.0
    receipt = Receipt("t.changed(other=other)", "largest distance before the first difference", before)
    return ChangedView(distances, token, edited, first, before, receipt)


def first_edited_cell(t: Trace, other: Trace, n: int) -> EditedCell | None:
    """Return the first cell within `n` tokens that an edit of only one of the traces changes."""
    only = set(t.edits) ^ set(other.edits)
    if not only and t.edits != other.edits:  # the same edits in another order
        only = set(t.edits)
    cells = [
        EditedCell(row, edit.first_position(one.n_prompt), edit.point)
        for one in (t, other)
        for edit in one.edits
        if edit in only and (row := first_row(edit.point)) is not None
    ]
    return min((one for one in cells if one.position < n), key=lambda one: (one.position, one.row), default=None)


def first_row(point: str) -> int | None:
    """Return the first row of the grid that a change of a point affects; None after the last block."""
    if point.startswith("encoder."):
        return 1  # cross-attention of block 0
    i = layer_of(point)
    if i is None:
        return 0 if point.startswith("embed.") else None
    return i if point.endswith(".resid_pre") else i + 1
