"""A text again in many rows, each under an edit of its own: what a sweep measures, a batch at a time.

decoder         what enters the first block that an edit changes, in every row -> from there on -> logits
with a source   the same; under edits of its encoder that is read again first, in as many rows
encoder         the same -> states -> the text's vector, or the logits of one place
recurrent       the whole pass: there is nothing below to keep
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.inspect.capture.points import layer_of
from glassformer.inspect.capture.reader import CapturingTap
from glassformer.inspect.edits.apply import Edits
from glassformer.inspect.edits.edit import Edit
from glassformer.inspect.record.seq2seq import InTurn
from glassformer.inspect.trace.seq2seq import SIDE
from glassformer.inspect.trace.trace import Trace
from glassformer.nn.protocols import EncodedSource
from glassformer.nn.step import Step

NO_HEAD = "this model has no head that guesses tokens: leave out position, target and rival"


@torch.no_grad()
def rerun(t: Trace, edits: Sequence[Edit], position: int | None) -> Float[Tensor, "B V"]:
    """The logits at one position under each of some edits; without any, those of the text itself.

    position: None is of an encoder, whose vector of the text it then is.
    """
    rows, some = max(1, len(edits)), [replace(edit, row=n) for n, edit in enumerate(edits)]
    if t.kind == "recurrent":
        return _recurrent(t, some, rows, position)
    if t.kind == "encoder":
        hidden, editor = _above(t, some, rows, len(t))
        if position is None:
            counted = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
            return t.lm.sentence(hidden, counted).float()  # pyright: ignore[reportAttributeAccessIssue]
    else:
        assert position is not None
        hidden, editor = _above(t, some, rows, position + 1)
    step = Step(t.kept.positions[None]).at(t.kept.positions[position].expand(rows))
    step.tap = CapturingTap(step, tuple(range(rows)), editor, None)
    return t.model.logits(hidden[:, position], step)


def _above(t: Trace, edits: Sequence[Edit], rows: int, n: int) -> tuple[Float[Tensor, "B T D"], Edits]:
    """The states of the first `n` tokens after the last block, normed, from the first block that anything changes."""
    inside = [replace(edit, point=edit.point.removeprefix(SIDE)) for edit in edits if edit.point.startswith(SIDE)]
    own = [edit for edit in edits if not edit.point.startswith(SIDE)]
    source, first = t.kept.source, min((layer_of(edit.point) or 0 for edit in own), default=t.config.n_layers - 1)
    if inside:
        encoded: Trace = t.source  # pyright: ignore[reportAttributeAccessIssue]
        states, first = _above(encoded, inside, rows, len(encoded))[0], 0
        source = EncodedSource(states, encoded.kept.positions[None])
    elif source is not None:
        source = EncodedSource(source.states.expand(rows, -1, -1), source.positions)
    start = f"blocks.{first}.resid_pre"
    above = {f"blocks.{i}" for i in range(first, t.config.n_layers)} | {"final"}
    ours = [edit for edit in t.edits if edit.point.startswith(tuple(f"{part}." for part in above))]
    whole = [replace(edit, row=None) for edit in ours if edit.point != start]  # what enters was changed before
    n_source = None if source is None else source.positions.shape[-1]
    editor = Edits(t.config, [*whole, *own], [t.n_prompt] * rows, len(t), n_source)
    x = t.kept.of(start)[:n]
    step = Step(t.kept.positions[None, :n], source=source)
    step.tap = CapturingTap(step, tuple(range(rows)), editor, None)
    return t.model.above(x.expand(rows, *x.shape), step, first), editor


def _recurrent(t: Any, edits: Sequence[Edit], rows: int, position: int | None) -> Float[Tensor, "B V"]:
    assert position is not None
    whole = [replace(edit, row=None) for edit in t.edits]
    editor = Edits(t.config, [*whole, *edits], [t.n_prompt] * rows, len(t), len(t.source))
    tap = InTurn(len(t.source), ("final.logits",), editor, range(rows))
    read = torch.tensor([t.source.ids] * rows, device=t.kept.ids.device)
    t.model(read, t.kept.ids[: position + 1].expand(rows, -1), None, tap)
    return tap.parts["final.logits"][0][:, position]


def check_head(t: Trace) -> None:
    """RequestError where an encoder has no logits."""
    if "final.logits" not in t.names():
        raise RequestError(NO_HEAD, param="position")
