"""`glassformer embed`: embed texts and compare them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.cells import cell_len, set_cell_size

from glassformer.cli.common import IgnoreKeys, Json, Machine, lines_of_stdin, open_model, out, print_json, progress
from glassformer.errors import GlassformerError, RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.models.embedder import Embedder

LINES = 1024  # lines of stdin per batch
MATRIX = 12  # up to this number of texts, all pairs are compared; otherwise each with its nearest neighbour


def embed(
    model: str,
    *text: str,
    prompt: str | None = None,
    truncate: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    ignore_key: IgnoreKeys = (),
    machine: Machine = Machine(),
) -> None:
    """Embed texts and print their similarities, or their vectors.

    Up to twelve texts are compared pairwise. With more texts, each is shown with its nearest neighbour.

    Parameters
    ----------
    model
        An encoder-only model (BERT, RoBERTa, DistilBERT, MiniLM): a model folder, a sentence-transformers folder, a
        GGUF file, or a name on the hub.
    text
        Texts to embed; `-` reads stdin, one text per line.
    prompt
        The name of the model's prompt before these texts, such as query or document.
    truncate
        Truncate texts that are too long; by default they raise an error.
    json
        Print one JSON object per text: the text and its vector.
    """
    if not text:
        raise RequestError("there is no text: pass one or more, or - for stdin, one per line", param="text")
    stdin = text == ("-",)
    from glassformer.models.embedder import Embedder

    embedder = open_model(Embedder, model, machine, ignore_key, quiet=json)
    if json:
        lines, first = lines_of_stdin() if stdin else iter(text), 0
        while some := list(islice(lines, LINES)):
            try:
                vectors = _vectors(embedder, some, prompt, truncate)
            except GlassformerError as error:
                raise type(error)(f"after the first {first:,}: {error}" if first else str(error)) from None
            for one, vector in zip(some, vectors.tolist(), strict=True):
                print_json({"model": embedder.path, "text": one, "embedding": vector})
            first += len(some)
        return
    texts = list(lines_of_stdin() if stdin else text)
    if not texts:
        raise RequestError("there is no text on stdin", param="text")
    vectors = _vectors(embedder, texts, prompt, truncate)
    kind = embedder.sentence.config.similarity
    if len(texts) == 1:
        numbers = " ".join(f"{x:.4f}" for x in vectors[0, :8].tolist())
        print(f"{embedder.dimensions} dimensions, norm {vectors[0].norm():.4f}: {numbers} ...")
        print("(pass two or more texts to compare them; --json prints complete vectors)")
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
    """Yield the lines of the similarity matrix, with numbered columns and the truncated texts."""
    rows = found.tolist()
    cell = max(len(f"{x:.2f}") for row in rows for x in row) + 1
    room = max(12, width - cell * len(texts) - 6)
    yield " " * 5 + "".join(f"{i + 1:>{cell}}" for i in range(len(texts))) + f"  {kind} similarity"
    for i, row in enumerate(rows):
        yield f"{i + 1:>4} " + "".join(f"{x:>{cell}.2f}" for x in row) + f"  {_cut(texts[i], room)}"


def nearest(texts: list[str], embedder: Embedder, vectors: Tensor, width: int) -> Iterator[str]:
    """Yield each text with its nearest neighbour."""
    room = max(12, (width - 12) // 2)
    yield f"{'':7}  {'text':<{room}}  nearest, by {embedder.sentence.config.similarity} similarity"
    for begin in range(0, len(texts), LINES):
        found = embedder.similarity(vectors[begin : begin + LINES], vectors)
        found[range(len(found)), range(begin, begin + len(found))] = -float("inf")
        best = found.max(-1)
        for i, (value, j) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), begin):
            yield f"{value:7.3f}  {set_cell_size(_cut(texts[i], room), room)}  {_cut(texts[j], room)}"


def _cut(text: str, room: int) -> str:
    """Return a text on one line, truncated to a width."""
    line = " ".join(text.split())
    return line if cell_len(line) <= room else set_cell_size(line, room - 1).rstrip() + "…"
