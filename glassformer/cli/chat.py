"""`glassformer chat`: write back and forth with a model."""

from __future__ import annotations

import sys
import time

from glassformer.cli.common import IgnoreKeys, Machine, err, open_model, out, say


def chat(
    model: str,
    *,
    max_tokens: int = 200,
    temperature: float = 0.7,
    top_p: float | None = None,
    seed: int | None = None,
    ignore_key: IgnoreKeys = (),
    machine: Machine = Machine(),
) -> None:
    """Continue what you type, and what has been written so far with it; an empty line begins anew, Ctrl-D ends.

    The model has no chat template here: your text and the model's stand in one text, one after the other.

    Parameters
    ----------
    model
        A model folder, a run folder, or `stories`.
    max_tokens
        At most this many tokens an answer.
    temperature
        Below 1 surer, above 1 more varied; 0 always takes the likeliest token.
    top_p
        Draw from the smallest set of tokens whose probabilities reach p.
    seed
        The same seed and the same lines give the same text.
    """
    lm = open_model(model, machine, ignore_key)
    say("plain continuation: type the beginning of a text. An empty line begins anew; Ctrl-D ends.")
    text, turn = "", 0
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            err.print()
            return
        if not line:
            text = ""
            say("--- a new text")
            continue
        text += line if not text or text[-1].isspace() else " " + line
        text, turn = text + _answer(lm, text, max_tokens, temperature, top_p, seed, turn), turn + 1


def _answer(
    lm, text: str, max_tokens: int, temperature: float, top_p: float | None, seed: int | None, turn: int
) -> str:
    """Stream one answer; Ctrl-C ends it and keeps what was written. A text at the context's end is cut at its start."""
    ids = lm.encode(text)
    context = lm.config.context_length
    room = min(max_tokens, context - 1)
    if len(ids) + room > context:
        say(f"--- the text has {len(ids)} tokens; only the last {context - room} fit beside an answer of {room}")
        ids = ids[-(context - room) :]
    begin, count, written = time.monotonic(), 0, ""
    try:
        options = {"temperature": temperature, "top_p": top_p, "seed": None if seed is None else seed + turn}
        for piece in lm.stream(ids, max_tokens=room, **options):
            written, count = written + piece.text, count + 1
            out.print(piece.text, end="", markup=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    out.print()
    say(f"{count} tokens, {count / (time.monotonic() - begin):.0f} tokens/s")
    return written
