"""`glassformer train`: a tokenizer and a model from text, or from pairs of texts."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from glassformer.cli.common import Json, print_json
from glassformer.errors import ConfigError
from glassformer.families.common.shape import PRESETS, RecurrentShape, Seq2SeqShape, ShapeConfig
from glassformer.training.config import InitConfig, OptimConfig, ScheduleConfig, TokenizerConfig, TrainConfig

Preset = Literal["tiny", "small", "medium", "gpt2-small"]
SHAPES = {
    "--task lm": ShapeConfig(),
    "--task seq2seq": Seq2SeqShape(d_model=128, n_layers=3, n_heads=4, context=128),
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


def given(*flags: Any) -> dict[str, Any]:
    """What was typed of these, by name."""
    values = {f.name: getattr(part, f.name) for part in flags for f in fields(part)}
    return {name: value for name, value in values.items() if value is not None}


def shape_of(task: str, preset: Preset | None, *flags: ShapeFlags | PairFlags) -> Any:
    """The shape that is asked for; sizes that follow from a given one follow it. ConfigError names what is not its."""
    sizes = given(*flags)
    if preset is not None:
        sizes["preset"] = preset
    arch = f" --arch {sizes.pop('arch')}" if "arch" in sizes else ""
    what = f"--task {task}{arch}".removesuffix(" --arch transformer")
    if what not in SHAPES:
        raise ConfigError(f"--arch is an option of --task seq2seq, got --task {task}")
    owners = {name: {f.name for f in fields(shape)} for name, shape in SHAPES.items()}
    owners["--task lm"].add("preset")
    for name in sizes.keys() - owners[what]:
        theirs = " and ".join(owner for owner, names in owners.items() if name in names)
        raise ConfigError(f"{option(name)} is an option of {theirs}, not of {what}")
    if task == "lm" and "n_heads" in sizes:
        sizes.setdefault("n_kv_heads", 0)
    if sizes.get("attention") == "none":
        sizes["attention"] = None
    base = PRESETS[sizes.pop("preset", "tiny")] if task == "lm" else SHAPES[what]
    return replace(base, **sizes)


def continued_shape(model: str, task: str, preset: Preset | None, *flags: ShapeFlags | PairFlags) -> Any:
    """The shape where a model is gone on with: its own, its rows as long as was asked."""
    own = given(*flags).keys() - {"context", "source_context"} | ({"preset"} if preset else set())
    if own:
        raise ConfigError(f"--from takes the model's own sizes: leave out {', '.join(map(option, sorted(own)))}")
    if task == "lm":
        return shape_of(task, None, *flags)
    from glassformer.training.tasks.seq2seq_model import model_shape

    shape = model_shape(model)
    base = replace(shape, context=SHAPES["--task seq2seq"].context) if isinstance(shape, RecurrentShape) else shape
    return replace(base, **given(*flags))


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@Parameter(name="*")
@dataclass(frozen=True)
class RunFlags:
    """How long, how much at once, how often."""

    seconds: float | None = None
    "train for about this long: speed is measured first, then the number of steps is fixed. 120 by default"
    steps: int | None = None
    tokens: int | None = None
    "train on so many targets"
    batch: int | None = None
    "rows, or pairs, of a micro-batch; 32 by default"
    accumulate: int | None = None
    "micro-batches of a step; 1 by default"
    eval_every: int | None = None
    "steps between evaluations; 0, the default, is every twentieth of the run"
    save_every: int | None = None
    "steps between checkpoints; 0, the default, is every twentieth of the run"
    keep_last: int | None = None
    "checkpoints kept beside the best; 2 by default"
    sample_every: int | None = None
    "steps between samples of text; 0, the default, is every twentieth of the run"
    sample_prompt: str | None = None
    "what a sample continues, or translates; without one nothing is sampled"
    sample_tokens: int | None = None
    "of a sample; 64 by default"
    held_out: float | None = None
    "the share of documents, or pairs, kept for evaluation; 0.05 by default"
    held_out_data: tuple[str, ...] | None = None
    "a file of documents, or pairs, to evaluate on instead; may be given several times"
    label_smoothing: float | None = None
    "seq2seq: the part of each target that goes to all tokens alike; 0 by default, 0.1 in 2017"
    exact_pairs: int | None = None
    "seq2seq: held-out pairs that are written out at each evaluation, and compared; 128 by default"
    strict: Annotated[bool | None, Parameter(negative="")] = None
    "seq2seq: refuse what is no pair, by file and line, instead of leaving it out"
    shuffle: bool | None = None
    "--no-shuffle keeps the given order, for a curriculum"
    seed: int | None = None
    "0 by default"
    compile: Annotated[bool | None, Parameter(negative="")] = None
    "torch.compile of the blocks"
    tensorboard: Annotated[bool | None, Parameter(negative="")] = None
    wandb: Annotated[bool | None, Parameter(negative="")] = None
    dtype: Literal["auto", "float32", "bfloat16"] | None = None
    "auto by default: what trains fastest here without harm"
    device: str | None = None
    "auto (the default), cpu, cuda, cuda:N or mps"
    threads: int | None = None
    "CPU threads; 0, the default, is all cores"


def resumed(
    out: Path, data: tuple[str, ...], task: str | None, model: dict[str, Any], run: RunFlags, **more: Any
) -> TrainConfig:
    """The settings of the run in `out`, with what was typed in their place. What makes it another run is refused here,
    or where it is taken up. `more`: groups of settings, of which those that are no default count as typed."""
    from glassformer.training.run.run_file import resume_config

    before = resume_config(out)
    if task not in (None, before.task):
        raise ConfigError(f"{out} is a run of --task {before.task}, got --task {task}")
    if data and data != before.data:
        raise ConfigError(f"{out} keeps the data it was begun with, from {' '.join(before.data)}: leave out DATA")
    for name in model.keys() - {f.name for f in fields(before.model)}:
        raise ConfigError(f"{option(name)} does not go with --resume: {out} has its model already")
    model = model | ({"attention": None} if model.get("attention") == "none" else {})
    changes = given(run) | {"model": replace(before.model, **model)}
    for name, value in more.items():
        if is_dataclass(value):
            typed = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}
            changes[name] = replace(getattr(before, name), **typed)
        elif value is not None:
            changes[name] = value
    return resume_config(out, **changes)


def train(
    *data: str,
    out: Path,
    task: Literal["lm", "seq2seq"] | None = None,
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
        lm (the default): a language model, which continues texts. seq2seq: an encoder-decoder, which writes a target
        for a source.
    preset
        A size with a name (of lm; tiny by default); every size can also be given by itself.
    from_model
        Continue from this model: its architecture and tokenizer are taken over; only --context and --source-context
        may be given, of rows as long as it can read, or shorter.
    resume
        Go on with the run in OUT where its last checkpoint stands, with the settings it was started with; what is
        given beside it, such as --steps, is changed, or refused where it makes another run.
    """
    import glassformer
    from glassformer.cli.training_reporter import make_reporter

    nested = {"tokenizer": tokenizer, "init": init, "optim": optim, "schedule": schedule}
    if resume:
        model = given(shape, pairs) | ({"preset": preset} if preset else {})
        config = resumed(out, data, task, model, run, from_model=from_model, **nested)
    else:
        task = task or "lm"
        if not data:
            kinds = "JSONL" if task == "lm" else "TSV or JSONL with source and target"
            raise ConfigError(f"there is no DATA to train on: name files, folders, globs, {kinds}, or - for stdin")
        if from_model is None:
            model = shape_of(task, preset, shape, pairs)
        else:
            model = continued_shape(from_model, task, preset, shape, pairs)
        more = nested | given(run)
        config = TrainConfig(data=data, out=str(out), task=task, model=model, from_model=from_model, **more)
    with make_reporter(quiet=json) as reporter:
        result = glassformer.train(config, reporter=reporter)
    if json:
        print_json(result)
    elif sys.stdout.isatty():
        if config.task == "lm":
            print(f'\nNow: glassformer generate {out} "..."   and   glassformer eval {out} FILE')
        else:
            print(f'\nNow: glassformer translate {out} "..."')
