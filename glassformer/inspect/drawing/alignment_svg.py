"""Draw an alignment as an SVG, for light and dark backgrounds."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from jaxtyping import Float
from torch import Tensor

CELL, FONT, GAP = 22, 13, 8
STYLE = f"""
  text {{ font: {FONT}px ui-monospace, monospace; fill: #333 }} .title {{ font: 600 {FONT}px system-ui, sans-serif }}
  .back {{ fill: #fff }} .cell {{ fill: #1f5fae }} .frame {{ fill: none; stroke: #ccc }}
  @media (prefers-color-scheme: dark) {{
    text {{ fill: #ddd }} .back {{ fill: #16181c }} .cell {{ fill: #7db4f0 }} .frame {{ stroke: #444 }}
  }}
"""


def alignment_svg(source: Sequence[str], target: Sequence[str], probs: Float[Tensor, "T S"], title: str) -> str:
    """Return an SVG of the attention of each target token (row) to each source token (column).

    A cell's tooltip has its tokens and its probability, to four digits.
    """
    columns, rows = list(source), list(target)
    left, top = (GAP * 2 + max(map(len, side)) * FONT * 0.62 for side in (rows, columns))
    top += 2 * FONT
    width = max(left + CELL * len(columns), 2 * GAP + len(title) * FONT * 0.6) + GAP
    height = top + CELL * len(rows) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'role="img" aria-label="{escape(title)}">',
        f'<style>{STYLE}</style><rect class="back" width="100%" height="100%"/>',
        f'<text class="title" x="{GAP}" y="{FONT + GAP}">{escape(title)}</text>',
    ]
    for i, name in enumerate(columns):
        x = left + CELL * (i + 0.5) + FONT / 3
        parts.append(f'<text transform="translate({x:.1f} {top - GAP:.1f}) rotate(-90)">{escape(name)}</text>')
    for j, (name, row) in enumerate(zip(rows, probs.tolist(), strict=True)):
        y = top + CELL * j
        middle = y + CELL / 2 + FONT / 3
        parts.append(f'<text x="{left - GAP:.1f}" y="{middle:.1f}" text-anchor="end">{escape(name)}</text>')
        for i, p in enumerate(row):
            if p >= 0.005:  # fainter cells are not visible
                parts.append(
                    f'<rect class="cell" x="{left + CELL * i:.1f}" y="{y:.1f}" width="{CELL}" height="{CELL}" '
                    f'fill-opacity="{p:.4f}"><title>{escape(f"{name} attends to {columns[i]}: {p:.4f}")}</title></rect>'
                )
    frame = f'x="{left:.1f}" y="{top:.1f}" width="{CELL * len(columns)}" height="{CELL * len(rows)}"'
    return "\n".join([*parts, f'<rect class="frame" {frame}/>', "</svg>"]) + "\n"


def svg_labels(tokens: Sequence[str], end: str) -> list[str]:
    """Return visible tokens: a dot for each space and each unprintable character, "(end)" for the token `end`."""
    return ["(end)" if token == end else "".join(map(_show, token)) or "·" for token in tokens]


def _show(character: str) -> str:
    return character if character.isprintable() and character != " " else "·"
