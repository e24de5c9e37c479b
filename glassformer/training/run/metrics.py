"""The metrics of a run, the file and services they are written to, and the reporter interface.

metrics.jsonl has one JSON object per line, in the order of steps:
    {"step": 12, "tokens": 98304, "loss": 5.1, "lr": 0.0048, "grad_norm": 0.9,
     "tokens_per_second": 31000, "matrix_share": 0.6}
    {"step": 12, "tokens": 98304, "held_out_loss": 5.2, "perplexity": 181.3, "bits_per_byte": 2.4}
    {"step": 12, "tokens": 98304, "held_out_loss": 0.2, "perplexity": 1.2, "exact": 0.75}            seq2seq
Numbers that do not exist are absent.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from glassformer.errors import CheckpointError, ConfigError
from glassformer.training.config import Plan, TrainConfig


@dataclass(frozen=True)
class StepRecord:
    """One training step. `step` counts finished steps from 1; `tokens` all counted targets so far.

    loss: mean in nats per token, before the update. lr: of the hidden matrices. grad_norm: before clipping.
    matrix_share: the rate of matrix products divided by the rate measured at start.
    """

    step: int
    tokens: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    matrix_share: float


@dataclass(frozen=True)
class EvalRecord:
    """The held-out loss in nats per token, its perplexity, and bits per UTF-8 byte (None for seq2seq).

    exact: the fraction of held-out examples decoded to exactly their target; None for lm.
    unknown: the fraction of held-out tokens that the tokenizer does not know; None where there are none.
    """

    step: int
    tokens: int
    held_out_loss: float
    perplexity: float
    bits_per_byte: float | None = None
    exact: float | None = None
    unknown: float | None = None


@dataclass(frozen=True)
class StartInfo:
    """The start of a run. choices: sentences with what was chosen and why. matrix_rate: measured FLOP/s."""

    folder: Path
    plan: Plan
    step: int
    n_parameters: int
    train_tokens: int
    held_out_tokens: int
    matrix_rate: float
    choices: tuple[str, ...]


class Reporter:
    """Receives the events of a run. Every method does nothing; subclasses override some."""

    def on_progress(self, done: int, total: int | None, activity: str) -> None:
        """Report progress before training, in bytes."""

    def on_start(self, info: StartInfo) -> None: ...

    def on_plan(self, plan: Plan) -> None:
        """Report the plan of a run with a budget in seconds, after it has measured its speed."""

    def on_step(self, record: StepRecord) -> None: ...

    def on_eval(self, record: EvalRecord) -> None: ...

    def on_sample(self, step: int, text: str) -> None: ...

    def on_checkpoint(self, step: int, folder: Path, best: bool) -> None: ...

    def on_message(self, text: str, warning: bool = False) -> None: ...


@runtime_checkable
class Sink(Protocol):
    """A service that receives metrics."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsWriter:
    """Writes metrics.jsonl and the sinks. Raises CheckpointError when the file cannot be written."""

    def __init__(self, path: Path, sinks: Sequence[Sink] = ()):
        self.path, self.sinks = path, sinks
        try:
            self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open during the run)
        except OSError as error:
            raise CheckpointError(f"{path} could not be written: {error.strerror}") from error

    def write(self, record: StepRecord | EvalRecord) -> None:
        values = {name: value for name, value in asdict(record).items() if value is not None}
        try:
            self.file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise CheckpointError(f"{self.path} could not be written: {error.strerror}") from error
        for sink in self.sinks:
            sink.write(record.step, {k: float(v) for k, v in values.items() if k != "step"})

    def sync(self) -> None:
        """fsync all lines, before a checkpoint, so that none of its steps is lost."""
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise CheckpointError(f"{self.path} could not be written: {error.strerror}") from error

    def close(self) -> None:
        try:
            self.file.close()
        except OSError as error:
            raise CheckpointError(f"{self.path} could not be written: {error.strerror}") from error
        finally:
            for sink in self.sinks:
                sink.close()


def parse_record(line: str | bytes) -> dict[str, float] | None:
    """Return a line of metrics.jsonl: a whole `step` and other numbers; None where it is something else."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return None
    return values if all(type(value) in (int, float) for value in values.values()) else None


def read_metrics(path: Path) -> Iterator[dict[str, float]]:
    """Yield the records of a metrics.jsonl up to the first line that is truncated or damaged.

    Raises CheckpointError when the file cannot be read.
    """
    _check_regular(path)
    try:
        with open(path, "rb") as file:
            for line in file:
                record = parse_record(line)
                if record is None:
                    return
                yield record
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {error.strerror}") from error


def _check_regular(path: Path) -> None:
    if path.exists() and not path.is_file():  # opening a pipe would wait for its other end
        raise CheckpointError(f"{path} is not a file: remove it")


def truncate_metrics(path: Path, step: int) -> str | None:
    """Remove the lines after `step`, so that a resumed run repeats none; earlier lines do not change.

    Returns a sentence where a damaged line, and all after it, had to be removed; the last line may be truncated by a
    killed process. Raises CheckpointError when the file cannot be changed.
    """
    end, problem = 0, None
    _check_regular(path)
    try:
        with open(path, "rb+") as file:
            size = os.fstat(file.fileno()).st_size
            for number, line in enumerate(file, 1):
                record = parse_record(line) if line.endswith(b"\n") else None
                if record is None and end + len(line) < size:
                    problem = f"line {number:,} of {path} is damaged: it was removed, and all lines after it"
                if record is None or record["step"] > step:
                    break
                end += len(line)
            file.truncate(end)
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} could not be changed: {error.strerror}") from error
    return problem


def check_trackers(config: TrainConfig) -> None:
    """Raise ConfigError where the package of a tracker is not installed."""
    for name, title in (("tensorboard", "TensorBoard"), ("wandb", "Weights & Biases")):
        if getattr(config, name) and importlib.util.find_spec(name) is None:
            raise ConfigError(f"{title} is not installed: pip install 'glassformer[{name}]'")


class TensorBoard(Sink):
    """Writes event files to RUN/tensorboard. resumed: the last step before; later ones are replaced when read."""

    def __init__(self, folder: Path, resumed: int | None = None):
        from torch.utils.tensorboard.writer import SummaryWriter

        purge_step = None if resumed is None else resumed + 1
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandB(Sink):
    """Logs to Weights & Biases, with its environment's settings. A resumed run continues the one with the same id."""

    def __init__(self, folder: Path, config: Mapping[str, Any], run_id: str):
        import wandb  # pyright: ignore[reportMissingImports]

        try:
            self.run = wandb.init(
                id=run_id, resume="allow", name=folder.name, dir=str(folder), config=dict(config), allow_val_change=True
            )
        except Exception as error:  # its errors have no common base
            raise ConfigError(f"Weights & Biases could not be started: {error}") from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()
