"""Train the model that ships with the package: `python -m glassformer.toys.train_stories [OUT]`.

The corpus and recipe of the demo, with a larger feed-forward layer, one more block and more tokens. Writes the model
folder to OUT (by default in the package) with `run.json`, `loss.svg` and `scores.json`: the scores of the model, of the
untrained model, of the baselines, of the best heads, and of the checkpoints.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import glassformer
from glassformer.inspect.views.roles import head_roles
from glassformer.models.language_model import LanguageModel
from glassformer.toys import stories_recipe as recipe
from glassformer.training.config import TrainConfig
from glassformer.training.run.metrics import EvalRecord, Reporter, StartInfo
from glassformer.training.run.train import train

SHAPE = replace(recipe.SHAPE, n_layers=4, d_ff=256)
SECONDS, TOKENS, EARLY, SEED = 2700.0, 36_000_000, 3_000_000, 0
THREADS = 1  # a second thread gains little for a model of this size
PACKAGED = Path(glassformer.__file__).parent / "toys" / "models" / "stories"
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def train_config(out: Path, seconds: float) -> TrainConfig:
    config = recipe.train_config(str(out), seconds=seconds, seed=SEED)
    task = replace(config.task, model=SHAPE)
    return replace(config, task=task, sample_prompt="", eval_tokens=65_536, threads=THREADS)


class Curve(Reporter):
    """Prints progress and scores each checkpoint."""

    def __init__(self):
        self.points: list[dict[str, Any]] = []
        self.tokens, self.begin = 0, time.monotonic()

    def on_start(self, info: StartInfo) -> None:
        print(f"{info.n_parameters:,} parameters, {info.train_tokens:,} tokens", flush=True)

    def on_eval(self, record: EvalRecord) -> None:
        self.tokens = record.tokens
        print(f"{self.seconds:.0f} s, {record.tokens:,} tokens: held-out loss {record.held_out_loss:.4f}", flush=True)

    def on_checkpoint(self, step: int, folder: Path, best: bool) -> None:
        scores = recipe.score(glassformer.LanguageModel.load(folder), questions=40, texts=40)
        self.points.append({"step": step, "tokens": self.tokens, "seconds": round(self.seconds)} | asdict(scores))
        print(f"{self.seconds:.0f} s, step {step}: {scores}", flush=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begin


def best_heads(lm: LanguageModel) -> dict[str, float]:
    """Return the highest score of a head for each role, 0 to 1, on a repeated random sequence."""
    found = head_roles(lm.model)
    return {role: round(getattr(found, role).max().item(), 3) for role in ("previous_token", "induction")}


def main(out: Path = PACKAGED, seconds: float = SECONDS) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder, curve = Path(scratch) / "run", Curve()
        train(
            train_config(folder, seconds),
            documents=lambda: recipe.training_documents(SEED, TOKENS, EARLY),
            held_out=recipe.held_out_documents,
            reporter=curve,
        )
        lm = glassformer.LanguageModel.load(folder / "checkpoints" / "last")
        scores = {
            "trained": asdict(recipe.score(lm, questions=300, texts=300)),
            "untrained": asdict(recipe.score(recipe.untrained(lm, SEED), questions=40, texts=40)),
            "heads": {"trained": best_heads(lm), "untrained": best_heads(recipe.untrained(lm, SEED))},
            "baselines": recipe.baseline_answers(300, 20_000),
            "curve": curve.points,
        }
        out.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(folder / "checkpoints" / "last" / name, out / name)
        shutil.copyfile(folder / "loss.svg", out / "loss.svg")
        run = json.loads((folder / "run.json").read_text("utf-8"))
        run["config"]["out"] = "runs/stories"  # not the temporary folder
        (out / "run.json").write_text(json.dumps(run, indent=2) + "\n", "utf-8")
        (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
        print(json.dumps({k: v for k, v in scores.items() if k != "curve"}, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGED)
