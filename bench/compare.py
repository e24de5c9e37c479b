"""Measure several implementations of the same work in one process, and print their times and ratios.

The speed of a shared machine varies over minutes. So every round times each implementation once, in an order that
rotates from round to round, and ratios are computed within a round:

    round 1   ours | nanoGPT | transformers        ratio = other / ours of the same round,
    round 2   nanoGPT | transformers | ours        then the median, minimum and maximum over rounds
    round 3   transformers | ours | nanoGPT
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Work = Callable[[], object]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def add_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add the options that all benchmarks have."""
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: CPU time of this process, for a busy machine, with --threads 1",
    )


def alternate(
    sides: Mapping[str, Work], rounds: int, *, clock: str = "wall", warmup: int = 2
) -> dict[str, list[float]]:
    """Return the seconds of each side in each round."""
    now, names = CLOCKS[clock], list(sides)
    for _ in range(warmup):
        for work in sides.values():
            work()
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            begin = now()
            sides[name]()
            times[name].append(now() - begin)
    return times


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return the speedup of ours over theirs: median, minimum and maximum over the rounds."""
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(each), min(each), max(each)


def show_ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the speedup of ours over theirs as text."""
    return "{:.2f}x ({:.2f} to {:.2f})".format(*ratios(ours, theirs))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table with aligned columns."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
