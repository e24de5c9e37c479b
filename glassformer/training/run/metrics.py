"""What a run measures, where it is written, and who is told.

metrics.jsonl, one JSON object a line, in order of steps:
    {"step": 12, "tokens": 98304, "loss": 5.1, "lr": 0.0048, "grad_norm": 0.9,
     "tokens_per_second": 31000, "matrix_share": 0.6}
    {"step": 12, "tokens": 98304, "held_out_loss": 5.2, "perplexity": 181.3, "bits_per_byte": 2.4}
    {"step": 12, "tokens": 98304, "held_out_loss": 0.2, "perplexity": 1.2, "exact": 0.75}            of pairs
A number that there is none of is left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from glassformer.errors import CheckpointError, ConfigError
from glassformer.training.config import Plan


@dataclass(frozen=True)
class StepRecord:
    """One training step. `step` counts finished steps, from 1; `tokens` all counted targets so far.

    loss: nats per token, mean over the step, before its update. lr: of the blocks' matrices. grad_norm: not clipped.
    matrix_share: rate of matrix products over the rate measured at start (0 to 1, or a little above).
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
    """The held-out loss in nats per token, exp of it, and bits per UTF-8 byte (None where no bytes are known).

    exact: the share (0 to 1) of held-out pairs whose target was written exactly; None for text.
    """

    step: int
    tokens: int
    held_out_loss: float
    perplexity: float
    bits_per_byte: float | None = None
    exact: float | None = None


@dataclass(frozen=True)
class StartInfo:
    """What a run is about to do. `choices` are sentences: what was chosen and why. matrix_rate: FLOP/s, measured."""

    folder: Path
    plan: Plan
    step: int
    n_parameters: int
    train_tokens: int
    held_out_tokens: int
    matrix_rate: float
    choices: tuple[str, ...]


class Reporter:
    """Told what happens, as it happens; a command line draws it. Here every method does nothing."""

    def on_progress(self, done: int, total: int | None, what: str) -> None:
        """Before training: reading, tokenizing; in bytes."""

    def on_start(self, info: StartInfo) -> None: ...

    def on_plan(self, plan: Plan) -> None:
        """A run by seconds has measured its speed and fixed its steps."""

    def on_step(self, record: StepRecord) -> None: ...

    def on_eval(self, record: EvalRecord) -> None: ...

    def on_sample(self, step: int, text: str) -> None: ...

    def on_checkpoint(self, step: int, folder: Path, best: bool) -> None: ...

    def on_message(self, text: str, warning: bool = False) -> None: ...


@runtime_checkable
class Sink(Protocol):
    """Somewhere else that numbers go."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsWriter:
    """The writer of metrics.jsonl and of the other sinks. Raises CheckpointError when the file cannot be written."""

    def __init__(self, path: Path, sinks: Sequence[Sink] = ()):
        self.path, self.sinks = path, sinks
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the run)

    def write(self, record: StepRecord | EvalRecord) -> None:
        values = {name: value for name, value in asdict(record).items() if value is not None}
        try:
            self.file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise CheckpointError(f"{self.path} could not be written: {error.strerror}") from error
        for sink in self.sinks:
            sink.write(record.step, {k: float(v) for k, v in values.items() if k != "step"})

    def sync(self) -> None:
        """Make every line so far lasting: done before a checkpoint, so that none of its steps is missing."""
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


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that was cut short is left out."""
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                return


def truncate_metrics(path: Path, step: int) -> None:
    """Drop what was measured after `step`, so that a resumed run repeats no line. Kept lines stay byte for byte."""
    if not path.exists():
        return
    end = 0
    with open(path, "rb+") as file:
        for line in file:
            try:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):
                break
            end += len(line)
        file.truncate(end)
        file.flush()
        os.fsync(file.fileno())


class TensorBoard(Sink):
    """Writes event files to RUN/tensorboard."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise ConfigError("TensorBoard is not installed: pip install 'glassformer[tensorboard]'") from None
        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandB(Sink):
    """Logs to Weights & Biases, as its own settings say where."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError("Weights & Biases is not installed: pip install 'glassformer[wandb]'") from None
        self.run = wandb.init(name=folder.name, dir=str(folder), config=dict(settings))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()
