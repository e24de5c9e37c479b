"""`glassformer train`: a tokenizer and a model from text."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from glassformer.cli.common import Json, print_json
from glassformer.errors import ConfigError
from glassformer.families.shape import PRESETS, ShapeConfig
from glassformer.training.settings import InitConfig, OptimConfig, ScheduleConfig, TokenizerConfig, TrainConfig

Preset = Literal["tiny", "small", "medium", "gpt2-small"]


@Parameter(name="*")
@dataclass(frozen=True)
class ShapeFlags:
    """Sizes given one by one; each replaces the preset's."""

    family: str | None = None
    "qwen3 (the default), llama or gpt2: whose architecture, and whose tools open the result"
    d_model: int | None = None
    n_layers: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    "fewer than n_heads: queries in groups share keys and values"
    head_dim: int | None = None
    d_ff: int | None = None
    context: int | None = None
    "tokens of a row, and of the context that the model has"
    tied_head: bool | None = None
    "whether the head's table is the embedding's"
    rope_theta: float | None = None

    def over(self, preset: ShapeConfig) -> ShapeConfig:
        """The preset with what was given; sizes that follow from a given one follow it."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if "n_heads" in given and "n_kv_heads" not in given:
            given["n_kv_heads"] = 0
        return replace(preset, **given)


@Parameter(name="*")
@dataclass(frozen=True)
class RunFlags:
    """How long, how much at once, how often."""

    seconds: float | None = None
    "train for about this long: speed is measured first, then the number of steps is fixed. 120 by default"
    steps: int | None = None
    tokens: int | None = None
    batch: int = 32
    "rows of a micro-batch"
    accumulate: int = 1
    "micro-batches of a step"
    eval_every: int = 0
    "steps between evaluations; 0 is every twentieth of the run"
    save_every: int = 0
    "steps between checkpoints; 0 is every twentieth of the run"
    keep_last: int = 2
    "checkpoints kept beside the best"
    sample_every: int = 0
    "steps between samples of text; 0 is every twentieth of the run"
    sample_prompt: str = ""
    "what a sample continues"
    sample_tokens: int = 64
    held_out: float = 0.05
    "the share of documents kept for evaluation"
    shuffle: bool = True
    "--no-shuffle keeps the given order, for a curriculum"
    seed: int = 0
    compile: Annotated[bool, Parameter(negative="")] = False
    "torch.compile of the blocks"
    tensorboard: Annotated[bool, Parameter(negative="")] = False
    wandb: Annotated[bool, Parameter(negative="")] = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    threads: int = 0
    "CPU threads; 0 is all cores"


def train(
    *data: str,
    out: Path,
    preset: Preset = "tiny",
    from_model: Annotated[str | None, Parameter(name="--from")] = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    shape: ShapeFlags = ShapeFlags(),
    run: RunFlags = RunFlags(),
    tokenizer: TokenizerConfig = TokenizerConfig(),
    init: InitConfig = InitConfig(),
    optim: OptimConfig = OptimConfig(),
    schedule: ScheduleConfig = ScheduleConfig(),
) -> None:
    """Train on files, folders, globs, JSONL (a `text` field) or `-` for stdin, into the run folder OUT.

    Parameters
    ----------
    data
        What to train on.
    out
        The run's folder. Given as MODEL to another verb it means the run's best checkpoint.
    preset
        A size with a name; every size can also be given by itself.
    from_model
        Continue from this model: its architecture and tokenizer are taken over.
    resume
        Go on with the run in OUT where its last checkpoint stands, with the settings it was started with; what is
        given beside it, such as --steps, is changed.
    """
    import glassformer
    from glassformer.cli.report import make_reporter

    if not data and not resume:
        raise ConfigError("there is no DATA to train on: name files, folders, globs, JSONL, or - for stdin")
    if from_model and any(getattr(shape, f.name) is not None for f in fields(shape)):
        raise ConfigError("--from takes the model's own sizes: leave out --d-model and its like")
    given = {f.name: getattr(run, f.name) for f in fields(run)}
    if resume:
        from glassformer.training.runfile import recorded_settings

        changed = {name: value for name, value in given.items() if value != getattr(RunFlags(), name)}
        config = recorded_settings(out, **changed)
    else:
        config = TrainConfig(
            data=data,
            out=str(out),
            model=shape.over(PRESETS[preset]),
            tokenizer=tokenizer,
            init=init,
            optim=optim,
            schedule=schedule,
            from_model=from_model,
            **given,
        )
    with make_reporter(quiet=json) as reporter:
        result = glassformer.train(config, reporter=reporter)
    if json:
        print_json(result)
    elif sys.stdout.isatty():
        print(f'\nNow: glassformer generate {out} "..."   and   glassformer eval {out} FILE')
