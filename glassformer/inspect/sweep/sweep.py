"""Apply the same edit at every head, layer, position or cell, one at a time, and measure the effect.

The sweep starts at the last block, with a batch of one: only the blocks above an edit are recomputed, so the first row
is ready soon.

edits       ablate head 0 of layer 3 | ablate head 1 of layer 3 | ...     one sequence of the batch per edit
batch       [B, T, D], from the input of layer 3; the layers below are not recomputed
result      a difference of two logits at one position, or the KL divergence of the next-token distribution
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.inspect.capture.points import ENCODER, find, layer_of, sizes
from glassformer.inspect.edits.apply import Edits
from glassformer.inspect.edits.edit import Edit, ablate, knockout, patch, scale
from glassformer.inspect.record.rerun import check_head, rerun
from glassformer.inspect.trace.seq2seq import EncoderTrace
from glassformer.inspect.trace.trace import Trace
from glassformer.inspect.views.attribution import choose_tokens
from glassformer.inspect.views.layer import AttentionKind, select_stack
from glassformer.plain_numbers import plain_number

OVER = ("heads", "layers", "positions", "cells")
OPS = ("ablate", "scale", "patch", "knockout")
MAX_TOKENS = 4096  # of one batch
MAX_BATCH = 64
KL = "KL divergence from the unedited distribution, in nats"
COSINE = "1 - cosine of the edited and the unedited embedding"


@dataclass(frozen=True)
class SweepRow:
    """The effect of one edit. value: the metric under the edit; change: its difference from the metric without edits.

    position: the token that is edited, or hidden as a key. done: the number of rows so far, of `total`.
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
    """A sweep, which runs during iteration. metric: the name of the measure; base: its value without edits.

    Rows come in the order of computation, the last block first: each names its layer, head and position, and `matrix`
    puts them in order. position: of the logits; None: the metric is of the text's embedding.
    """

    trace: Trace
    edits: tuple[Edit, ...]
    position: int | None
    target: int | None
    rival: int | None
    base: float
    metric: str
    over: str

    def matrix(self, field: Literal["value", "change"] = "value") -> Float[Tensor, "L X"] | Float[Tensor, "T"]:
        """Run the sweep; return its values by layer, and by head, position or point within the layer.

        Returns:
            [layers, heads] over "heads"; [layers, points] over "layers", with the points in the order of the forward
            pass; [tokens] over "positions"; [layers, tokens] over "cells". NaN where there is no edit.
        """
        if field not in ("value", "change"):
            raise RequestError(f"field must be 'value' or 'change', got {field!r}", param="field")
        ends = list(dict.fromkeys(edit.point.rpartition("blocks.")[2].partition(".")[2] for edit in self.edits))
        cells: dict[tuple[int, int], float] = {}
        for row in self:
            end = ends.index(row.edit.point.rpartition("blocks.")[2].partition(".")[2])
            column = {"heads": row.head, "layers": end}.get(self.over, row.position)
            assert column is not None
            cells[0 if row.layer is None or self.over == "positions" else row.layer, column] = getattr(row, field)
        found = torch.full([1 + max(at) for at in zip(*cells, strict=True)], torch.nan)
        for at, value in cells.items():
            found[at] = value
        return found[0] if self.over == "positions" else found

    def __len__(self) -> int:
        return len(self.edits)

    def __iter__(self) -> Iterator[SweepRow]:
        t, order = self.trace, sorted(self.edits, key=lambda edit: -(layer_of(edit.point) or 0))
        length = (len(t) if self.position is None else self.position + 1) + t.n_source
        max_batch, done = max(1, min(MAX_BATCH, MAX_TOKENS // length)), 0
        unedited = rerun(t, (), self.position)[0]
        while done < len(order):
            batch = order[done : done + min(max_batch, max(1, done))]  # one edit, then batches of doubling size
            for edit, result in zip(batch, rerun(t, batch, self.position), strict=True):
                value = self._value(result, unedited)
                done += 1
                head, position = edit.head, edit.key if edit.position is None else edit.position
                assert not isinstance(head, Sequence)
                position = None if isinstance(position, Sequence) else position
                change = value - self.base
                yield SweepRow(edit, layer_of(edit.point), head, position, value, change, done, len(self))

    def _value(self, result: Tensor, unedited: Tensor) -> float:
        if self.position is None:
            return 1 - torch.cosine_similarity(result.double(), unedited.double(), dim=0).item()
        if self.target is None or self.rival is None:
            p, q = unedited.double().log_softmax(-1), result.double().log_softmax(-1)
            return (p.exp() * (p - q)).sum().item()
        return (result[self.target] - result[self.rival]).item()


def sweep(
    t: Trace,
    *,
    over: str = "heads",
    op: str = "ablate",
    attention: AttentionKind = "attn",
    position: int | None = None,
    target: int | str | None = None,
    rival: int | str | None = None,
    source: Trace | None = None,
    align: Literal["start", "end"] | None = None,
    point: str | None = None,
    factor: float | None = None,
) -> Sweep:
    """Prepare the same edit at every head, layer, position or cell.

    The metric is the KL divergence from the unedited next-token distribution; with `target` or `rival` the difference
    of two logits; of an encoder-only model, without position, target and rival, 1 - cosine of the text's embedding.

    Args:
        over: "heads" edits attn.z; "layers" attn.add and mlp.add; "positions" the input of block 0; "cells" resid_pre
            at every layer and position, or with op "knockout" each key of a layer, for all later queries. A recurrent
            model has "positions" only: rnn.states of its source, or with "knockout" rnn.scores.
        op: "ablate", "scale", "patch" or "knockout".
        attention: Of an encoder-decoder, "encoder" edits the encoder; "cross" edits cross.z, cross.add, the encoder's
            output at each source token, or cross.v.
        position: Of the logits; by default the last.
        target: A token by id or text; by default the most likely one.
        rival: The same; by default the most likely one apart from the target.
        source: For "patch": the trace to copy from.
        align: For "patch" from a text of another length: "start" pairs its first token with the first one, "end" its
            last token with the last one. Tokens without a counterpart are left out.
        point: The suffix of another point to edit, such as "mlp.act".
        factor: For "scale".

    Raises:
        RequestError: Options conflict, the model has no such point, head or attention, or the source of a patch has
            another length and `align` is None.
    """
    position, factor, target, rival = map(plain_number, (position, factor, target, rival))
    if over not in OVER:
        raise RequestError(f"over must be one of {', '.join(OVER)}, got {over!r}", param="over")
    if op not in OPS:
        raise RequestError(f"op must be one of {', '.join(OPS)}, got {op!r}", param="op")
    for name, value, owner in (("source", source, "patch"), ("factor", factor, "scale")):
        if op == owner and value is None:
            raise RequestError(f"op {op!r} needs {name}", param=name)
        if op != owner and value is not None:
            raise RequestError(f"{name} has no effect with op {op!r}: leave it out", param=name)
    if align not in (None, "start", "end") or (align is not None and op != "patch"):
        raise RequestError(f"align must be 'start' or 'end', with op 'patch' only, got {align!r}", param="align")
    if point is not None and (over == "positions" or op == "knockout"):
        other = "op 'knockout', which edits scores" if op == "knockout" else "over 'positions', which edits the input"
        raise RequestError(f"point has no effect with {other}: leave it out", param="point")
    encoder = isinstance(t, EncoderTrace)
    of_embedding = encoder and position is None and target is None and rival is None
    if encoder and not hasattr(t.lm, "sentence"):
        raise RequestError(
            "this is the encoder's part of a trace: sweep the complete trace, with attention='encoder'", param="trace"
        )
    if encoder and not of_embedding:
        check_head(t)
    at = t.index("position", -1 if position is None else position)

    def edit(name: str, **where: Any) -> Edit | None:
        if op == "knockout":
            return knockout(name, **where)
        if source is not None:
            return _patch(t, name, source, align, where)
        return ablate(name, **where) if factor is None else scale(name, factor, **where)

    edits = tuple(edit(name, **where) for name, where in _targets(t, over, op, attention, point, at))
    edits = tuple(one for one in edits if one is not None)
    Edits(t.config, list(edits), [t.n_prompt], len(t), t.n_source or None)  # validates
    if of_embedding:
        return Sweep(t, edits, None, None, None, 0.0, COSINE, over)
    if target is None and rival is None:
        return Sweep(t, edits, at, None, None, 0.0, KL, over)
    logits = rerun(t, (), at)[0]
    one, other = choose_tokens(t, logits, target, rival)
    base, metric = (logits[one] - logits[other]).item(), f"logit[{one}] - logit[{other}]"
    return Sweep(t, edits, at, one, other, base, metric, over)


def _patch(t: Trace, name: str, source: Trace, align: str | None, where: dict[str, Any]) -> Edit | None:
    """Return a patch of one position, or of all that both texts have; None if they do not both have it."""
    n, n_source = t.n_tokens(name), source.n_tokens(name)
    if n != n_source and align is None:
        raise RequestError(
            f"the source has {n_source} tokens at {name}, and the text {n}: pass a source of the same length, or "
            "align='start' or align='end' to pair their tokens from the start or from the end", param="align",
        )  # fmt: skip
    shift = n_source - n if align == "end" else 0
    if "position" in where:
        p = where["position"] + shift
        return patch(name, source, source_position=p, **where) if 0 <= p < n_source else None
    if shift == 0:
        return patch(name, source, **where)
    both = range(max(0, -shift), min(n, n_source - shift))
    return patch(name, source, position=both, source_position=[p + shift for p in both], **where)


def _targets(
    t: Trace, over: str, op: str, attention: AttentionKind, point: str | None, at: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each point to edit, and the heads, positions, queries and keys of the edit."""
    allowed = "cells" if t.has_blocks else "positions"
    if op == "knockout" and over != allowed:
        raise RequestError(f"op 'knockout' needs over={allowed!r} for this model, got {over!r}", param="over")
    if not t.has_blocks:
        yield from _recurrent_targets(t, over, op, attention)
        return
    stack, _ = select_stack(t, attention)
    if attention == "cross" and t.source is None:
        raise RequestError("this model has no source: leave out `attention`", param="attention")
    prefix, kind = ENCODER if attention == "encoder" else "", "cross" if attention == "cross" else "attn"
    causal = stack.causal and kind == "attn"
    tokens = range(at + 1 if causal else stack.n_source if kind == "cross" else len(stack))
    layers = [f"{prefix}blocks.{i}." for i in range(stack.config.n_layers)]
    if op == "knockout":
        for layer in layers:
            for key in range(at) if causal else tokens:
                queries = {"query": tuple(range(key + 1, len(t)))} if causal else {}
                yield f"{layer}{kind}.scores", {"key": key} | queries
    elif over == "heads":
        for name in (f"{layer}{point or f'{kind}.z'}" for layer in layers):
            for head in range(_n_heads(t, name)):
                yield name, {"head": head}
    elif over == "layers":
        ends = (point,) if point else ("cross.add",) if kind == "cross" else ("attn.add", "mlp.add")
        yield from ((f"{layer}{end}", {}) for layer in layers for end in ends)
    elif over == "positions":
        name = f"{ENCODER}final.norm" if kind == "cross" else f"{prefix}blocks.0.resid_pre"
        yield from ((name, {"position": p}) for p in tokens)
    else:
        end = point or ("cross.v" if kind == "cross" else "resid_pre")
        yield from ((f"{layer}{end}", {"position": p}) for layer in layers for p in tokens)


def _recurrent_targets(t: Any, over: str, op: str, attention: AttentionKind) -> Iterator[tuple[str, dict[str, Any]]]:
    if over != "positions":
        raise RequestError(f"a recurrent model needs over='positions', got {over!r}", param="over")
    if attention != "attn":
        raise RequestError("a recurrent model has one kind of attention: leave out `attention`", param="attention")
    name, axis = ("rnn.scores", "key") if op == "knockout" else ("rnn.states", "position")
    find(t.config, name)
    yield from ((name, {axis: p}) for p in range(len(t.source)))


def _n_heads(t: Trace, name: str) -> int:
    """Return the number of heads of a point. RequestError if it has no head axis."""
    axes, size = t.axes(name), sizes(t.config, name)
    axis = next((axis for axis in axes if axis in ("H", "Hkv")), None)
    if axis is None:
        raise RequestError(f"{name} has no heads: use another point, or over='layers'", param="point")
    return size[axis]
