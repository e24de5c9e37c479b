"""Map numbers to colours and back. web/src/lib/colour.ts has the same maps; a test compares them.

Probabilities run from paper to ink, by their square root, so that small ones are visible. Signed numbers run from
graphite over paper to a hue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

Rgb = tuple[int, int, int]
PAPER: Rgb = (250, 249, 246)
GRAPHITE: Rgb = (72, 74, 80)
INK: tuple[Rgb, ...] = (PAPER, (206, 212, 222), (133, 148, 172), (66, 80, 112), (20, 26, 46))
HUE: dict[str, Rgb] = {
    "query": (0, 84, 158), "key": (182, 66, 0), "value": (0, 106, 78), "residual": (156, 110, 0),
    "forward": (132, 46, 140), "plain": (20, 26, 46), "soft": (89, 97, 108),
}  # fmt: skip


def prob_to_colour(prob: float) -> Rgb:
    """Return the colour of a probability."""
    return _interpolate(INK, math.sqrt(min(1.0, max(0.0, prob))))


def signed_to_colour(value: float, scale: float, hue: str) -> Rgb:
    """Return the colour of a signed number; `scale` and larger numbers have the strongest."""
    part = min(1.0, max(-1.0, value / scale)) if scale > 0 else 0.0
    return _interpolate((PAPER, GRAPHITE if part < 0 else HUE[hue]), math.sqrt(abs(part)))


def colour_to_prob(colour: Sequence[int]) -> float:
    """Return the probability with the nearest colour: the inverse of `prob_to_colour`."""
    return _project(INK, colour)[0] ** 2


def colour_to_signed(colour: Sequence[int], scale: float, hue: str) -> float:
    """Return the number with the nearest colour: the inverse of `signed_to_colour`."""
    down, up = _project((PAPER, GRAPHITE), colour), _project((PAPER, HUE[hue]), colour)
    return scale * (-(down[0] ** 2) if down[1] < up[1] else up[0] ** 2)


def text_colour(colour: Sequence[int]) -> Rgb:
    """Return the text colour, dark or white, that is legible on a background."""
    r, g, b = ((c / 255) ** 2.2 for c in colour)
    return (20, 24, 31) if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.3 else (255, 255, 255)


def _interpolate(stops: Sequence[Rgb], at: float) -> Rgb:
    index = at * (len(stops) - 1)
    i = min(len(stops) - 2, math.floor(index))
    part = index - i
    r, g, b = (math.floor(x * (1 - part) + y * part + 0.5) for x, y in zip(stops[i], stops[i + 1], strict=True))
    return r, g, b


def _project(stops: Sequence[Rgb], colour: Sequence[int]) -> tuple[float, float]:
    """Return (position along the path, from 0 to 1; squared distance from it)."""
    best = (0.0, math.inf)
    for i, (start, end) in enumerate(pairwise(stops)):
        d, e = ([x - s for x, s in zip(to, start, strict=True)] for to in (end, colour))
        part = min(1.0, max(0.0, sum(x * y for x, y in zip(d, e, strict=True)) / sum(x * x for x in d)))
        distance = sum((x - part * y) ** 2 for x, y in zip(e, d, strict=True))
        if distance < best[1]:
            best = ((i + part) / (len(stops) - 1), distance)
    return best
