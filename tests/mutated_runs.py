"""Damaged files of a training run, which is then resumed; for `mutate.run_mutations`."""

import functools
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mutate import mutate_bytes, mutate_json_file, mutate_lines

sys.path.append(str(Path(__file__).parent / "training"))
from tiny_runs import make_tokenizer, memory_folder, tiny_run

from glassformer.errors import GlassformerError
from glassformer.training.run.metrics import Reporter
from glassformer.training.run.run_file import resume_config
from glassformer.training.run.train import train

NEWEST = "checkpoints/step-000004"
FILES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "run.json": mutate_json_file,
    f"{NEWEST}/state.json": mutate_json_file,
    "checkpoints/step-000002/state.json": mutate_json_file,
    "data/index.json": mutate_json_file,
    "metrics.jsonl": mutate_lines,
    "data/documents.npy": mutate_bytes,
    "data/tokens-00000.bin": mutate_bytes,
    f"{NEWEST}/model.safetensors": mutate_bytes,
    f"{NEWEST}/optimizer.safetensors": mutate_bytes,
    f"{NEWEST}/config.json": mutate_json_file,
}


class Enough(GlassformerError):
    """Raised to end a run whose damaged plan has many steps."""


class FewSteps(Reporter):
    """Ends a run after three steps."""

    def __init__(self):
        self.steps = 0

    def on_step(self, record):
        self.steps += 1
        if self.steps == 3:
            raise Enough("three steps are done")


@functools.cache
def finished() -> dict[str, bytes]:
    """Return the files of a run of four steps, by path in its folder."""
    with memory_folder() as name:
        folder = name / "run"
        tiny_run(folder, make_tokenizer(name / "tokenizer"), steps=4)
        files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.parent.is_symlink())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check(file: str, rng: random.Random) -> None:
    """Damage a file of the run, and resume it for a few steps."""
    with memory_folder() as name:
        folder = name / "run"
        for path, data in finished().items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(FILES[file](data, rng) if path == file else data)
        config = resume_config(folder)
        # Values that are allowed, and only cost time: threads, micro-batches, compilation.
        changes = {"threads": 1, "accumulate": 1, "steps": 6, "seconds": None, "tokens": None, "sample_tokens": 4}
        task = replace(config.task, compile=False) if hasattr(config.task, "compile") else config.task
        train(replace(config, task=task, **changes), reporter=FewSteps())


CHECKS = {file: functools.partial(check, file) for file in FILES}


def check_any(rng: random.Random) -> None:
    """Damage a random file of the run."""
    check(rng.choice(list(FILES)), rng)
