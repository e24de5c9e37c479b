"""Run a text again in a batch of copies, each under one edit: what a sweep measures.

decoder          the input of the first edited block, in every copy -> the blocks from there on -> logits
encoder-decoder  the same; under edits of its encoder, the encoder is run again first, in a batch of as many copies
encoder          the same -> states -> the text's vector, or the logits of one position
recurrent        the complete forward pass: there are no blocks to skip
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.cache.dense import DenseCache
from glassformer.errors import RequestError
from glassformer.generate.prefill import chunk_size
from glassformer.inspect.capture.capture import CapturingTap
from glassformer.inspect.capture.points import ENCODER, layer_of
from glassformer.inspect.edits.apply import Edits
from glassformer.inspect.edits.edit import Edit
from glassformer.inspect.record.seq2seq import RecurrentTap
from glassformer.inspect.trace.trace import Trace
from glassformer.kernels.native.attention import attend_native
from glassformer.nn.protocols import EncodedSource
from glassformer.nn.step import Step

NO_HEAD = "this model has no head that predicts tokens: leave out position, target and rival"


@torch.no_grad()
def rerun(t: Trace, edits: Sequence[Edit], position: int | None) -> Float[Tensor, "B V"]:
    """Return the logits at one position under each of some edits; without edits, those of the text itself.

    position: None returns the vector of the text, of an encoder.
    """
    rows, some = max(1, len(edits)), [replace(edit, row=n) for n, edit in enumerate(edits)]
    if not t.has_blocks:
        assert position is not None
        return _rerun_recurrent(t, some, rows, position)
    n = position + 1 if t.causal and position is not None else len(t)
    hidden, editor = _rerun_blocks(t, some, rows, n)
    if position is None:
        counted = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return t.lm.sentence(hidden, counted).float()  # pyright: ignore[reportAttributeAccessIssue]: an `Embedder`
    step = Step(t.captured.positions[None]).at(t.captured.positions[position].expand(rows))
    step.tap = CapturingTap(step, tuple(range(rows)), editor, None)
    return t.model.logits(hidden[:, position - n], step)  # of a causal model, the last token


def _rerun_blocks(t: Trace, edits: Sequence[Edit], rows: int, n: int) -> tuple[Float[Tensor, "B T D"], Edits]:
    """The normed states of the first `n` tokens after the last block, run from the first block that is edited.

    A causal model processes long texts in chunks; the result then is that of the last chunk.
    """
    inner = [replace(edit, point=edit.point.removeprefix(ENCODER)) for edit in edits if edit.point.startswith(ENCODER)]
    own = [edit for edit in edits if not edit.point.startswith(ENCODER)]
    source, first = t.captured.source, min((layer_of(edit.point) or 0 for edit in own), default=t.config.n_layers - 1)
    if inner:
        encoder: Trace = t.source
        states, first = _rerun_blocks(encoder, inner, rows, len(encoder))[0], 0
        source = EncodedSource(states, encoder.captured.positions[None])
    elif source is not None:
        source = EncodedSource(source.states.expand(rows, -1, -1), source.positions)
    start = f"blocks.{first}.resid_pre"
    above = {f"blocks.{i}" for i in range(first, t.config.n_layers)} | {"final"}
    ours = [edit for edit in t.edits if edit.point.startswith(tuple(f"{part}." for part in above))]
    shared = [replace(edit, row=None) for edit in ours if edit.point != start]  # the captured input is already edited
    n_source = None if source is None else source.positions.shape[-1]
    editor = Edits(t.config, [*shared, *own], [t.n_prompt] * rows, len(t), n_source)
    x = t.captured.require(start)[:n]
    size = chunk_size(t.config, n, rows, editor.edits_scores) if t.causal else n
    cache = DenseCache.of(t.config, rows, n, x.device, source, [n] * rows) if size < n else None
    hidden = x
    for part in x.split(size):
        if cache is None:
            step = Step(t.captured.positions[None, :n], source=source, attend=attend_native)
        else:
            step = Step(cache.extend([len(part)] * rows), cache=cache, attend=attend_native)
        step.tap = CapturingTap(step, tuple(range(rows)), editor, None)
        hidden = t.model.run_blocks(part.expand(rows, *part.shape), step, first)
    return hidden, editor


def _rerun_recurrent(t: Trace, edits: Sequence[Edit], rows: int, position: int) -> Float[Tensor, "B V"]:
    shared = [replace(edit, row=None) for edit in t.edits]
    editor = Edits(t.config, [*shared, *edits], [t.n_prompt] * rows, len(t), t.n_source)
    tap = RecurrentTap(t.n_source, ("final.logits",), editor, range(rows))
    source = torch.tensor([t.source_ids] * rows, device=t.captured.ids.device)
    t.model(source, t.captured.ids[: position + 1].expand(rows, -1), None, tap)
    return tap.parts["final.logits"][0][:, position]


def check_head(t: Trace) -> None:
    """Raise RequestError where an encoder has no logits."""
    if "final.logits" not in t.names():
        raise RequestError(NO_HEAD, param="position")
