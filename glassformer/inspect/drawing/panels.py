"""Panels, the parts of a picture from top to bottom. The terminal and the PNG renderer draw them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Hue = Literal["query", "key", "value", "residual", "forward", "plain", "soft"]


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Line:
    """A sentence or a formula, in parts of different hues."""

    parts: tuple[tuple[str, Hue], ...]


@dataclass(frozen=True)
class TokenPanel:
    """The tokens of a text with their probabilities (None: unknown). `n_prompt`: the index of the first generated."""

    tokens: tuple[str, ...]
    probs: tuple[float | None, ...]
    n_prompt: int


@dataclass(frozen=True, eq=False)
class MatrixPanel:
    """A matrix: probabilities from 0 to 1, or signed numbers of which `scale` has the strongest colour."""

    data: Float[Tensor, "R C"]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    probs: bool = False
    hue: Hue = "plain"
    row: int | None = None
    column: int | None = None
    label: str = ""

    @property
    def scale(self) -> float:
        return 1.0 if self.probs else max_abs(self.data)


@dataclass(frozen=True, eq=False)
class Gallery:
    """Small matrices side by side, each under its label."""

    matrices: tuple[MatrixPanel, ...]


@dataclass(frozen=True, eq=False)
class Strip:
    """A vector. `scale`: the number with the strongest colour; None: its own largest."""

    label: str
    data: Float[Tensor, "N"]
    hue: Hue = "plain"
    scale: float | None = None


@dataclass(frozen=True)
class Bars:
    """Rows of (name, number, text). `scale`: the number with the longest bar; None: the largest."""

    rows: tuple[tuple[str, float, str], ...]
    hue: Hue = "plain"
    scale: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of (text, probability) cells; a probability colours its cell."""

    header: tuple[str, ...]
    rows: tuple[tuple[tuple[str, float | None], ...], ...]


@dataclass(frozen=True)
class ReceiptPanel:
    """The Python line that returns the numbers drawn, and the error of the identity that they were checked against."""

    python: str
    identity: str | None
    error: float | None


Panel = Heading | Line | TokenPanel | MatrixPanel | Gallery | Strip | Bars | Table | ReceiptPanel


def max_abs(*data: Tensor) -> float:
    """Return the largest absolute value of all finite numbers."""
    sizes = [part[part.isfinite()].abs().max().item() for part in data if bool(part.isfinite().any())]
    return max(sizes, default=0.0)


def show_token(text: str) -> str:
    """Return a token's text with visible spaces and line ends."""
    signs = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(signs.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text) or "∅"


def format_number(x: float) -> str:
    """Format a number with three or four digits."""
    if not math.isfinite(x):
        return "NaN" if math.isnan(x) else "∞" if x > 0 else "-∞"
    if x == 0:
        return "0"
    if abs(x) < 1e-3 or abs(x) >= 1e6:
        return f"{x:.1e}"
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.{max(0, 3 - max(0, math.floor(math.log10(abs(x)))))}f}"


def format_percent(x: float | None) -> str:
    if x is None:
        return ""
    return format_number(x) if not math.isfinite(x) else "<0.1%" if 0 < x < 5e-4 else f"{100 * x:.1f}%"
