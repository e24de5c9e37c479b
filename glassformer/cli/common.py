"""Shared code of the verbs: device options, loading, output and progress."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

from cyclopts import Parameter, Token
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from glassformer.counted import counted
from glassformer.errors import ConfigError, DataError
from glassformer.training.data.read_options import ReadOptions

if TYPE_CHECKING:
    from glassformer.models.base import TextModel
    from glassformer.models.load import AnyTextModel
    from glassformer.training.run.loop import RunResult

    M = TypeVar("M", bound=TextModel)

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Advance = Callable[[int, int | None, str], None]


@Parameter(name="*")
@dataclass(frozen=True)
class Machine:
    """The device, dtype and threads that a verb runs with."""

    device: str = "auto"
    "auto, cpu, cuda, cuda:N or mps"
    dtype: str = "auto"
    "auto, float32, bfloat16 or float16"
    quantize: Literal["int8", "int4"] | None = None
    "Quantize the matrices of an unquantized model at load, for a CPU."
    threads: int = 0
    "CPU threads; 0 is all cores"
    offline: Annotated[bool, Parameter(negative="")] = False
    "Use no network: a hub model must have been downloaded before."

    def apply(self) -> None:
        """Set the number of threads."""
        import torch

        if self.threads < 0:
            raise ConfigError(f"threads must be at least 0, got {self.threads}")
        if self.threads:
            torch.set_num_threads(self.threads)


def _folder(_: Any, tokens: Sequence[Token]) -> Path:
    """Parse the name of a folder. An empty one, as of an unset shell variable, would be the working folder."""
    if not tokens[0].value:
        raise ValueError("the name is empty: give the name of a folder")
    return Path(tokens[0].value)


OutFolder = Annotated[Path, Parameter(name="--out", converter=_folder)]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")]
DataName = str | Path  # converted to a string; Path makes shells complete file names
Read = Annotated[ReadOptions, Parameter(name="*")]
IgnoreKeys = Annotated[
    tuple[str, ...], Parameter(name="--ignore-key", negative="", help="Ignore this unknown key of config.json.")
]


def open_any(model: str, machine: Machine, ignore_keys: tuple[str, ...] = (), *, quiet: bool = False) -> AnyTextModel:
    """Load a model of any kind, and print its description on stderr."""
    from glassformer.models.load import load

    return _open(load, model, machine, ignore_keys, quiet)


def open_model(
    model_class: type[M], model: str, machine: Machine, ignore_keys: tuple[str, ...] = (), *, quiet: bool = False
) -> M:
    """Load a model of one class, and print its description on stderr."""
    return _open(model_class.load, model, machine, ignore_keys, quiet)


def _open(load: Callable[..., Any], model: str, machine: Machine, ignore_keys: tuple[str, ...], quiet: bool) -> Any:
    import torch

    from glassformer.formats.packaged import PACKAGED

    machine.apply()
    with working("loading", quiet=quiet):
        found = load(
            model,
            device=machine.device,
            dtype=machine.dtype,
            quantize=machine.quantize,
            ignore_keys=ignore_keys,
            offline=machine.offline,
        )
    if not quiet:
        packaged = model in PACKAGED and not os.path.exists(model)
        device = found.device
        threads = torch.get_num_threads()
        where = f"{device.type}, {counted(threads, 'thread')}" if device.type == "cpu" else str(device)
        label = f", {PACKAGED[model].description}" if packaged else ""
        name = model if packaged else found.path
        say(f"{name}: {found.n_parameters / 1e6:.2f}M parameters, {_precision(found)} on {where}{label}")
        if found.quantization is not None:
            say(str(found.quantization))
        if left := found.left_out:
            tensors = f"{counted(len(left), 'tensor')} of other parts, {left[0]} to {left[-1]}"
            say(f"left out: {tensors}: only text is processed")
    return found


def _precision(lm: AnyTextModel) -> str:
    """Return the dtype of a model, or how its weights are stored and the dtype of its activations, if they differ."""
    dtype = str(lm.dtype).removeprefix("torch.")
    choices = {choice.what: choice.value for choice in lm.choices}
    weights = choices.get("weights", "decoded")
    weights = choices["dtype"] if weights == "decoded" else weights
    return dtype if weights == dtype else f"{weights} weights and {dtype} activations"


def lines_of_stdin() -> Iterator[str]:
    """Yield the lines of stdin without line ends. Raises DataError if it is not UTF-8."""
    try:
        for line in sys.stdin:
            yield line.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is not UTF-8 text: {error.reason}") from None


def say(text: str) -> None:
    """Print a status line on stderr."""
    err.print(text, style="dim", markup=False)


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def print_json(value: Any) -> None:
    """Print one JSON object on stdout, on one line for every terminal width.

    A number that is not finite, which JSON does not have, becomes "NaN", "Infinity" or "-Infinity".
    """
    escape = "utf" not in (sys.stdout.encoding or "").lower()  # characters that this output cannot have
    try:
        text = json.dumps(value, ensure_ascii=escape, default=_plain, allow_nan=False)
    except ValueError:
        from glassformer.inspect.views.result import plain

        text = json.dumps(plain(value), ensure_ascii=escape, default=_plain, allow_nan=False)
    sys.stdout.write(text)
    sys.stdout.write("\n")
    sys.stdout.flush()


def stop(run: RunResult, what: str, folder: Path) -> NoReturn:
    """Say how to resume a training run that a signal has stopped, and exit with the status of that signal."""
    say(f"{what}; resume with: glassformer train --out {shlex.quote(str(folder))} --resume")
    sys.exit(130 if run.stopped == "SIGINT" else 143)


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Advance]:
    """Yield a callback (done, total, label) that draws a progress bar, or prints lines if stderr is not a terminal."""
    if quiet:
        yield lambda done, total, label: None
    elif err.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
        with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as bar:
            tasks: dict[str, Any] = {}

            def advance(done: int, total: int | None, label: str) -> None:
                if label not in tasks:
                    tasks[label] = bar.add_task(label, total=total or None)
                bar.update(tasks[label], completed=done, total=total or None)

            yield advance
    else:
        yield plain_progress()


def plain_progress(every: float = 2.0) -> Advance:
    """Return a callback that prints a progress line every `every` seconds, counted from its first call."""
    last: float | None = None

    def advance(done: int, total: int | None, label: str) -> None:
        nonlocal last
        now = time.monotonic()
        last = now if last is None else last
        if now - last >= every:
            last = now
            say(f"{label}: {100 * done / total:.0f}%" if total else f"{label}: {done:,}")

    return advance


@contextmanager
def working(label: str, *, quiet: bool = False) -> Iterator[None]:
    """Show a spinner while something of unknown length runs."""
    if quiet or not err.is_terminal:
        yield
    else:
        with err.status(label):
            yield
