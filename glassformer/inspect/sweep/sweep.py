"""One edit after another, each by itself: which head, which layer, which token does it?

From the last block down, and one row before many: what is above an edit is all that runs anew, so the first row comes
soon.

edits       ablate head 0 of layer 3 | ablate head 1 of layer 3 | ...     each is a row of one batch
batch       [B, T, D] from what enters layer 3 on: below it nothing has changed, and that is kept
result      the difference of two logits at one position, or the KL of the whole distribution; rows as they come
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.inspect.capture.points import ENCODER, find, layer_of, sizes
from glassformer.inspect.edits.apply import Edits
from glassformer.inspect.edits.edit import Edit, ablate, knockout, patch, scale
from glassformer.inspect.record.rerun import check_head, rerun
from glassformer.inspect.trace.seq2seq import EncoderTrace
from glassformer.inspect.trace.trace import Trace
from glassformer.inspect.views.attribution import pick
from glassformer.inspect.views.layer import Which, side_of

OVER = ("heads", "layers", "positions", "cells")
OPS = ("ablate", "scale", "patch", "knockout")
AT_ONCE = 4096  # tokens of all rows of a batch
ROWS = 64
KL = "KL in nats, from the model's own distribution"
TURNED = "1 - cosine of the text's vector and its own"


@dataclass(frozen=True)
class Swept:
    """What one edit does. value: of the metric, under it; change: that less the value without any edit.

    position: the token that is changed, or that is hidden as a key. done: how many rows there are with this one, of
    `total`.
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
    """A sweep that is about to run: iterate over it. `metric` says what `value` is, `base` is it without any edit.

    position: where the logits are read; None: it is a text's vector that is measured.
    """

    trace: Trace
    edits: tuple[Edit, ...]
    position: int | None
    target: int | None
    rival: int | None
    base: float
    metric: str

    def __len__(self) -> int:
        return len(self.edits)

    def __iter__(self) -> Iterator[Swept]:
        t, order = self.trace, sorted(self.edits, key=lambda edit: -(layer_of(edit.point) or 0))
        length = (len(t) if self.position is None else self.position + 1) + t.n_source
        most, done = max(1, min(ROWS, AT_ONCE // length)), 0
        own = rerun(t, (), self.position)[0]
        while done < len(order):
            some = order[done : done + min(most, max(1, done))]  # one, then twice as many each time
            for edit, found in zip(some, rerun(t, some, self.position), strict=True):
                value = self._value(found, own)
                done += 1
                head, place = edit.head, edit.key if edit.position is None else edit.position
                assert not isinstance(head, Sequence)
                assert not isinstance(place, Sequence)
                yield Swept(edit, layer_of(edit.point), head, place, value, value - self.base, done, len(self))

    def _value(self, found: Tensor, own: Tensor) -> float:
        if self.position is None:
            return 1 - torch.cosine_similarity(found.double(), own.double(), dim=0).item()
        if self.target is None or self.rival is None:
            p, q = own.double().log_softmax(-1), found.double().log_softmax(-1)
            return (p.exp() * (p - q)).sum().item()
        return (found[self.target] - found[self.rival]).item()


def sweep(
    t: Trace,
    *,
    over: str = "heads",
    op: str = "ablate",
    attention: Which = "attn",
    position: int | None = None,
    target: int | str | None = None,
    rival: int | str | None = None,
    source: Trace | None = None,
    point: str | None = None,
    factor: float | None = None,
) -> Sweep:
    """Try one edit at every head ("heads": attn.z), every branch of every layer ("layers": attn.add and mlp.add), every
    token ("positions": what enters block 0), or every layer and token ("cells": resid_pre). `point` names another end
    of a point for it ("mlp.act"). A knockout, of cells, hides a layer's key from all others that see it.

    attention: of a model that reads a source, "encoder" does all of that there, and "cross" with what is between:
    cross.z; cross.add; the source's tokens as the decoder reads them; in each layer (cross.v). A recurrent model has
    positions alone, those of its source: rnn.states, or rnn.scores to knock out.

    position: where the logits are read, by default at the end. Without target and rival the metric is the KL from what
    the model says to what it says under the edit; with a target the difference of its logit and the rival's (by default
    the likeliest other). Of an encoder, without all three, it is how far the text's vector turns: 1 - cosine.
    source: of a patch, the trace to take from. RequestError for what does not go together.
    """
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
    if point is not None and (over == "positions" or op == "knockout"):
        where = "a knockout: it is of scores" if op == "knockout" else "positions: the token is changed where it enters"
        raise RequestError(f"point has no effect on {where}", param="point")
    encoder = isinstance(t, EncoderTrace)
    vector = encoder and position is None and target is None and rival is None
    if encoder and not hasattr(t.lm, "sentence"):
        raise RequestError("this is the source's part of a trace: sweep the whole, attention='encoder'", param="trace")
    if not vector and encoder:
        check_head(t)
    where = t.index("position", -1 if position is None else position)

    def edit(name: str, **place: Any) -> Edit:
        if op == "knockout":
            return knockout(name, **place)
        if source is not None:
            return patch(name, source, **place)
        return ablate(name, **place) if factor is None else scale(name, factor, **place)

    edits = [edit(name, **place) for name, place in _places(t, over, op, attention, point, where, source)]
    Edits(t.config, edits, [t.n_prompt], len(t), t.n_source or None)
    if vector:
        return Sweep(t, tuple(edits), None, None, None, 0.0, TURNED)
    if target is None and rival is None:
        return Sweep(t, tuple(edits), where, None, None, 0.0, KL)
    own = rerun(t, (), where)[0]
    one, other = pick(t, own, target, rival)
    return Sweep(t, tuple(edits), where, one, other, (own[one] - own[other]).item(), f"logit[{one}] - logit[{other}]")


def _places(
    t: Trace, over: str, op: str, attention: Which, point: str | None, where: int, source: Trace | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each point that is to be edited, and where."""
    if op == "knockout" and over != ("cells" if t.has_blocks else "positions"):
        what = "a layer's keys: over='cells'" if t.has_blocks else "the source's tokens: over='positions'"
        raise RequestError(f"a knockout goes through {what}, got {over!r}", param="over")
    if not t.has_blocks:
        yield from _of_recurrent(t, over, op, attention, source)
        return
    side, _ = side_of(t, attention)
    if attention == "cross" and t.source is None:
        raise RequestError("this model reads no source: leave out `attention`", param="attention")
    prefix, part = ENCODER if attention == "encoder" else "", "cross" if attention == "cross" else "attn"
    causal, n = side.causal and part == "attn", side.config.n_layers
    theirs = None if source is None else len(source if side is t and part == "attn" else source.source)
    size = where + 1 if causal else side.n_source if part == "cross" else len(side)
    tokens = range(size if theirs is None else min(size, theirs))
    layers = [f"{prefix}blocks.{i}." for i in range(n)]
    if op == "knockout":
        for layer in layers:
            for p in range(where) if causal else tokens:
                yield f"{layer}{part}.scores", {"key": p} | ({"query": tuple(range(p + 1, len(t)))} if causal else {})
    elif over == "heads":
        for name in (f"{layer}{point or f'{part}.z'}" for layer in layers):
            for head in range(_heads(t, name)):
                yield name, {"head": head}
    elif over == "layers":
        ends = (point,) if point else ("cross.add",) if part == "cross" else ("attn.add", "mlp.add")
        yield from ((f"{layer}{end}", {}) for layer in layers for end in ends)
    elif over == "positions":
        name = f"{ENCODER}final.norm" if part == "cross" else f"{prefix}blocks.0.resid_pre"
        yield from ((name, {"position": p}) for p in tokens)
    else:
        end = point or ("cross.v" if part == "cross" else "resid_pre")
        yield from ((f"{layer}{end}", {"position": p}) for layer in layers for p in tokens)


def _of_recurrent(t: Any, over: str, op: str, attention: Which, source: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if over != "positions":
        raise RequestError(
            f"a recurrent model has no heads and no layers to go through: over='positions', got {over!r}", param="over"
        )
    if attention != "attn":
        raise RequestError("a recurrent model has one attention at most: leave out `attention`", param="attention")
    hidden = op == "knockout"
    name = "rnn.scores" if hidden else "rnn.states"
    find(t.config, name)
    n = len(t.source) if source is None else min(len(t.source), len(source.source))
    yield from ((name, {"key" if hidden else "position": p}) for p in range(n))


def _heads(t: Trace, name: str) -> int:
    """How many heads a point has. RequestError where it has none."""
    axes, size = t.axes(name), sizes(t.config, name)
    which = next((axis for axis in axes if axis in ("H", "Hkv")), None)
    if which is None:
        raise RequestError(f"{name} has no heads", param="point")
    return size[which]
