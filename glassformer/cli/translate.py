"""`glassformer translate`: translate texts with an encoder-decoder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.cells import cell_len

from glassformer.cli.common import IgnoreKeys, Json, Machine, lines_of_stdin, open_model, out, print_json, say
from glassformer.errors import GlassformerError, RequestError

if TYPE_CHECKING:
    from glassformer.models.translator import Translation, TranslationAlignment, Translator

LINES = 256  # lines of stdin per batch
SHADES = ((0.6, "█"), (0.4, "▓"), (0.2, "▒"), (0.05, "░"))
LEGEND = "  ".join(f"{shade} {least:.0%}" for least, shade in reversed(SHADES))


def translate(
    model: str,
    *text: str,
    beam: int = 1,
    n: int = 1,
    max_tokens: int | None = None,
    length_penalty: float = 0.6,
    special: Annotated[bool, Parameter(negative="")] = False,
    align: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    ignore_key: IgnoreKeys = (),
    machine: Machine = Machine(),
) -> None:
    """Translate each text; print one per line.

    Parameters
    ----------
    model
        An encoder-decoder: a model folder, a run folder, or a GGUF file of T5.
    text
        Texts to translate; `-` reads stdin, one text per line; blank lines are preserved.
    beam
        Beam width; 1 always takes the most likely token.
    n
        Show this many of the best targets with their scores; needs a beam at least as wide.
    max_tokens
        The maximal number of tokens; by default the model generates until the end token or a full context.
    length_penalty
        With a beam: 0 ranks by probability alone, which favours short texts; larger values favour long ones.
    special
        Parse control tokens in the text (`<mask>`, `<extra_id_0>`), and show generated ones.
    align
        Show each generated token's attention to the source, the mean over layers and heads.
    json
        Print one JSON object per text: targets with scores; with --align the attention of every layer and head.
    """
    if not text:
        raise RequestError("there is no text: pass one or more, or - for stdin, one per line", param="text")
    from glassformer.models.translator import Translator

    translator = open_model(Translator, model, machine, ignore_key, quiet=json)
    for sources in _batches(translator, text, special):
        found = iter(
            translator.translate(
                [one for one in sources if one is not None],
                beam=beam, n=n, max_tokens=max_tokens, length_penalty=length_penalty, special=special,
            )
        )  # fmt: skip
        for source in sources:
            if source is None:
                print_json({"model": translator.path, "source": "", "targets": []}) if json else print()
                continue
            one = next(found)
            best = one.targets[0]
            alignment = None
            if align:
                alignment = translator.align(source, best.ids, ended=best.finish == "stop", special=special)
            if json:
                print_json({"model": translator.path} | _plain(one, alignment))
                continue
            for target in one.targets:
                print((f"{target.score:9.4f}  " if n > 1 else "") + target.text)
            if best.finish == "length":
                say(f"truncated after {len(best.ids)} tokens: {source}")
            if alignment is not None:
                print(*draw(alignment, out.width), sep="\n")


def _batches(translator: Translator, text: tuple[str, ...], special: bool) -> Iterator[list[str | None]]:
    """Yield batches of texts; None is a blank line of stdin.

    A text that cannot be translated raises an error with its number, after the texts before it.
    """
    lines = text == ("-",)
    size = 1 if lines and sys.stdin.isatty() else LINES
    batch: list[str | None] = []
    for number, one in enumerate(lines_of_stdin() if lines else text, 1):
        if lines and not one.strip():
            batch.append(None)
            continue
        try:
            translator.encode(one, special=special)
        except GlassformerError as error:
            yield batch
            where = f"line {number}: " if lines else f"text {number} of {len(text)}: " if len(text) > 1 else ""
            raise GlassformerError(f"{where}{error}") from error
        batch.append(one)
        if len(batch) >= size:
            yield batch
            batch = []
    yield batch


def _plain(one: Translation, alignment: TranslationAlignment | None) -> dict[str, Any]:
    plain = asdict(one)
    if alignment is not None:
        plain["alignment"] = vars(alignment) | {"probs": alignment.probs.tolist()}
    return plain


def draw(alignment: TranslationAlignment, width: int) -> Iterator[str]:
    """Yield the mean alignment as lines: one row per target token, shaded by its attention to each source token.

    The source is split into panels that fit the width.
    """
    source, target = ([label if cell_len(label) else "·" for label in side] for side in alignment.labels)
    margin, rows = 2 + max(map(cell_len, target)), alignment.mean.tolist()
    yield f"{' ' * margin}share of attention, from: {LEGEND}"
    for begin, stop in _panels([cell_len(token) for token in source], max(8, width - margin)):
        yield " " * margin + "".join(source[begin:stop])
        for token, row in zip(target, rows, strict=True):
            cells = (_shade(p) * cell_len(name) for p, name in zip(row[begin:stop], source[begin:stop], strict=True))
            yield f"{' ' * (margin - 2 - cell_len(token))}{token}  {''.join(cells)}".rstrip()


def _panels(widths: list[int], room: int) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of each run of columns that fits into `room` cells."""
    begin = used = 0
    for i, width in enumerate(widths):
        if used + width > room and i > begin:
            yield begin, i
            begin, used = i, 0
        used += width
    yield begin, len(widths)


def _shade(p: float) -> str:
    return next((shade for least, shade in SHADES if p >= least), " ")
