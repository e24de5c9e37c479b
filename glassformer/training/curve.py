"""loss.svg: the training and held-out losses of a run, drawn without any library; readable on light and on dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from glassformer.training.metrics import read_metrics
from glassformer.weights.atomic import write_text

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 40, 48
POINTS = 300  # of the training curve: more than that, and it is drawn as means

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #333 } .grid { stroke: #ddd } .axis { stroke: #666 }
  .train { stroke: #7aa6d6; fill: none } .held { stroke: #c4471b; fill: none; stroke-width: 2 } .dot { fill: #c4471b }
  .title { font-weight: 600 } .back { fill: #fff }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .grid { stroke: #3a3a3a } .axis { stroke: #999 } .back { fill: #16181c }
    .train { stroke: #5b8ec4 } .held { stroke: #ff9460 } .dot { fill: #ff9460 }
  }
"""

Point = tuple[float, float]


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def count(value: float) -> str:
    """12000000 as 12M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def means(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points, each the mean of its neighbours in the original."""
    size = max(1, -(-len(points) // most))
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def draw_curve(train: Sequence[Point], held_out: Sequence[Point], title: str) -> str:
    """An SVG of two curves over counted tokens: points are (tokens, loss in nats per token)."""
    train = means(train, POINTS)
    everything = [*train, *held_out] or [(0.0, 0.0), (1.0, 1.0)]
    x_high = max(x for x, _ in everything) or 1.0
    y_low = min(y for _, y in everything)
    y_high = max(y for _, y in everything)
    margin = 0.05 * (y_high - y_low) or 0.5
    y_low, y_high = max(0.0, y_low - margin), y_high + margin

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + x / x_high * (WIDTH - LEFT - RIGHT)
        return across, TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    def line(points: Sequence[Point], kind: str) -> str:
        path = " ".join("{:.1f},{:.1f}".format(*at(*p)) for p in points)
        return f'<polyline class="{kind}" points="{path}"/>' if points else ""

    bottom, end = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">',
        f'<style>{STYLE}</style><rect class="back" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="22">{title}</text>',
    ]
    for y in ticks(y_low, y_high):
        height = at(0.0, y)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{end}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in ticks(0.0, x_high):
        across = at(x, y_low)[0]
        parts.append(f'<line class="axis" x1="{across:.1f}" x2="{across:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
        parts.append(f'<text x="{across:.1f}" y="{bottom + 20}" text-anchor="middle">{count(x)}</text>')
    middle = (TOP + bottom) / 2
    parts += [
        f'<line class="axis" x1="{LEFT}" x2="{end}" y1="{bottom}" y2="{bottom}"/>',
        f'<text x="{(LEFT + end) / 2}" y="{HEIGHT - 8}" text-anchor="middle">tokens trained on</text>',
        f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">loss (nats per token)</text>',
        line(train, "train"),
        line(held_out, "held"),
        *(f'<circle class="dot" cx="{p[0]:.1f}" cy="{p[1]:.1f}" r="2.5"/>' for p in (at(*h) for h in held_out)),
    ]
    for i, (kind, label) in enumerate((("train", "training"), ("held", "held-out"))):
        x = end - 190 + 100 * i
        parts.append(
            f'<line class="{kind}" x1="{x}" x2="{x + 22}" y1="18" y2="18"/><text x="{x + 28}" y="22">{label}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def write_curve(folder: Path, title: str) -> None:
    """Draw RUN/loss.svg from RUN/metrics.jsonl. Raises CheckpointError when it cannot be written."""
    train: list[Point] = []
    held_out: list[Point] = []
    for record in read_metrics(folder / "metrics.jsonl"):
        if "held_out_loss" in record:
            held_out.append((float(record["tokens"]), record["held_out_loss"]))
        else:
            train.append((float(record["tokens"]), record["loss"]))
    safe = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    write_text(folder / "loss.svg", draw_curve(train, held_out, safe))
