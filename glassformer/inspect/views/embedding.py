"""Embedding tables: a token's embedding, its nearest neighbours, and a 2-D map of embeddings. View 3."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.generate.sampling import check_number
from glassformer.inspect.trace.trace import Language, Receipt, token_text
from glassformer.inspect.views.result import Named, named, off
from glassformer.kernels.packed_linear import weight_chunks, weight_pointer, weight_rows, weight_shape
from glassformer.nn.model import Decoder, EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder

Table = Literal["input", "source", "output"]
MAX_MAP_TOKENS = 2000  # points of a map


@dataclass(frozen=True)
class Embedding:
    """The result of `embedding`.

    token: its value is the norm of `row`. nearest: by cosine, among the `n_rows` of the table. tables: the model's
    distinct tables. tied: input and output are one table.
    """

    token: Named
    n_rows: int
    row: Float[Tensor, "D"]
    nearest: tuple[Named, ...]
    tables: tuple[str, ...]
    tied: bool
    receipt: Receipt


@dataclass(frozen=True)
class EmbeddingPoint:
    id: int
    text: str
    x: float
    y: float


@dataclass(frozen=True)
class EmbeddingMap:
    """Embeddings on their first two principal components. explained: the share of the variance on each."""

    points: tuple[EmbeddingPoint, ...]
    explained: tuple[float, float]
    receipt: Receipt


def embedding_tables(lm: Language) -> dict[Table, str]:
    """Return the attribute of each table: of input tokens, of source tokens, and of the head."""
    if isinstance(lm.model, RecurrentEncoderDecoder):
        return {"input": "target_embed.weight", "source": "source_embed.weight", "output": "head.weight"}
    found: dict[Table, str] = {"input": "embed.weight"}
    if isinstance(lm.model, EncoderDecoder):
        found["source"] = "encoder.embed.weight"
    if isinstance(lm.model, Decoder):
        found["output"] = "head.weight"
    return found


def get_table(lm: Language, table: str) -> tuple[str, Any]:
    """Return a table as Python code, and its layer. RequestError if the model has no table with this name."""
    paths: dict[str, str] = {**embedding_tables(lm)}
    if table not in paths:
        raise RequestError(f"table must be one of {', '.join(map(repr, paths))}, got {table!r}", param="table")
    return f"lm.model.{paths[table]}", attrgetter(paths[table].removesuffix(".weight"))(lm.model)


def distinct_tables(lm: Language) -> tuple[Table, ...]:
    """Return the tables of a model, tied ones once."""
    found: dict[int, Table] = {}
    for table in embedding_tables(lm):
        found.setdefault(weight_pointer(get_table(lm, table)[1]), table)
    return tuple(found.values())


@torch.no_grad()
def embedding(lm: Language, *, token: int, n: int = 10, table: Table = "input") -> Embedding:
    """The embedding of a token, and the `n` nearest embeddings by cosine.

    Args:
        table: "input", "output" (the head), or "source" (of a model with a source).

    Raises:
        RequestError: The token is outside the vocabulary, or the model has no such table.
    """
    name, layer = get_table(lm, table)
    n_rows, _ = weight_shape(layer)
    check_number("token", token, 0, n_rows - 1)
    check_number("n", n, 1, n_rows - 1)
    row = weight_rows(layer, token)
    both = [(part.norm(dim=-1), part @ row) for part in weight_chunks(layer, 1 << 14)]
    lengths, dots = (torch.cat(parts) for parts in zip(*both, strict=True))
    cosine = dots / (lengths * row.norm()).clamp(min=1e-30)
    cosine[token] = -2
    best = cosine.topk(n)
    nearest = named(lm, best.indices, best.values)
    looked_up = row if table == "output" else layer(torch.tensor([token], device=row.device))[0]
    receipt = Receipt(f"{name}[{token}]", "max |row - embedding module's output|", off(looked_up, row))
    tables = distinct_tables(lm)
    shown = Named(token, token_text(lm.tokenizer, token), row.norm().item())
    return Embedding(shown, n_rows, row, nearest, tables, "output" not in tables, receipt)


@torch.no_grad()
def embedding_map(lm: Language, *, tokens: tuple[int, ...], table: Table = "input") -> EmbeddingMap:
    """The embeddings of some tokens on their first two principal components (Pearson 1901).

    Raises:
        RequestError: There are fewer than three different tokens, or one is outside the vocabulary.
    """
    _, layer = get_table(lm, table)
    chosen = list(dict.fromkeys(tokens))
    if not 3 <= len(chosen) <= MAX_MAP_TOKENS:
        raise RequestError(f"tokens must be 3 to {MAX_MAP_TOKENS} different ones, got {len(chosen)}", param="tokens")
    for token in chosen:
        check_number("tokens", token, 0, weight_shape(layer)[0] - 1)
    x = weight_rows(layer, chosen).double()
    x = x - x.mean(0)
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    points, share = u[:, :2] * s[:2], (s**2 / (s**2).sum().clamp(min=1e-300))[:2]
    farthest = points.gather(0, points.abs().argmax(0, keepdim=True))
    points = points * farthest.sign()  # a component's sign is arbitrary: make it deterministic
    found = tuple(
        EmbeddingPoint(id, token_text(lm.tokenizer, id), *point)
        for id, point in zip(chosen, points.tolist(), strict=True)
    )
    first, second = [*share.tolist(), 0.0][:2]
    arguments = f"tokens={tuple(chosen)}" + ("" if table == "input" else f", table={table!r}")
    receipt = Receipt(
        f"lm.embedding_map({arguments})",
        "share of the variance outside the two components",
        1 - first - second,
    )
    return EmbeddingMap(found, (first, second), receipt)
