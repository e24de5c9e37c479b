"""Views of a model as panels."""

from __future__ import annotations

import torch

from glassformer.inspect.drawing.panels import Bars, Heading, Line, Panel, Strip, Table, percent, short, visible
from glassformer.inspect.drawing.trace_panels import seal
from glassformer.inspect.trace.trace import Language
from glassformer.inspect.views.anatomy import Anatomy
from glassformer.inspect.views.embedding import Embedding, EmbeddingMap
from glassformer.inspect.views.tokens import Merges, TokensView


def anatomy(lm: Language, of: Anatomy) -> list[Panel]:
    shares = tuple((kind, share, percent(share)) for kind, share in of.shares.items())
    rows = []
    for part in of.parts:
        where = "" if part.layer is None else f"block {part.layer}"
        shapes = ", ".join(f"{m.name} {'×'.join(map(str, m.shape))}" for m in part.matrices)
        rows.append(tuple((cell, None) for cell in (where, part.kind, f"{part.parameters:,}", shapes)))
    return [
        Heading(
            f"{of.parameters:,} parameters: {len(of.layers)} blocks of width {of.d_model}, {of.vocab_size:,} tokens"
        ),
        Bars(shares, "forward", 1.0),
        Table(("", "part", "parameters", "matrices"), tuple(rows)),
        seal(of.receipt),
    ]


def tokens(lm: Language, of: TokensView) -> list[Panel]:
    rows = tuple(
        tuple(
            (cell, None)
            for cell in (
                visible(one.text),
                str(one.id),
                one.bytes,
                "control token" if one.special else f"{one.start}-{one.end}",
            )
        )
        for one in of.tokens
    )
    title = f"{of.n_bytes:,} bytes are {len(of.tokens):,} tokens, of {of.vocab_size:,} known ones"
    return [Heading(title), Table(("token", "id", "bytes", "characters"), rows), seal(of.receipt)]


def merges(lm: Language, of: Merges) -> list[Panel]:
    rows = tuple(
        (
            ("its bytes" if step.rank is None else f"merge {step.rank}", None),
            (" | ".join(visible(part) for part in step.parts), None),
        )
        for step in of.steps
    )
    ids = Line(((f"ids: {', '.join(map(str, of.ids))}", "soft"),))
    return [Heading(f"How {visible(of.word)} is put together"), Table(("", "parts"), rows), ids, seal(of.receipt)]


def embedding(lm: Language, of: Embedding) -> list[Panel]:
    title = f"Row {of.token.id}, {visible(of.token.text)}: {len(of.row)} numbers, of length {short(of.token.value)}"
    near = tuple((visible(one.text), one.value, f"{one.value:.3f}") for one in of.nearest)
    return [
        Heading(title),
        Strip("the row", of.row, "residual"),
        Heading("Nearest rows, by cosine"),
        Bars(near, "residual", 1.0),
        seal(of.receipt),
    ]


def embedding_map(lm: Language, of: EmbeddingMap) -> list[Panel]:
    places = torch.tensor([[one.x, one.y] for one in of.places])
    rows = tuple(
        tuple((cell, None) for cell in (visible(one.text), str(one.id), f"{x:.4f}", f"{y:.4f}"))
        for one, (x, y) in zip(of.places, places.tolist(), strict=True)
    )
    across, up = map(percent, of.explained)
    title = f"On the plane on which they differ most: {across} and {up} of their variance"
    return [Heading(title), Table(("token", "id", "across", "up"), rows), seal(of.receipt)]
