"""loss.svg: the training and held-out losses of a run, drawn without a library, for light and dark backgrounds.

A seq2seq run has a second panel over the same tokens with the fraction of held-out examples decoded exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glassformer.atomic import write_text
from glassformer.training.run.metrics import read_metrics

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 40, 48
PANEL, GAP = 130, 36  # height of the second panel, and the gap above it
POINTS = 300  # maximum points of the training curve; longer ones are averaged

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #333 } .grid { stroke: #ddd } .axis { stroke: #666 }
  .train { stroke: #7aa6d6; fill: none } .held { stroke: #c4471b; fill: none; stroke-width: 2 } .dot { fill: #c4471b }
  .exact { stroke: #2a7d4f; fill: none; stroke-width: 2 } .spot { fill: #2a7d4f }
  .title { font-weight: 600 } .back { fill: #fff }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .grid { stroke: #3a3a3a } .axis { stroke: #999 } .back { fill: #16181c }
    .train { stroke: #5b8ec4 } .held { stroke: #ff9460 } .dot { fill: #ff9460 }
    .exact { stroke: #5fc08a } .spot { fill: #5fc08a }
  }
"""

Point = tuple[float, float]


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Return about `about` ticks from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def short_count(value: float) -> str:
    """Return 12000000 as "12M"."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def downsample(points: Sequence[Point], most: int) -> list[Point]:
    """Return at most `most` points, each the mean of consecutive points."""
    size = max(1, -(-len(points) // most))
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


@dataclass(frozen=True)
class Panel:
    """A plot area from `top` to `bottom`, with x from 0 to `right` and y from `low` to `high`."""

    top: float
    bottom: float
    right: float
    low: float
    high: float

    def at(self, x: float, y: float) -> Point:
        """Return the SVG coordinates of a data point."""
        across = LEFT + x / self.right * (WIDTH - LEFT - RIGHT)
        return across, self.top + (self.high - y) / (self.high - self.low) * (self.bottom - self.top)

    def line(self, points: Sequence[Point], kind: str, dot: str = "") -> list[str]:
        """Return the elements of a curve, with a marker of class `dot` at each point where it is given."""
        coordinates = [self.at(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in coordinates)
        dots = [f'<circle class="{dot}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in coordinates if dot]
        return [f'<polyline class="{kind}" points="{path}"/>', *dots] if points else []

    def scale(self, marks: Sequence[float], label: str) -> list[str]:
        """Return the grid line and number of each tick, and the axis label."""
        end, middle = WIDTH - RIGHT, (self.top + self.bottom) / 2
        parts = [f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">{label}</text>']
        for mark in marks:
            y = self.at(0.0, mark)[1]
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{mark:g}</text>')
        return parts


def loss_curve_svg(train: Sequence[Point], held_out: Sequence[Point], title: str, exact: Sequence[Point] = ()) -> str:
    """Return the curves over counted tokens as SVG.

    Args:
        train, held_out: points (tokens, nats per token).
        exact: points (tokens, fraction), drawn in a second panel in percent where there are any.
    """
    train = downsample(train, POINTS)
    losses_drawn = [*train, *held_out] or [(0.0, 0.0), (1.0, 1.0)]
    right = max(x for x, _ in [*losses_drawn, *exact]) or 1.0
    low, high = min(y for _, y in losses_drawn), max(y for _, y in losses_drawn)
    margin = 0.05 * (high - low) or 0.5
    losses = Panel(TOP, HEIGHT - BOTTOM, right, max(0.0, low - margin), high + margin)
    panels, height = [losses], HEIGHT
    parts = [*losses.scale(ticks(losses.low, losses.high), "loss (nats per token)"), *losses.line(train, "train")]
    parts += losses.line(held_out, "held", "dot")
    legend = [("train", "training"), ("held", "held-out")]
    if exact:
        top = losses.bottom + GAP
        share = Panel(top, top + PANEL, right, 0.0, 100.0)
        panels, height = [*panels, share], HEIGHT + GAP + PANEL
        parts += [*share.scale((0, 25, 50, 75, 100), "exact match (%)")]
        parts += share.line([(x, 100 * y) for x, y in exact], "exact", "spot")
        legend.append(("exact", "exact match"))
    for panel in panels:
        y, last = panel.bottom, panel is panels[-1]
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        for x in ticks(0.0, right):
            across = panel.at(x, panel.low)[0]
            parts.append(f'<line class="axis" x1="{across:.1f}" x2="{across:.1f}" y1="{y}" y2="{y + 5}"/>')
            if last:
                parts.append(f'<text x="{across:.1f}" y="{y + 20}" text-anchor="middle">{short_count(x)}</text>')
    begin = WIDTH - RIGHT - (310 if exact else 190)
    for i, (kind, label) in enumerate(legend):
        x = begin + 100 * i
        parts.append(
            f'<line class="{kind}" x1="{x}" x2="{x + 22}" y1="18" y2="18"/><text x="{x + 28}" y="22">{label}</text>'
        )
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">',
        f'<style>{STYLE}</style><rect class="back" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="{LEFT}" y="22">{title}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 8}" text-anchor="middle">tokens trained on</text>',
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def write_loss_curve(folder: Path, title: str) -> None:
    """Draw RUN/loss.svg from RUN/metrics.jsonl. Raises CheckpointError when it cannot be written."""
    train: list[Point] = []
    held_out: list[Point] = []
    exact: list[Point] = []
    for record in read_metrics(folder / "metrics.jsonl"):
        tokens = float(record["tokens"])
        if "held_out_loss" in record:
            held_out.append((tokens, record["held_out_loss"]))
        else:
            train.append((tokens, record["loss"]))
        if "exact" in record:
            exact.append((tokens, record["exact"]))
    safe = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    write_text(folder / "loss.svg", loss_curve_svg(train, held_out, safe, exact))
