"""How a trace is made: a text is read in one pass, or written by the very loop of `generate` and kept as it grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from glassformer.errors import CapacityError, RequestError
from glassformer.generate.loop import Options, Piece, check_ids, write
from glassformer.inspect.again import Kept
from glassformer.inspect.points import match
from glassformer.inspect.reading import Editor, Looking, Reader, check_budget, wanted
from glassformer.inspect.trace import Language, Trace
from glassformer.nn.step import Step, Tap


class Watching:
    """A `Watch` of one text that is written: edits change its passes, and a reader keeps what passes."""

    whole, apart = True, False

    def __init__(self, reader: Reader, editor: Editor | None):
        self.reader, self.editor, self.edited = reader, editor, editor is not None

    def tap(self, step: Step, rows: Sequence[int]) -> Tap:
        if step.positions.ndim == 2:
            self.reader.passed(step)
        return Looking(step, rows, self.editor, self.reader)


def read_trace(
    lm: Language,
    ids: Sequence[int],
    read: Sequence[str],
    budget: int | None,
    edits: tuple[Any, ...],
    editor: Editor | None,
) -> Trace:
    """A trace of a text that is there, read in one pass. Errors: those of `lm.trace`."""
    config, device = lm.model.config, lm.model.embed.weight.device
    check_ids("text", ids, config.vocab_size)
    if len(ids) > config.context_length:
        raise CapacityError(f"the text has {len(ids)} tokens, and the model's context holds {config.context_length}")
    edited = [edit.point for edit in edits]
    check_budget(config, read, edited, len(ids), lm.model.embed.weight.element_size(), budget)
    row = torch.tensor(ids, device=device)
    reader = Reader(config, wanted(config, read, edited), len(ids))
    with torch.no_grad():
        step = Step.of(row[None])
        step.tap = Looking(step, (0,), editor, reader)
        hidden = lm.model.hidden(row[None], step)
        step = step.at(step.positions if "final.logits" in reader.names else step.positions[:, -1])
        step.tap = Looking(step, (0,), editor, reader)
        lm.model.logits(hidden if "final.logits" in reader.names else hidden[:, -1], step)
    reader.count = len(ids)
    return _trace(lm, reader, list(ids), edits, editor, edited, budget=budget)


def write_trace(
    lm: Any, ids: Sequence[int], options: Options, read: Sequence[str], budget: int | None, edits: tuple[Any, ...],
    editor: Editor | None,
) -> Iterator[Piece | Trace]:  # fmt: skip
    """Continue a prompt; yields a `Piece` per token as `stream` does, and in the end the trace of all of it."""
    config = lm.model.config
    if options.max_tokens is None:
        raise RequestError("a trace that is written needs max_tokens: what it keeps grows with it", param="max_tokens")
    if options.n != 1:
        raise RequestError(f"a trace is of one text: n must be 1, got {options.n}", param="n")
    edited, length = [edit.point for edit in edits], len(ids) + options.max_tokens
    names = wanted(config, [name for name in match(config, read) if name != "final.logits"], edited)
    reader = Reader(config, names, length)
    watch = Watching(reader, editor)
    pieces = write(lm.model, [ids], options, tokenizer=lm.tokenizer, ends=lm.ends, watch=watch)
    check_budget(config, read, edited, length, lm.model.embed.weight.element_size(), budget)
    return _written(lm, ids, options, pieces, reader, edits, editor, edited, budget)


def _written(
    lm: Language, ids: Sequence[int], options: Options, pieces: Iterator[Piece], reader: Reader, edits: tuple[Any, ...],
    editor: Editor | None, edited: list[str], budget: int | None,
) -> Iterator[Piece | Trace]:  # fmt: skip
    whole, finish = list(ids), None
    try:
        for piece in pieces:
            yield piece
            finish = piece.finish
            if piece.id is not None:
                whole.append(piece.id)
    except RequestError:
        if not edits:
            raise
        finish = "nan"
    yield _trace(
        lm, reader, whole[: reader.count], edits, editor, edited, n_prompt=len(ids), finish=finish, budget=budget,
        rereads=reader.rereads, seed=options.sampling.seed,
    )  # fmt: skip


def _trace(
    lm: Language, reader: Reader, ids: list[int], edits: tuple[Any, ...], editor: Editor | None, edited: list[str],
    **rest: Any,
) -> Trace:  # fmt: skip
    row = torch.tensor(ids, device=lm.model.embed.weight.device)
    kept = Kept(lm.model, row, reader.result(), editor, tuple(edited), reader.last_logits)
    return Trace(lm, kept, edits=edits, **rest)
