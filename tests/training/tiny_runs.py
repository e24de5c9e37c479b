"""Helpers for training runs of a few steps on a tiny model and text."""

import json
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

from glassformer.families.common.shape import ShapeConfig
from glassformer.text.train import train_tokenizer
from glassformer.training.config import (
    LanguageModelTaskConfig,
    OptimConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)
from glassformer.training.run.metrics import Reporter
from glassformer.training.run.train import train

SHAPE = ShapeConfig(d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=24, context=16)
TIMES = ("tokens_per_second", "matrix_share")


def texts(n: int = 60) -> list[str]:
    """Return short documents of few words, the same at each call."""
    draw = random.Random(1)
    words = "anna ben the a ball hat box gave took put in to and ran sat".split()
    return [" ".join(draw.choices(words, k=draw.randint(3, 30))) + "." for _ in range(n)]


def make_tokenizer(folder: Path) -> str:
    """Save a character tokenizer in `folder`, so that runs do not train one."""
    train_tokenizer(texts(), kind="char", vocab_size=64).save(folder)
    return str(folder)


def replaced(config: TrainConfig, **changes) -> TrainConfig:
    """Return the config with changed fields, of the config or of its task."""
    of_task = {f.name: changes.pop(f.name) for f in fields(config.task) if f.name in changes}
    return replace(config, task=replace(config.task, **of_task), **changes)


def tiny_config(out: Path | str, tokenizer: str, **changes) -> TrainConfig:
    config = TrainConfig(
        out=str(out),
        task=LanguageModelTaskConfig(model=SHAPE),
        tokenizer=TokenizerConfig(path=tokenizer),
        optim=OptimConfig(muon_dtype="float32"),
        schedule=ScheduleConfig(warmup=2),
        batch=4,
        steps=8,
        eval_every=2,
        save_every=2,
        held_out=0.1,
        dtype="float32",
        device="cpu",
    )
    return replaced(config, **changes)


def tiny_run(out: Path | str, tokenizer: str, reporter: Reporter | None = None, **changes):
    return train(tiny_config(out, tokenizer, **changes), documents=texts(), reporter=reporter)


def metrics(folder: Path | str) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def losses(folder: Path | str) -> list[float]:
    return [record["loss"] for record in metrics(folder) if "loss" in record]


def end_state(folder: Path | str) -> dict[str, object]:
    """All of a run that must be bit-equal: weights, optimizer, position, metrics, which checkpoints there are."""
    folder = Path(folder)
    found: dict[str, object] = {"metrics": metrics(folder)}
    for path in sorted((folder / "checkpoints").iterdir()):
        if path.is_symlink():
            found[path.name] = str(path.readlink())
            continue
        for name in ("model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json"):
            found[f"{path.name}/{name}"] = (path / name).read_bytes()
        state = json.loads((path / "state.json").read_text())
        found[f"{path.name}/state.json"] = {k: v for k, v in state.items() if k != "seconds"}
    return found


def differing(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """The names of what differs."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is such a place: a run syncs some 80 times, and a disk makes each wait."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


class Log(Reporter):
    """Remembers what it is told; `at` maps a step to something to do then."""

    def __init__(self, at=None):
        self.at, self.said = at or {}, []

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        return lambda *values, **named: self.hear(name, *values, **named)

    def hear(self, name, *values, **named):
        self.said.append((name, *values, *named.values()))
        if name == "on_step":
            self.at.get(values[0].step, lambda: None)()

    def all(self, name):
        return [entry[1:] for entry in self.said if entry[0] == name]


class Crash(Exception):
    pass


def crash():
    raise Crash
