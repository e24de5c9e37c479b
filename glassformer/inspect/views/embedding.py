"""Of a table of embeddings: a token's row, the rows nearest to it, and rows as points on a plane. View 3."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.generate.sampling import check_number
from glassformer.inspect.trace.trace import Language, Receipt, token_text
from glassformer.inspect.views.result import Named, named, off
from glassformer.nn.model import Decoder, EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder

Table = Literal["input", "source", "output"]
MOST = 2000  # rows on a plane


@dataclass(frozen=True)
class Embedding:
    """`nearest` by cosine, over the same table of `n_rows`. `tables`: those that the model has, one that is another
    under two names only once. `tied`: input and output are one table.
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
    """Rows on the plane along which they differ most. `explained`: the share of their variance on each axis."""

    places: tuple[EmbeddingPoint, ...]
    explained: tuple[float, float]
    receipt: Receipt


def tables_of(lm: Language) -> dict[Table, str]:
    """The tables of a model, each by where it is in it: what its own tokens are looked up in, what those of a source
    are, and what the head multiplies.
    """
    if isinstance(lm.model, RecurrentEncoderDecoder):
        return {"input": "target_embed.weight", "source": "source_embed.weight", "output": "head.weight"}
    found: dict[Table, str] = {"input": "embed.weight"}
    if isinstance(lm.model, EncoderDecoder):
        found["source"] = "encoder.embed.weight"
    if isinstance(lm.model, Decoder):
        found["output"] = "head.weight"
    return found


def table_of(lm: Language, table: str) -> tuple[str, Float[Tensor, "V D"]]:
    """One table, and how to name it in Python. RequestError where the model has none of this name."""
    places: dict[str, str] = {**tables_of(lm)}
    if table not in places:
        *some, last = map(repr, places)
        known = f"{', '.join(some)} or {last}" if some else last
        raise RequestError(f"table must be {known} of this model, got {table!r}", param="table")
    return f"lm.model.{places[table]}", attrgetter(places[table])(lm.model).detach()


def distinct(lm: Language) -> tuple[Table, ...]:
    """The tables of a model, each once."""
    seen: dict[int, Table] = {}
    for table in tables_of(lm):
        seen.setdefault(table_of(lm, table)[1].data_ptr(), table)
    return tuple(seen.values())


@torch.no_grad()
def embedding(lm: Language, *, token: int, n: int = 10, table: Table = "input") -> Embedding:
    """A token's row of a table, and the `n` rows nearest to it by cosine.

    table: "source" is that in which a model looks the tokens of its source up, where it reads one.

    RequestError for a token outside the vocabulary, or a table that the model has not.
    """
    name, rows = table_of(lm, table)
    check_number("token", token, 0, len(rows) - 1)
    check_number("n", n, 1, len(rows) - 1)
    row = rows[token].float()
    lengths = torch.cat([part.float().norm(dim=-1) for part in rows.split(1 << 14)])
    cosine = torch.cat([part.float() @ row for part in rows.split(1 << 14)]) / (lengths * row.norm()).clamp(min=1e-30)
    cosine[token] = -2
    best = cosine.topk(n)
    nearest = named(lm, best.indices, best.values)
    looked_up = rows[token]
    if table != "output":
        module = attrgetter(name.removeprefix("lm.model.").removesuffix(".weight"))(lm.model)
        looked_up = module(torch.tensor([token], device=rows.device))[0]
    receipt = Receipt(f"{name}[{token}]", "max |the row shown - the row the model reads|", off(looked_up, row))
    tables = distinct(lm)
    shown = Named(token, token_text(lm.tokenizer, token), row.norm().item())
    return Embedding(shown, len(rows), row, nearest, tables, "output" not in tables, receipt)


@torch.no_grad()
def embedding_map(lm: Language, *, tokens: tuple[int, ...], table: Table = "input") -> EmbeddingMap:
    """Rows of the table on the plane of their first two principal components (Pearson 1901).

    RequestError for fewer than three different tokens, or tokens outside the vocabulary.
    """
    _, rows = table_of(lm, table)
    chosen = list(dict.fromkeys(tokens))
    if not 3 <= len(chosen) <= MOST:
        raise RequestError(f"a plane needs 3 to {MOST} different tokens, got {len(chosen)}", param="tokens")
    for token in chosen:
        check_number("tokens", token, 0, len(rows) - 1)
    x = rows[chosen].double()
    x = x - x.mean(0)
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    points, share = u[:, :2] * s[:2], (s**2 / (s**2).sum().clamp(min=1e-300))[:2]
    farthest = points.gather(0, points.abs().argmax(0, keepdim=True))
    points = points * farthest.sign()  # an axis may point either way: let it be the same each time
    places = tuple(
        EmbeddingPoint(id, token_text(lm.tokenizer, id), *point)
        for id, point in zip(chosen, points.tolist(), strict=True)
    )
    first, second = [*share.tolist(), 0.0][:2]
    what = f"tokens={tuple(chosen)}" + ("" if table == "input" else f", table={table!r}")
    receipt = Receipt(
        f"lm.embedding_map({what})",
        "share of the variance that the plane does not show",
        1 - first - second,
    )
    return EmbeddingMap(places, (first, second), receipt)
