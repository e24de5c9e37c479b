"""Measure several ways of doing the same work side by side in one process, and print both sides and their ratios.

A shared machine drifts: what is timed in the first minute cannot be compared with what is timed in the third. So every
round times each side once, in an order that turns from round to round, and ratios are taken within a round:

    round 1   ours | nanoGPT | transformers        ratio = other / ours of the same round,
    round 2   nanoGPT | transformers | ours        then the median over rounds, with the least and the most
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
    """The options every script here has."""
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: this process' CPU time; with --threads 1, on a busy machine",
    )


def alternate(
    sides: Mapping[str, Work], rounds: int, *, clock: str = "wall", warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of every side in every round."""
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
    """How many times as fast ours is: median, least and most over the rounds."""
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(each), min(each), max(each)


def show_ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    return "{:.2f}x ({:.2f} to {:.2f})".format(*ratios(ours, theirs))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with aligned columns."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
