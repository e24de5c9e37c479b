"""What verbs share: where to run, how to say things, and a progress bar."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from glassformer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from glassformer.models.embedder import Embedder
    from glassformer.models.language_model import LanguageModel
    from glassformer.models.translator import Translator

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Advance = Callable[[int, int | None, str], None]


@Parameter(name="*")
@dataclass(frozen=True)
class Machine:
    """Where a verb runs."""

    device: str = "auto"
    "auto, cpu, cuda, cuda:N or mps"
    dtype: str = "auto"
    "auto, float32, bfloat16 or float16"
    threads: int = 0
    "CPU threads; 0 is all cores"
    offline: Annotated[bool, Parameter(negative="")] = False
    "Use no network: a model of the hub must have been downloaded before."

    def apply(self) -> None:
        """Set the number of threads."""
        import torch

        if self.threads < 0:
            raise ConfigError(f"threads must be at least 0, got {self.threads}")
        if self.threads:
            torch.set_num_threads(self.threads)


Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object for machines.")]
IgnoreKeys = Annotated[
    tuple[str, ...], Parameter(name="--ignore-key", negative="", help="A key of config.json that does not matter.")
]


def open_model(
    model: str, machine: Machine, ignore_keys: tuple[str, ...] = (), *, quiet: bool = False
) -> LanguageModel:
    """Load a model, and say on stderr what was loaded."""
    import glassformer
    from glassformer.formats.find import PACKAGED

    machine.apply()
    with working("loading", quiet=quiet):
        lm = glassformer.load(
            model, device=machine.device, dtype=machine.dtype, ignore_keys=ignore_keys, offline=machine.offline
        )
    if not quiet:
        label = f", {PACKAGED[model]}" if model in PACKAGED and not os.path.exists(model) else ""
        _say_loaded(lm, lm.source if not label else model, label)
    return lm


def open_any(
    model: str, machine: Machine, ignore_keys: tuple[str, ...] = (), *, quiet: bool = False
) -> LanguageModel | Translator | Embedder:
    """Load a model of whichever kind its configuration says, and say on stderr what was loaded."""
    from glassformer.config import RecurrentConfig, TextEncoderConfig
    from glassformer.formats.checkpoint import open_checkpoint
    from glassformer.formats.find import find_model

    config = open_checkpoint(find_model(model, offline=machine.offline), ignore_keys).config
    if isinstance(config, TextEncoderConfig):
        return open_embedder(model, machine, ignore_keys, quiet=quiet)
    if isinstance(config, RecurrentConfig) or config.encoder is not None:
        return open_translator(model, machine, ignore_keys, quiet=quiet)
    return open_model(model, machine, ignore_keys, quiet=quiet)


def open_translator(
    model: str, machine: Machine, ignore_keys: tuple[str, ...] = (), *, quiet: bool = False
) -> Translator:
    """Load a translator, and say on stderr what was loaded."""
    import glassformer

    machine.apply()
    with working("loading", quiet=quiet):
        found = glassformer.load_translator(
            model, device=machine.device, dtype=machine.dtype, ignore_keys=ignore_keys, offline=machine.offline
        )
    if not quiet:
        _say_loaded(found, found.source)
    return found


def open_embedder(model: str, machine: Machine, ignore_keys: tuple[str, ...] = (), *, quiet: bool = False) -> Embedder:
    """Load an encoder, and say on stderr what was loaded."""
    import glassformer

    machine.apply()
    with working("loading", quiet=quiet):
        found = glassformer.load_embedder(
            model, device=machine.device, dtype=machine.dtype, ignore_keys=ignore_keys, offline=machine.offline
        )
    if not quiet:
        _say_loaded(found, found.source)
    return found


def lines_of_stdin() -> Iterator[str]:
    """Standard input line by line, without their ends. DataError where it is no text."""
    try:
        for line in sys.stdin:
            yield line.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is not UTF-8 text: {error.reason}") from None


def _say_loaded(loaded: LanguageModel | Translator | Embedder, name: str, label: str = "") -> None:
    import torch

    parameters, device = list(loaded.model.parameters()), loaded.device
    n, dtype = sum(p.numel() for p in parameters), str(parameters[0].dtype).removeprefix("torch.")
    where = f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    say(f"{name}: {n / 1e6:.2f}M parameters, {dtype} on {where}{label}")


def say(text: str) -> None:
    """A line about what is going on, on stderr."""
    err.print(text, style="dim", markup=False)


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def print_json(value: Any) -> None:
    """One JSON object on stdout, which no terminal setting can fold."""
    json.dump(value, sys.stdout, ensure_ascii=False, default=_plain)
    sys.stdout.write("\n")
    sys.stdout.flush()


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Advance]:
    """A callback (done, total, what) that draws a bar, or writes lines now and then where there is no terminal."""
    if quiet:
        yield lambda done, total, what: None
    elif err.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
        with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as bar:
            tasks: dict[str, Any] = {}

            def advance(done: int, total: int | None, what: str) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=total or None)
                bar.update(tasks[what], completed=done, total=total or None)

            yield advance
    else:
        yield plain_progress()


def plain_progress(every: float = 2.0) -> Advance:
    """Progress as plain lines: the first after `every` seconds, then one each time as many have gone by."""
    last = time.monotonic()

    def advance(done: int, total: int | None, what: str) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            say(f"{what}: {100 * done / total:.0f}%" if total else f"{what}: {done:,}")

    return advance


@contextmanager
def working(what: str, *, quiet: bool = False) -> Iterator[None]:
    """A spinner beside something whose length nobody knows."""
    if quiet or not err.is_terminal:
        yield
    else:
        with err.status(what):
            yield
