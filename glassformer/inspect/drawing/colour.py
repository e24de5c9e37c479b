"""Numbers as colours, and back: the page's own maps (web/src/lib/colour.ts), which a test compares with these.

Shares run from paper to ink, with a square root to lift the small ones; signed numbers from graphite over paper to the
hue of what they are.
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


def share_colour(share: float) -> Rgb:
    """The colour of a share."""
    return _along(INK, math.sqrt(min(1.0, max(0.0, share))))


def signed_colour(value: float, top: float, meaning: str) -> Rgb:
    """The colour of a signed number, `top` being the largest size on the picture."""
    part = min(1.0, max(-1.0, value / top)) if top > 0 else 0.0
    return _along((PAPER, GRAPHITE if part < 0 else HUE[meaning]), math.sqrt(abs(part)))


def share_of(colour: Sequence[int]) -> float:
    """The share whose colour is nearest: the inverse of `share_colour`."""
    return _nearest(INK, colour)[0] ** 2


def signed_of(colour: Sequence[int], top: float, meaning: str) -> float:
    """The inverse of `signed_colour`."""
    down, up = _nearest((PAPER, GRAPHITE), colour), _nearest((PAPER, HUE[meaning]), colour)
    return top * (-(down[0] ** 2) if down[1] < up[1] else up[0] ** 2)


def readable(colour: Sequence[int]) -> Rgb:
    """Dark or white: which of them is read on this colour."""
    r, g, b = ((c / 255) ** 2.2 for c in colour)
    return (20, 24, 31) if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.3 else (255, 255, 255)


def _along(stops: Sequence[Rgb], at: float) -> Rgb:
    place = at * (len(stops) - 1)
    i = min(len(stops) - 2, math.floor(place))
    part = place - i
    r, g, b = (math.floor(x * (1 - part) + y * part + 0.5) for x, y in zip(stops[i], stops[i + 1], strict=True))
    return r, g, b


def _nearest(stops: Sequence[Rgb], colour: Sequence[int]) -> tuple[float, float]:
    """(how far along the path, how far off it)."""
    best = (0.0, math.inf)
    for i, (start, end) in enumerate(pairwise(stops)):
        d, e = ([x - s for x, s in zip(to, start, strict=True)] for to in (end, colour))
        part = min(1.0, max(0.0, sum(x * y for x, y in zip(d, e, strict=True)) / sum(x * x for x in d)))
        off = sum((x - part * y) ** 2 for x, y in zip(e, d, strict=True))
        if off < best[1]:
            best = ((i + part) / (len(stops) - 1), off)
    return best
