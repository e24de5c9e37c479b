"""`glassformer translate`: write one text from another, with a model that was trained on pairs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.cells import cell_len

from glassformer.cli.common import IgnoreKeys, Json, Machine, lines_of_stdin, open_translator, out, print_json, say
from glassformer.errors import GlassformerError, RequestError

if TYPE_CHECKING:
    from glassformer.models.translator import Translation, TranslationAlignment, Translator

LINES = 256  # of standard input that are read before they are translated together
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
    """Write what each text becomes, one a line.

    Parameters
    ----------
    model
        A translator's model folder, its run folder, or a GGUF file of T5.
    text
        What to translate; several texts one by one. `-` reads stdin, one text a line; a blank line stays one.
    beam
        Follow so many texts at a time and take the best; 1 takes the likeliest token, always.
    n
        Show this many of the best, each with its score; needs a beam at least as wide.
    max_tokens
        At most this many tokens; by default until the model ends the text or its context is full.
    length_penalty
        With a beam: 0 compares by probability alone, which favours short texts; more is kinder to long ones.
    special
        Read control tokens out of the text (<mask>, <extra_id_0>), and show those that are written.
    align
        Show where in the source the model looked for each token it wrote: the mean over layers and heads.
    json
        Print one JSON object a text for machines: targets with scores; with --align every layer and head.
    """
    if not text:
        raise RequestError("there is no text: give one, several, or - for stdin, one a line", param="text")
    translator = open_translator(model, machine, ignore_key, quiet=json)
    for sources in _batches(translator, text, special):
        found = iter(
            translator.translate(
                [one for one in sources if one is not None],
                beam=beam, n=n, max_tokens=max_tokens, length_penalty=length_penalty, special=special,
            )
        )  # fmt: skip
        for source in sources:
            if source is None:
                print_json({"model": translator.source, "source": "", "targets": []}) if json else print()
                continue
            one = next(found)
            best = one.targets[0]
            alignment = None
            if align:
                alignment = translator.align(source, best.ids, ended=best.finish == "stop", special=special)
            if json:
                print_json({"model": translator.source} | _plain(one, alignment))
                continue
            for target in one.targets:
                print((f"{target.score:9.4f}  " if n > 1 else "") + target.text)
            if best.finish == "length":
                say(f"cut off after {len(best.ids)} tokens: {source}")
            if alignment is not None:
                print(*draw(alignment, out.width), sep="\n")


def _batches(translator: Translator, text: tuple[str, ...], special: bool) -> Iterator[list[str | None]]:
    """The texts, as many at a time as are there at once; None is a blank line of stdin.

    One that cannot be translated is an error that names it, raised when all before it were given.
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
    """The mean alignment as lines: a row for each target token, shaded under the source, which is cut to the width.

    A row shows of each source token what share of the target token's attention it has: see the legend.
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
    """(first, end) of each run of columns that fits into so many cells."""
    begin = used = 0
    for i, width in enumerate(widths):
        if used + width > room and i > begin:
            yield begin, i
            begin, used = i, 0
        used += width
    yield begin, len(widths)


def _shade(p: float) -> str:
    return next((shade for least, shade in SHADES if p >= least), " ")
