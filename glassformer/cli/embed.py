"""`glassformer embed`: texts to vectors, and how alike they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.cells import cell_len, set_cell_size

from glassformer.cli.common import IgnoreKeys, Json, Machine, lines_of_stdin, open_embedder, out, print_json, progress
from glassformer.errors import GlassformerError, RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.models.embedder import Embedder

LINES = 1024  # of standard input that are embedded at a time
MATRIX = 12  # texts at most that are compared each with each; of more, each is shown with the one that is nearest


def embed(
    model: str,
    *text: str,
    prompt: str | None = None,
    truncate: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    ignore_key: IgnoreKeys = (),
    machine: Machine = Machine(),
) -> None:
    """Show how alike texts are, as a model that embeds them tells; or print their vectors.

    Two texts or more are compared each with each; of more than twelve, each is shown with the one nearest to it.

    Parameters
    ----------
    model
        An encoder's model folder (BERT, RoBERTa, DistilBERT, MiniLM), with or without what sentence-transformers lays
        beside it, a GGUF file of one, or a name on the hub.
    text
        What to embed; `-` reads stdin, one text a line.
    prompt
        The name of the text that the model wants before these, such as query or document.
    truncate
        Cut a text that is too long, at its end; else it is refused.
    json
        Print one JSON object a text for machines: the text and its vector.
    """
    if not text:
        raise RequestError("there is no text: give one, several, or - for stdin, one a line", param="text")
    stdin = text == ("-",)
    embedder = open_embedder(model, machine, ignore_key, quiet=json)
    if json:
        lines, first = lines_of_stdin() if stdin else iter(text), 0
        while some := list(islice(lines, LINES)):
            try:
                vectors = _vectors(embedder, some, prompt, truncate)
            except GlassformerError as error:
                raise type(error)(f"after the first {first:,}: {error}" if first else str(error)) from None
            for one, vector in zip(some, vectors.tolist(), strict=True):
                print_json({"model": embedder.source, "text": one, "embedding": vector})
            first += len(some)
        return
    texts = list(lines_of_stdin() if stdin else text)
    if not texts:
        raise RequestError("there is no text on stdin", param="text")
    vectors = _vectors(embedder, texts, prompt, truncate)
    kind = embedder.sentence.config.similarity
    if len(texts) == 1:
        numbers = " ".join(f"{x:.4f}" for x in vectors[0, :8].tolist())
        print(f"{embedder.dimensions} numbers, of length {vectors[0].norm():.4f}: {numbers} ...")
        print("(give two texts or more to compare them; --json prints whole vectors)")
    elif len(texts) <= MATRIX:
        print(*matrix(texts, embedder.similarity(vectors, vectors), kind, out.width), sep="\n")
    else:
        print(*nearest(texts, embedder, vectors, out.width), sep="\n")


def _vectors(embedder: Embedder, texts: Sequence[str], prompt: str | None, truncate: bool) -> Tensor:
    with progress() as advance:
        return embedder.embed(
            texts, prompt=prompt, truncate=truncate, progress=lambda done, n: advance(done, n, "embedding")
        )


def matrix(texts: list[str], found: Tensor, kind: str, width: int) -> Iterator[str]:
    """Each text against each: numbered columns, and the texts as far as there is room."""
    rows = found.tolist()
    cell = max(len(f"{x:.2f}") for row in rows for x in row) + 1
    room = max(12, width - cell * len(texts) - 6)
    yield " " * 5 + "".join(f"{i + 1:>{cell}}" for i in range(len(texts))) + f"  {kind} similarity"
    for i, row in enumerate(rows):
        yield f"{i + 1:>4} " + "".join(f"{x:>{cell}.2f}" for x in row) + f"  {_cut(texts[i], room)}"


def nearest(texts: list[str], embedder: Embedder, vectors: Tensor, width: int) -> Iterator[str]:
    """Each text with the other one that is most like it."""
    room = max(12, (width - 12) // 2)
    yield f"{'':7}  {'text':<{room}}  nearest, by {embedder.sentence.config.similarity} similarity"
    for begin in range(0, len(texts), LINES):
        found = embedder.similarity(vectors[begin : begin + LINES], vectors)
        found[range(len(found)), range(begin, begin + len(found))] = -float("inf")
        best = found.max(-1)
        for i, (value, j) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), begin):
            yield f"{value:7.3f}  {set_cell_size(_cut(texts[i], room), room)}  {_cut(texts[j], room)}"


def _cut(text: str, room: int) -> str:
    """A text on one line, no wider than there is room."""
    line = " ".join(text.split())
    return line if cell_len(line) <= room else set_cell_size(line, room - 1).rstrip() + "…"
