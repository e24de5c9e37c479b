"""What a picture is made of, from top to bottom. Numbers are the view's own; how they look is for who draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Meaning = Literal["query", "key", "value", "residual", "forward", "plain", "soft"]


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Line:
    """A sentence or a formula, its parts coloured by what they are."""

    parts: tuple[tuple[str, Meaning], ...]


@dataclass(frozen=True)
class TokenPanel:
    """A text's tokens; `shares` are their probabilities, None where there is none. `begun`: the first written one."""

    tokens: tuple[str, ...]
    shares: tuple[float | None, ...]
    begun: int


@dataclass(frozen=True, eq=False)
class MatrixPanel:
    """Rows and columns of numbers: shares from 0 to 1, or signed, the strongest colour standing for `top`."""

    data: Float[Tensor, "R C"]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    shares: bool = False
    meaning: Meaning = "plain"
    row: int | None = None
    column: int | None = None
    label: str = ""

    @property
    def top(self) -> float:
        return 1.0 if self.shares else top_of(self.data)


@dataclass(frozen=True, eq=False)
class Gallery:
    """Small matrices side by side, each under its label."""

    pictures: tuple[MatrixPanel, ...]


@dataclass(frozen=True, eq=False)
class Strip:
    """A vector. `top`: what the strongest colour stands for, its own largest number where it is None."""

    label: str
    data: Float[Tensor, "N"]
    meaning: Meaning = "plain"
    top: float | None = None


@dataclass(frozen=True)
class Bars:
    """Names with numbers. `top`: what the longest bar stands for, the largest where it is None."""

    rows: tuple[tuple[str, float, str], ...]
    meaning: Meaning = "plain"
    top: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells; a cell with a share is coloured by it."""

    header: tuple[str, ...]
    rows: tuple[tuple[tuple[str, float | None], ...], ...]


@dataclass(frozen=True)
class Seal:
    """The receipt: one line of Python for the very numbers, and how far the identity is off."""

    python: str
    identity: str | None
    error: float | None


Panel = Heading | Line | TokenPanel | MatrixPanel | Gallery | Strip | Bars | Table | Seal


def top_of(*data: Tensor) -> float:
    """The largest size of any finite number."""
    sizes = [part[part.isfinite()].abs().max().item() for part in data if bool(part.isfinite().any())]
    return max(sizes, default=0.0)


def visible(text: str) -> str:
    """A token such that its blanks and line ends are seen."""
    signs = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(signs.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text) or "∅"


def short(x: float) -> str:
    """Three or four digits."""
    if not math.isfinite(x):
        return "NaN" if math.isnan(x) else "∞" if x > 0 else "-∞"
    if x == 0:
        return "0"
    if abs(x) < 1e-3 or abs(x) >= 1e6:
        return f"{x:.1e}"
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.{max(0, 3 - max(0, math.floor(math.log10(abs(x)))))}f}"


def percent(x: float | None) -> str:
    return "" if x is None else short(x) if not math.isfinite(x) else "<0.1%" if 0 < x < 5e-4 else f"{100 * x:.1f}%"
