"""Draw views of a model as panels."""

from __future__ import annotations

import torch

from glassformer.inspect.drawing.panels import (
    Bars,
    Heading,
    Line,
    Panel,
    Strip,
    Table,
    format_number,
    format_percent,
    show_token,
)
from glassformer.inspect.drawing.trace_panels import receipt
from glassformer.inspect.trace.trace import Language
from glassformer.inspect.views.anatomy import Anatomy
from glassformer.inspect.views.embedding import Embedding, EmbeddingMap
from glassformer.inspect.views.tokens import Merges, TokensView


def anatomy(lm: Language, of: Anatomy) -> list[Panel]:
    shares = tuple((kind, share, format_percent(share)) for kind, share in of.shares.items())
    rows = []
    for part in of.parts:
        where = "" if part.layer is None else f"block {part.layer}"
        shapes = ", ".join(f"{m.name} {'×'.join(map(str, m.shape))}" for m in part.matrices)
        rows.append(tuple((cell, None) for cell in (where, part.kind, f"{part.parameters:,}", shapes)))
    title = f"{of.parameters:,} parameters: {len(of.layers)} blocks, width {of.d_model}, {of.vocab_size:,} tokens"
    return [
        Heading(title),
        Bars(shares, "forward", 1.0),
        Table(("", "part", "parameters", "matrices"), tuple(rows)),
        receipt(of.receipt),
    ]


def tokens(lm: Language, of: TokensView) -> list[Panel]:
    rows = []
    for one in of.tokens:
        span = "control token" if one.special else f"{one.start}-{one.end}"
        rows.append(tuple((cell, None) for cell in (show_token(one.text), str(one.id), one.bytes, span)))
    title = f"{len(of.tokens):,} tokens of {of.n_bytes:,} bytes; the vocabulary has {of.vocab_size:,}"
    return [Heading(title), Table(("token", "id", "bytes", "characters"), tuple(rows)), receipt(of.receipt)]


def merges(lm: Language, of: Merges) -> list[Panel]:
    rows = tuple(
        (
            ("bytes" if step.rank is None else f"merge {step.rank}", None),
            (" | ".join(show_token(part) for part in step.parts), None),
        )
        for step in of.steps
    )
    ids = Line(((f"ids: {', '.join(map(str, of.ids))}", "soft"),))
    return [Heading(f"Merges of {show_token(of.word)}"), Table(("", "parts"), rows), ids, receipt(of.receipt)]


def embedding(lm: Language, of: Embedding) -> list[Panel]:
    token = f"token {of.token.id}, {show_token(of.token.text)}"
    title = f"Embedding of {token}: {len(of.row)} numbers, norm {format_number(of.token.value)}"
    nearest = tuple((show_token(one.text), one.value, f"{one.value:.3f}") for one in of.nearest)
    return [
        Heading(title),
        Strip("embedding", of.row, "residual"),
        Heading("Nearest embeddings by cosine"),
        Bars(nearest, "residual", 1.0),
        receipt(of.receipt),
    ]


def embedding_map(lm: Language, of: EmbeddingMap) -> list[Panel]:
    points = torch.tensor([[one.x, one.y] for one in of.points])
    rows = tuple(
        tuple((cell, None) for cell in (show_token(one.text), str(one.id), f"{x:.4f}", f"{y:.4f}"))
        for one, (x, y) in zip(of.points, points.tolist(), strict=True)
    )
    first, second = map(format_percent, of.explained)
    title = f"First two principal components: {first} and {second} of the variance"
    return [Heading(title), Table(("token", "id", "first", "second"), rows), receipt(of.receipt)]
