"""Of the embedding table: a token's row, the rows nearest to it, and rows as points on a plane. View 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.generate.sampling import check_number
from glassformer.inspect.trace import Language, Receipt, spelled
from glassformer.inspect.views.result import Named, named, off

Table = Literal["input", "output"]
MOST = 2000  # rows on a plane


@dataclass(frozen=True)
class Embedding:
    """`nearest` by cosine, over the same table. `tied`: input and output are one table."""

    token: Named
    row: Float[Tensor, "D"]
    nearest: tuple[Named, ...]
    tied: bool
    receipt: Receipt


@dataclass(frozen=True)
class Place:
    id: int
    text: str
    x: float
    y: float


@dataclass(frozen=True)
class EmbeddingMap:
    """Rows on the plane along which they differ most. `explained`: the share of their variance on each axis."""

    places: tuple[Place, ...]
    explained: tuple[float, float]
    receipt: Receipt


def table_of(lm: Language, table: str) -> tuple[str, Float[Tensor, "V D"]]:
    """The input or the output table, and how to name it in Python."""
    if table not in ("input", "output"):
        raise RequestError(f"table must be 'input' or 'output', got {table!r}", param="table")
    if table == "output" and not hasattr(lm.model, "head_weight"):
        raise RequestError("an encoder writes nothing: it has no output table", param="table")
    name = "lm.model.embed.weight" if table == "input" else "lm.model.head_weight"
    return name, (lm.model.embed.weight if table == "input" else lm.model.head_weight).detach()


@torch.no_grad()
def embedding(lm: Language, *, token: int, n: int = 10, table: Table = "input") -> Embedding:
    """A token's row of the table, and the `n` rows nearest to it by cosine.

    RequestError for a token outside the vocabulary.
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
    looked_up = lm.model.embed(torch.tensor([token], device=rows.device))[0] if table == "input" else rows[token]
    receipt = Receipt(f"{name}[{token}]", "max |the row shown - the row the model reads|", off(looked_up, row))
    tied = lm.model.head is None
    return Embedding(Named(token, spelled(lm.tokenizer, token), row.norm().item()), row, nearest, tied, receipt)


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
        Place(id, spelled(lm.tokenizer, id), *point) for id, point in zip(chosen, points.tolist(), strict=True)
    )
    first, second = [*share.tolist(), 0.0][:2]
    what = f"tokens={tuple(chosen)}" + ("" if table == "input" else f", table={table!r}")
    receipt = Receipt(
        f"lm.embedding_map({what})",
        "share of the variance that the plane does not show",
        1 - first - second,
    )
    return EmbeddingMap(places, (first, second), receipt)
