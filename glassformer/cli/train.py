"""`glassformer train`: a tokenizer and a model from text, or from pairs of texts."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from glassformer.cli.common import Json, print_json
from glassformer.errors import ConfigError
from glassformer.families.shape import PRESETS, PairShape, RecurrentShape, ShapeConfig
from glassformer.training.settings import InitConfig, OptimConfig, ScheduleConfig, TokenizerConfig, TrainConfig

Preset = Literal["tiny", "small", "medium", "gpt2-small"]
SHAPES = {
    "--task lm": ShapeConfig(),
    "--task seq2seq": PairShape(d_model=128, n_layers=3, n_heads=4, context=128),
    "--task seq2seq --arch recurrent": RecurrentShape(d_model=128, d_hidden=256, context=128),
}


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


@Parameter(name="*")
@dataclass(frozen=True)
class PairFlags:
    """The same, of an encoder-decoder alone (--task seq2seq)."""

    arch: Literal["transformer", "recurrent"] | None = None
    "transformer, as in 2017 (the default), or recurrent: GRU or LSTM, with or without attention"
    source_context: int | None = None
    "tokens of the longest source; as --context, unless given"
    norm_at: Literal["pre", "post"] | None = None
    "transformer: post (the default) as in the paper, or pre"
    positions: Literal["learned", "sinusoidal"] | None = None
    "transformer: sinusoidal (the default) or learned"
    shared_embedding: bool | None = None
    "whether sources and targets are looked up in one table"
    d_hidden: int | None = None
    "recurrent: the width of a state"
    cell: Literal["gru", "lstm"] | None = None
    "recurrent: gru (the default) or lstm"
    bidirectional: bool | None = None
    "recurrent: whether the source is read both ways"
    attention: Literal["none", "additive", "dot", "general"] | None = None
    "recurrent: additive (the default, Bahdanau et al. 2015), dot or general (Luong et al. 2015), or none"
    input_feeding: bool | None = None
    "recurrent, with dot or general: whether the cell sees what the step before made"


def shape_of(task: str, preset: Preset | None, *flags: ShapeFlags | PairFlags) -> Any:
    """The shape that is asked for; sizes that follow from a given one follow it. ConfigError names what is not its."""
    given = {f.name: getattr(part, f.name) for part in flags for f in fields(part)}
    given = {name: value for name, value in given.items() if value is not None}
    if preset is not None:
        given["preset"] = preset
    arch = f" --arch {given.pop('arch')}" if "arch" in given else ""
    what = f"--task {task}{arch}".removesuffix(" --arch transformer")
    if what not in SHAPES:
        raise ConfigError(f"--arch is an option of --task seq2seq, got --task {task}")
    owners = {name: {f.name for f in fields(shape)} for name, shape in SHAPES.items()}
    owners["--task lm"].add("preset")
    for name in given.keys() - owners[what]:
        theirs = " and ".join(owner for owner, names in owners.items() if name in names)
        raise ConfigError(f"--{name.replace('_', '-')} is an option of {theirs}, not of {what}")
    if task == "lm" and "n_heads" in given:
        given.setdefault("n_kv_heads", 0)
    if given.get("attention") == "none":
        given["attention"] = None
    base = PRESETS[given.pop("preset", "tiny")] if task == "lm" else SHAPES[what]
    return replace(base, **given)


@Parameter(name="*")
@dataclass(frozen=True)
class RunFlags:
    """How long, how much at once, how often."""

    seconds: float | None = None
    "train for about this long: speed is measured first, then the number of steps is fixed. 120 by default"
    steps: int | None = None
    tokens: int | None = None
    batch: int = 32
    "rows, or pairs, of a micro-batch"
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
    "what a sample continues, or translates"
    sample_tokens: int = 64
    held_out: float = 0.05
    "the share of documents, or pairs, kept for evaluation"
    label_smoothing: float = 0.0
    "seq2seq: the part of each target that goes to all tokens alike; 0.1 in 2017"
    exact_pairs: int = 128
    "seq2seq: held-out pairs that are written out at each evaluation, and compared"
    strict: Annotated[bool, Parameter(negative="")] = False
    "seq2seq: refuse what is no pair, by file and line, instead of leaving it out"
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
    task: Literal["lm", "seq2seq"] = "lm",
    preset: Preset | None = None,
    from_model: Annotated[str | None, Parameter(name="--from")] = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    shape: ShapeFlags = ShapeFlags(),
    pairs: PairFlags = PairFlags(),
    run: RunFlags = RunFlags(),
    tokenizer: TokenizerConfig = TokenizerConfig(),
    init: InitConfig = InitConfig(),
    optim: OptimConfig = OptimConfig(),
    schedule: ScheduleConfig = ScheduleConfig(),
) -> None:
    """Train on files, folders, globs, JSONL (a `text` field) or `-` for stdin, into the run folder OUT.

    With --task seq2seq: on pairs, TSV (source, tab, target) or JSONL with `source` and `target`.

    Parameters
    ----------
    data
        What to train on.
    out
        The run's folder. Given as MODEL to another verb it means the run's best checkpoint.
    task
        lm: a language model, which continues texts. seq2seq: an encoder-decoder, which writes a target for a source.
    preset
        A size with a name (of lm; tiny by default); every size can also be given by itself.
    from_model
        Continue from this model: its architecture and tokenizer are taken over.
    resume
        Go on with the run in OUT where its last checkpoint stands, with the settings it was started with; what is
        given beside it, such as --steps, is changed.
    """
    import glassformer
    from glassformer.cli.report import make_reporter

    if not data and not resume:
        kinds = "JSONL" if task == "lm" else "TSV or JSONL with source and target"
        raise ConfigError(f"there is no DATA to train on: name files, folders, globs, {kinds}, or - for stdin")
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
            task=task,
            model=shape_of(task, preset, shape, pairs),
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
        if config.task == "lm":
            print(f'\nNow: glassformer generate {out} "..."   and   glassformer eval {out} FILE')
        else:
            print(f'\nNow: glassformer translate {out} "..."')
