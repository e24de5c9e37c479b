"""Show the progress of a training run: a bar with metrics, and a line for each event."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from glassformer.cli.common import err, plain_progress, say
from glassformer.counted import counted
from glassformer.training.config import Plan
from glassformer.training.run.metrics import EvalRecord, Reporter, StartInfo, StepRecord


class LineReporter(Reporter):
    """Prints plain lines, for files, pipes and continuous integration."""

    every = 5.0  # seconds between lines of steps

    def __init__(self):
        self.last, self.steps = 0.0, 0
        self.preparing = plain_progress()

    def on_progress(self, done: int, total: int | None, activity: str) -> None:
        self.preparing(done, total, activity)

    def on_start(self, info: StartInfo) -> None:
        for choice in info.choices:
            say(choice)
        say(
            f"{info.n_parameters / 1e6:.2f}M parameters, {counted(info.train_tokens, 'training token')}, "
            f"{info.held_out_tokens:,} held out; measured matrix rate {info.matrix_rate / 1e9:.0f} GFLOP/s"
        )
        self.on_plan(info.plan)
        if info.plan.steps and info.step >= info.plan.steps:
            say(f"the run is complete after {counted(info.step, 'step')}: resume it with a larger budget to continue")

    def on_plan(self, plan: Plan) -> None:
        self.steps = plan.steps

    def on_step(self, record: StepRecord) -> None:
        if time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            say(f"step {record.step}{f' of {self.steps}' if self.steps else ''}: {numbers(record)}")

    def on_eval(self, record: EvalRecord) -> None:
        say(f"step {record.step}: {held_out(record)}")

    def on_sample(self, step: int, text: str) -> None:
        say(f"step {step}, sample: {text!r}")

    def on_checkpoint(self, step: int, folder: Path, best: bool) -> None:
        if best:
            say(f"step {step}: saved, best so far")

    def on_message(self, text: str, warning: bool = False) -> None:
        err.print(text, style="yellow" if warning else "dim", markup=False)


class BarReporter(LineReporter):
    """Shows a bar with lines above it, for terminals."""

    def __init__(self, bar: Progress):
        super().__init__()
        self.bar, self.tasks = bar, {}
        self.task: Any = None

    def on_progress(self, done: int, total: int | None, activity: str) -> None:
        if activity not in self.tasks:
            self.tasks[activity] = self.bar.add_task(activity, total=total, numbers="")
        self.bar.update(self.tasks[activity], completed=done, total=total)

    def on_start(self, info: StartInfo) -> None:
        for task in self.tasks.values():
            self.bar.remove_task(task)
        self.task = self.bar.add_task("training", total=info.plan.steps or None, completed=info.step, numbers="")
        super().on_start(info)

    def on_plan(self, plan: Plan) -> None:
        super().on_plan(plan)
        self.bar.update(self.task, total=plan.steps or None)

    def on_step(self, record: StepRecord) -> None:
        self.bar.update(self.task, completed=record.step, numbers=numbers(record))


def numbers(record: StepRecord) -> str:
    """Return the metrics of a step as text."""
    share = f" · {100 * record.matrix_share:.0f}% of matrix rate" if record.matrix_share else ""
    return f"loss {record.loss:.3f} · {record.tokens_per_second:,.0f} tokens/s{share}"


def held_out(record: EvalRecord) -> str:
    """Return the metrics of an evaluation as text."""
    bits = "" if record.bits_per_byte is None else f", {record.bits_per_byte:.3f} bits per byte"
    exact = "" if record.exact is None else f", {100 * record.exact:.1f}% exact match"
    unknown = "" if record.unknown is None else f", {record.unknown:.2%} unknown tokens"
    return f"held-out loss {record.held_out_loss:.3f}, perplexity {record.perplexity:.2f}{bits}{exact}{unknown}"


@contextmanager
def make_reporter(*, quiet: bool = False) -> Iterator[Reporter]:
    """Yield a reporter: silent with `quiet`, else a bar on a terminal and lines elsewhere."""
    if quiet:
        yield Reporter()
    elif err.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
        with Progress(*columns, TextColumn("{task.fields[numbers]}"), TimeRemainingColumn(), console=err) as bar:
            yield BarReporter(bar)
    else:
        yield LineReporter()
