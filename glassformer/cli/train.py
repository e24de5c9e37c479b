"""`glassformer train`: train a tokenizer and a model from text, or from source-target pairs."""

from __future__ import annotations

import re
import sys
import typing
from dataclasses import fields, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from docstring_parser import parse_from_object

from glassformer.cli.common import DataName, Json, OutFolder, print_json, stop
from glassformer.errors import ConfigError
from glassformer.families.common.shape import PRESETS, SHAPE_FAMILIES, RecurrentShape, ShapeConfig
from glassformer.training.config import (
    InitConfig,
    LanguageModelTaskConfig,
    OptimConfig,
    ScheduleConfig,
    Seq2SeqTaskConfig,
    TokenizerConfig,
    TrainConfig,
)
from glassformer.training.data.read_options import ReadOptions

Preset = Literal["tiny", "small", "medium", "gpt2-small"]
TASKS = {"lm": LanguageModelTaskConfig(), "seq2seq": Seq2SeqTaskConfig()}
TRANSFORMER = TASKS["seq2seq"].model
MODELS: dict[str, Any] = {
    "--task lm": TASKS["lm"].model,
    "--task seq2seq": TRANSFORMER,
    "--task seq2seq --arch recurrent": RecurrentShape(context=TRANSFORMER.context),
}
BUDGETS = ("seconds", "steps", "tokens")
MODEL_HELP = {
    "family": f"the architecture, one of {', '.join(SHAPE_FAMILIES)}",
    "d_model": "width of the residual stream",
    "n_layers": "layers (seq2seq: of encoder and decoder each); by default 4 (lm), 3 (seq2seq), 1 (recurrent)",
    "n_heads": "attention heads; divides d_model unless --head-dim is given",
    "n_kv_heads": "key and value heads; fewer than n_heads is grouped-query attention; by default those of the "
    "preset, or n_heads where --n-heads is given",
    "head_dim": "width of a head; 0 (the default) is d_model / n_heads",
    "d_ff": "width of the feed-forward layer; 0 (the default) is 4 d_model, or 8/3 d_model where it is gated",
    "rope_theta": "base of the rotary positions' wavelengths, in tokens",
    "positions": "positions added to the embedding",
    "context": "tokens of a training sequence, or of the longest target; also the context length of a new model; "
    "by default 256 (lm) or 128 (seq2seq)",
    "tied_head": "use the embedding table as the head",
    "source_context": "tokens of the longest source; by default as --context",
    "norm_at": "normalize before each sublayer (pre) or after it (post, as in the paper)",
    "shared_embedding": "use one embedding table for sources and targets",
    "d_hidden": "width of the recurrent state; by default 2 d_model",
    "cell": "recurrent cell",
    "bidirectional": "run the recurrent encoder in both directions",
    "attention": "recurrent: additive (Bahdanau et al. 2015), dot or general (Luong et al. 2015), or none",
    "input_feeding": "recurrent, with dot or general: feed the previous attention output into the cell",
}


def preset_sizes(shape: ShapeConfig) -> str:
    """Return the sizes of a preset: "128 wide, 4 layers, 4 heads, 256 tokens"."""
    family = "" if shape.family == ShapeConfig.family else f"{shape.family}, "
    heads = f"{shape.n_heads} heads" + (f" ({shape.n_kv_heads} for keys and values)" if shape.n_kv_heads else "")
    return f"{family}{shape.d_model} wide, {shape.n_layers} layers, {heads}, {shape.context} tokens"


PRESET_HELP = (
    "lm: a named size, which the options of single sizes override; by default tiny. "
    + "; ".join(f"{name}: {preset_sizes(shape)}" for name, shape in PRESETS.items())
    + "."
)


def options(*configs: Any, exclude: str = "", flat: bool = True, help: dict[str, str] | None = None) -> Any:
    """Return a dataclass of command-line options: the fields of `configs`, each None unless it is given.

    Types, defaults and help (the string below a field) are those of the configs; `help` adds to them.
    """
    option_fields: dict[str, tuple[str, Any, Any]] = {}
    for config in configs:
        docs = {p.arg_name: p.description for p in parse_from_object(type(config)).params} | (help or {})
        hints = typing.get_type_hints(type(config))
        for f in fields(config):
            if f.name in option_fields or f.name in exclude.split():
                continue
            kind, default = hints[f.name], getattr(config, f.name)
            same = len({getattr(other, f.name, default) for other in configs}) == 1
            stated = "default" in (docs.get(f.name) or "") or re.search(r"\b0 (is|chooses)", docs.get(f.name) or "")
            known = same and not stated and default not in (None, "", ()) and default is not False
            shown = (
                f" [default: {' '.join(map(str, default)) if isinstance(default, tuple) else default}]" if known else ""
            )
            if type(None) in typing.get_args(kind) and typing.get_origin(typing.get_args(kind)[0]) is Literal:
                kind = Literal[(*typing.get_args(typing.get_args(kind)[0]), "none")]
            parameter = Parameter(
                help=f"{docs.get(f.name) or ''}{shown}", negative="" if default is False else None, show_default=False
            )
            option_fields[f.name] = (f.name, Annotated[kind | None, parameter], None)
    cls = make_dataclass(f"{type(configs[0]).__name__}Options", option_fields.values(), frozen=True)
    cls.__module__ = __name__  # cyclopts expands no classes of the standard library
    return Parameter(name="*")(cls) if flat else cls


if TYPE_CHECKING:
    ModelOptions = TaskOptions = RunOptions = ReadingOptions = Any
    TokenizerOptions = InitOptions = OptimOptions = ScheduleOptions = Any
else:
    ModelOptions = options(*MODELS.values(), exclude="vocab_size", help=MODEL_HELP)
    TaskOptions = options(*TASKS.values(), exclude="model init")
    RunOptions = options(TrainConfig(), exclude="data read out task tokenizer optim schedule from_model resume")
    ReadingOptions = options(ReadOptions())
    TokenizerOptions, InitOptions, OptimOptions, ScheduleOptions = (
        options(config(), flat=False) for config in (TokenizerConfig, InitConfig, OptimConfig, ScheduleConfig)
    )


def set_options(group: Any) -> dict[str, Any]:
    """Return the options that the user set in a group, by field name."""
    values = {f.name: getattr(group, f.name) for f in fields(group)} if group is not None else {}
    return {name: None if value == "none" else value for name, value in values.items() if value is not None}


def option(name: str) -> str:
    """Return the command-line spelling of a field."""
    return f"--{name.replace('_', '-')}"


def update(config: Any, values: dict[str, Any], kind: str, owners: dict[str, Any]) -> Any:
    """Return `config`, which is of `kind`, with `values`. Raises ConfigError for an option of other `owners` only."""
    for name in values.keys() - {f.name for f in fields(config)}:
        others = " and ".join(o for o, owner in owners.items() if name in {f.name for f in fields(owner)})
        raise ConfigError(f"{option(name)} is an option of {others}, got {kind}")
    if isinstance(config, ShapeConfig) and "n_heads" in values:
        values = {"n_kv_heads": 0} | values  # not the preset's: as many as n_heads
    return replace(config, **values)


def new_model(task: str, arch: str | None, preset: Preset | None, sizes: dict[str, Any]) -> Any:
    """Return the shape of a new model: the preset's or the task's, with the given sizes."""
    kind = f"--task {task}" + (" --arch recurrent" if arch == "recurrent" else "")
    for name, value, owner in (("preset", preset, "lm"), ("arch", arch, "seq2seq")):
        if value is not None and task != owner:
            raise ConfigError(f"--{name} is an option of --task {owner}, got --task {task}")
    return update(PRESETS[preset] if preset else MODELS[kind], sizes, kind, MODELS)


def continued_model(path: str, task: str, sizes: dict[str, Any]) -> Any:
    """Return the shape of the model at `path`; only its contexts may be given."""
    if own := sorted(sizes.keys() - {"context", "source_context"}):
        raise ConfigError(f"--from takes the sizes of its model: leave out {', '.join(map(option, own))}")
    if task == "lm":
        return new_model(task, None, None, sizes)
    from glassformer.training.tasks.seq2seq_model import checkpoint_shape

    shape = checkpoint_shape(path)
    if isinstance(shape, RecurrentShape):
        shape = replace(shape, context=TRANSFORMER.context)
    return replace(shape, **sizes)


def recorded_config(out: Path, data: tuple[str, ...], task: str | None, fixed: dict[str, Any]) -> TrainConfig:
    """Return the configuration of the run in `out`. Raises ConfigError for an option that a resumed run cannot have."""
    from glassformer.training.run.run_file import resume_config

    config = resume_config(out)
    if task not in (None, config.task.kind):
        raise ConfigError(f"{out} is a run of --task {config.task.kind}, got --task {task}")
    if data and data != config.data:
        raise ConfigError(f"{out} was started with the data {' '.join(config.data)}: leave out DATA")
    for name in fixed:
        raise ConfigError(f"{option(name)} cannot be given with --resume: {out} has its model already")
    return config


def train(
    *data: DataName,
    out: OutFolder,
    task: Literal["lm", "seq2seq"] | None = None,
    arch: Literal["transformer", "recurrent"] | None = None,
    preset: Annotated[Preset | None, Parameter(help=PRESET_HELP)] = None,
    from_model: Annotated[str | None, Parameter(name="--from")] = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    model_options: ModelOptions | None = None,
    task_options: TaskOptions | None = None,
    read_options: ReadingOptions | None = None,
    run_options: RunOptions | None = None,
    tokenizer: TokenizerOptions | None = None,
    init: InitOptions | None = None,
    optim: OptimOptions | None = None,
    schedule: ScheduleOptions | None = None,
) -> None:
    """Train on text, or with --task seq2seq on source-target pairs, into the run folder OUT.

    Parameters
    ----------
    data
        Files, folders, globs, pipes, or `-` for stdin: text, JSONL, JSON, CSV, TSV, Parquet or Arrow, also with .gz or
        .zst. Records have a field `text`; with --task seq2seq, `source` and `target` (a TSV line has only these two).
    out
        The run folder. As the MODEL of another command it means the run's best checkpoint.
    task
        lm (the default): a decoder that continues text. seq2seq: an encoder-decoder that generates a target for a
        source.
    arch
        seq2seq: transformer (the default), or recurrent (GRU or LSTM, with or without attention).
    from_model
        Continue from this model with its architecture and tokenizer; of the model options only --context and
        --source-context may be given.
    resume
        Resume the run in OUT from its last checkpoint with the options it was started with. Other options given with
        it, such as --steps, replace those; an option that would make it another run is an error.
    """
    import glassformer
    from glassformer.cli.training_reporter import make_reporter

    names = tuple(str(name) for name in data)
    sizes, fixed = set_options(model_options), {n: v for n, v in (("arch", arch), ("preset", preset)) if v is not None}
    if resume:
        config = recorded_config(out, names, task, fixed)
        model = update(config.task.model, sizes, f"a {type(config.task.model).__name__} in {out}", MODELS)
    else:
        task = task or "lm"
        if not names:
            raise ConfigError("DATA is missing: give files, folders, globs or - for stdin")
        config = TrainConfig(data=names, out=str(out), task=TASKS[task])
        model = continued_model(from_model, task, fixed | sizes) if from_model else new_model(task, arch, preset, sizes)
    kind = f"--task {config.task.kind}"
    changed = update(
        config.task, set_options(task_options), kind, {f"--task {name}": other for name, other in TASKS.items()}
    )
    if initial := set_options(init):
        if not isinstance(changed, LanguageModelTaskConfig):
            raise ConfigError(f"--init.{next(iter(initial))} is an option of --task lm, got {kind}")
        changed = replace(changed, init=replace(changed.init, **initial))
    values = set_options(run_options)
    if values.keys() & BUDGETS:
        values = dict.fromkeys(BUDGETS) | values  # the given budget replaces the recorded one
    config = replace(
        config,
        task=replace(changed, model=model),
        read=replace(config.read, **set_options(read_options)),
        tokenizer=replace(config.tokenizer, **set_options(tokenizer)),
        optim=replace(config.optim, **set_options(optim)),
        schedule=replace(config.schedule, **set_options(schedule)),
        from_model=from_model or config.from_model,
        **values,
    )
    with make_reporter(quiet=json) as reporter:
        result = glassformer.train(config, reporter=reporter)
    if json:
        print_json(result)
    if result.stopped:
        of = f" of {result.steps}" if result.steps else ""
        stop(result, f"stopped at step {result.step}{of}", out)
    elif not json and sys.stdout.isatty():
        if config.task.kind == "lm":
            print(f'\nNext: glassformer generate {out} "..."   and   glassformer eval {out} FILE')
        else:
            print(f'\nNext: glassformer translate {out} "..."')
