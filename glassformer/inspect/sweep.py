"""One edit after another, each by itself: which head, which layer, which token does it?

From the last block down, and one row before many: what is above an edit is all that runs anew, so the first row comes
soon.

edits       ablate head 0 of layer 3 | ablate head 1 of layer 3 | ...     each is a row of one batch
batch       [B, T, D] from what enters layer 3 on: below it nothing has changed, and that is kept
result      the difference of two logits at one position, or the KL of the whole distribution; rows as they come
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.inspect.attribution import pick
from glassformer.inspect.edit import Edit, ablate, patch, scale
from glassformer.inspect.editing import Edits
from glassformer.inspect.points import layer_of, sizes
from glassformer.inspect.reading import Looking
from glassformer.inspect.trace import Trace
from glassformer.nn.step import Step

OVER = ("heads", "layers", "positions", "cells")
OPS = ("ablate", "scale", "patch")
AT_ONCE = 4096  # tokens of all rows of a batch
ROWS = 64


@dataclass(frozen=True)
class Swept:
    """What one edit does. value: of the metric, under it; change: that less the value without any edit.

    done: how many rows there are with this one, of `total`.
    """

    edit: Edit
    layer: int | None
    head: int | None
    position: int | None
    value: float
    change: float
    done: int
    total: int


@dataclass(frozen=True)
class Sweep:
    """A sweep that is about to run: iterate over it. `metric` says what `value` is, `base` is it without any edit."""

    trace: Trace
    edits: tuple[Edit, ...]
    position: int
    target: int | None
    rival: int | None
    base: float
    metric: str

    def __len__(self) -> int:
        return len(self.edits)

    def __iter__(self) -> Iterator[Swept]:
        order = sorted(self.edits, key=lambda edit: -_block(edit, 0))
        most, done = max(1, min(ROWS, AT_ONCE // (self.position + 1))), 0
        own = _logits(self.trace, (), self.position)[0]
        while done < len(order):
            some = order[done : done + min(most, max(1, done))]  # one, then twice as many each time
            for edit, logits in zip(some, _logits(self.trace, some, self.position), strict=True):
                value = self._value(logits, own)
                done += 1
                layer, head, place = layer_of(edit.point), edit.head, edit.position
                assert not isinstance(head, Sequence)
                assert not isinstance(place, Sequence)
                yield Swept(edit, layer, head, place, value, value - self.base, done, len(self))

    def _value(self, logits: Tensor, own: Tensor) -> float:
        if self.target is None or self.rival is None:
            p, q = own.double().log_softmax(-1), logits.double().log_softmax(-1)
            return (p.exp() * (p - q)).sum().item()
        return (logits[self.target] - logits[self.rival]).item()


def sweep(
    t: Trace,
    *,
    over: str = "heads",
    op: str = "ablate",
    position: int = -1,
    target: int | str | None = None,
    rival: int | str | None = None,
    source: Trace | None = None,
    point: str | None = None,
    factor: float | None = None,
) -> Sweep:
    """Try one edit at every head ("heads": attn.z), every branch of every layer ("layers": attn.add and mlp.add), every
    token ("positions": what enters block 0), or every layer and token ("cells": resid_pre). `point` names another end
    of a point for it ("mlp.act").

    position: where the logits are read. Without target and rival the metric is the KL from what the model says to what
    it says under the edit; with a target the difference of its logit and the rival's (by default the likeliest other).
    source: of a patch, the trace to take from. RequestError for what does not go together.
    """
    if t.kind != "decoder":
        raise RequestError(
            "sweeps and edits are of decoders, and this trace is of another kind of model", param="trace"
        )
    where = t.place("position", position)
    if over not in OVER:
        raise RequestError(f"over must be one of {', '.join(OVER)}, got {over!r}", param="over")
    if op not in OPS:
        raise RequestError(f"op must be one of {', '.join(OPS)}, got {op!r}", param="op")
    for name, given, needed in (("source", source, op == "patch"), ("factor", factor, op == "scale")):
        if needed and given is None:
            raise RequestError(
                f"{op} needs {'the trace to take from (source)' if name == 'source' else name}", param=name
            )
        if given is not None and not needed:
            raise RequestError(f"{name} has no effect on {op}", param=name)
    if point is not None and over == "positions":
        raise RequestError("point has no effect on positions: the token is changed where it enters", param="point")

    def edit(name: str, **place: Any) -> Edit:
        if source is not None:
            return patch(name, source, **place)
        return ablate(name, **place) if factor is None else scale(name, factor, **place)

    n = t.config.n_layers
    tokens = range(where + 1 if source is None else min(where + 1, len(source)))
    if over == "heads":
        names = [f"blocks.{i}.{point or 'attn.z'}" for i in range(n)]
        edits = [edit(name, head=h) for name in names for h in range(_heads(t, name))]
    elif over == "layers":
        ends = (point,) if point else ("attn.add", "mlp.add")
        edits = [edit(f"blocks.{i}.{end}") for i in range(n) for end in ends]
    elif over == "positions":
        edits = [edit("blocks.0.resid_pre", position=p) for p in tokens]
    else:
        edits = [edit(f"blocks.{i}.{point or 'resid_pre'}", position=p) for i in range(n) for p in tokens]
    Edits(t.config, edits, [t.n_prompt], len(t))
    own = _logits(t, (), where)[0]
    if target is None and rival is None:
        return Sweep(t, tuple(edits), where, None, None, 0.0, "KL in nats, from the model's own distribution")
    one, other = pick(t, own, target, rival)
    return Sweep(t, tuple(edits), where, one, other, (own[one] - own[other]).item(), f"logit[{one}] - logit[{other}]")


def _block(edit: Edit, otherwise: int) -> int:
    """The number of the block that an edit is of; `otherwise` where it is of none."""
    found = layer_of(edit.point)
    return otherwise if found is None else found


def _heads(t: Trace, name: str) -> int:
    """How many heads a point has. RequestError where it has none."""
    axes, size = t.axes(name), sizes(t.config, name)
    which = next((axis for axis in axes if axis in ("H", "Hkv")), None)
    if which is None:
        raise RequestError(f"{name} has no heads", param="point")
    return size[which]


@torch.no_grad()
def _logits(t: Trace, edits: Sequence[Edit], position: int) -> Tensor:
    """The logits at one position under each of some edits, [B, V]; without any, those of the text itself."""
    first = min((_block(edit, 0) for edit in edits), default=t.config.n_layers - 1)
    start = f"blocks.{first}.resid_pre"
    above = [edit for edit in t.edits if edit.point.startswith("final.") or _block(edit, -1) >= first]
    whole = [replace(edit, row=None) for edit in above if edit.point != start]  # what enters was changed before
    rows = [replace(edit, row=n) for n, edit in enumerate(edits)]
    batch = max(1, len(edits))
    editor = Edits(t.config, [*whole, *rows], [t.n_prompt] * batch, len(t))
    x = t.kept.of(start)[: position + 1]
    step = Step(t.kept.positions[None, : position + 1], tap=None)
    step.tap = Looking(step, tuple(range(batch)), editor, None)
    hidden = t.model.above(x.expand(batch, *x.shape), step, first)
    step = step.at(t.kept.positions[position].expand(batch))
    step.tap = Looking(step, tuple(range(batch)), editor, None)
    return t.model.logits(hidden[:, position], step)
