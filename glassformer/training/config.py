"""The configuration of a training run, as frozen data. Imports no torch: the command line generates options from it."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal

from glassformer.config import ModelConfig
from glassformer.config.checks import require
from glassformer.errors import ConfigError
from glassformer.families.common.shape import PRESETS, SHAPE_FAMILIES, RecurrentShape, Seq2SeqShape, ShapeConfig
from glassformer.training.config_checks import require_range, require_type, require_types
from glassformer.training.data.read_options import DEFAULT_READ, ReadOptions

DEFAULT_SECONDS, DEFAULT_BATCH = 120.0, 32
# Of the default learning rates for a model that is continued. A trained model gets worse with the rates of a new one:
# the held-out loss of `stories` on its own kind of text rises from 0.908 to 0.943 in 60 steps; with 0.01 it stays.
FINE_TUNING = 0.01
RATES = {"": "hidden", "embed_": "embed", "scalar_": "scalar"}  # prefix of the field, role
MAX_THREADS, MAX_SEED = 1024, 2**63 - 1
TokenizerKind = Literal["bpe", "char", "word"]


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer. Learning rates are peaks that the schedule scales; None selects the optimizer's default."""

    name: Literal["muon", "adamw"] = "muon"
    "muon for hidden matrices and AdamW for the other parameters, or adamw for all parameters"
    lr: float | None = None
    "peak learning rate of the hidden matrices; by default 0.02 for muon, 0.002 for adamw; a hundredth with --from"
    embed_lr: float | None = None
    "peak learning rate of embeddings and head; by default 0.005 for muon, lr for adamw; a hundredth with --from"
    scalar_lr: float | None = None
    "peak learning rate of norm weights and biases; by default as embed_lr"
    betas: tuple[float, float] = (0.9, 0.95)
    "decay rates of AdamW's two moving averages"
    eps: float = 1e-8
    "AdamW's epsilon"
    weight_decay: float = 0.01
    "decoupled weight decay, times the learning rate; applies to matrices only"
    clip: float = 1.0
    "maximum global gradient norm; 0 disables clipping"
    momentum: float = 0.95
    "Muon's momentum"
    nesterov: bool = True
    "use Nesterov momentum in Muon"
    muon_scale: Literal["spectral", "rms"] = "spectral"
    "scale of Muon's update: spectral (Jordan 2024) or rms (Liu et al. 2025)"
    muon_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    "dtype of Muon's orthogonalization; auto is the dtype of the run"

    def __post_init__(self):
        require_types(self, "optim.")
        require_range(self, "lr embed_lr scalar_lr eps", 0, 1000, open_low=True, prefix="optim.")
        require_range(self, "weight_decay", 0, 1000, prefix="optim.")
        require_range(self, "clip", 0, prefix="optim.")
        require(all(0 <= b < 1 for b in self.betas), f"optim.betas must be at least 0 and below 1, got {self.betas}")
        require(0 <= self.momentum < 1, f"optim.momentum must be at least 0 and below 1, got {self.momentum}")

    def peak(self, role: str, scale: float = 1.0) -> float:
        """Return the peak learning rate of a parameter role: hidden, embed, head or scalar; `scale` is of defaults."""
        if role == "hidden":
            return self.lr if self.lr is not None else scale * (0.02 if self.name == "muon" else 2e-3)
        given = self.scalar_lr if role == "scalar" else self.embed_lr
        if given is not None:
            return given
        return scale * 5e-3 if self.name == "muon" else self.peak("hidden", scale)


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning-rate schedule. See `training/optim/schedule.py`."""

    kind: Literal["cosine", "wsd", "inverse_sqrt"] = "wsd"
    "wsd (warm-up, stable, decay), cosine, or inverse_sqrt"
    warmup: int = 50
    "warm-up steps; at most a fifth of the run"
    min_ratio: float = 0.0
    "final learning rate as a fraction of the peak; not for inverse_sqrt"
    decay: float = 0.3
    "wsd: fraction of all steps in which the rate decays"

    def __post_init__(self):
        require_types(self, "schedule.")
        require_range(self, "warmup", 0, prefix="schedule.")
        require_range(self, "min_ratio decay", 0, 1, prefix="schedule.")
        require(
            self.kind != "inverse_sqrt" or self.min_ratio == 0,
            f"schedule.min_ratio has no effect on inverse_sqrt, which has no final rate: leave it out, "
            f"got {self.min_ratio}",
        )


@dataclass(frozen=True)
class InitConfig:
    """The initial weights of a language model. See `training/init.py`."""

    std: float = 0.02
    "standard deviation of all matrices"
    out_std: float | None = None
    "standard deviation of matrices that write to the residual stream; by default std / sqrt(2 n_layers)"
    qk_gain: float = 1.0
    "initial weight of the norms of queries and keys"
    look_back: float = 0.0
    "above 0, the first layer's heads start by attending 1, 2, 3, ... tokens back; larger is sharper"

    def __post_init__(self):
        require_types(self, "init.")
        require_range(self, "std qk_gain out_std", 0, 1000, open_low=True, prefix="init.")
        require_range(self, "look_back", 0, 1000, prefix="init.")


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer: an existing one (`path`), or one trained on the run's data."""

    path: str | None = None
    "an existing tokenizer: a folder or a tokenizer.json"
    kind: Literal["auto", "bpe", "char", "word"] = "auto"
    "kind of a newly trained tokenizer; auto is bpe for lm and char for seq2seq"
    vocab_size: int = 0
    "maximum vocabulary size of a newly trained tokenizer; 0 chooses by kind and amount of text"
    digits_apart: bool = False
    "bpe: make each digit a token of its own"

    def __post_init__(self):
        require_types(self, "tokenizer.")
        require_range(self, "vocab_size", 0, prefix="tokenizer.")
        option = self.training_option
        require(
            self.path is None or not option, f"{option} applies to a newly trained tokenizer: leave it out with path"
        )

    @property
    def training_option(self) -> str:
        """The first option set that applies only to a newly trained tokenizer; "" where there is none."""
        changed = (("kind", self.kind != "auto"), ("vocab_size", self.vocab_size), ("digits_apart", self.digits_apart))
        return next((f"tokenizer.{name}" for name, given in changed if given), "")


def _check_sizes(shape: Any) -> None:
    """Check the sizes of a shape; a size of 0 follows from the others where it may be 0."""
    if isinstance(shape, ModelConfig):
        return  # it was checked when it was created
    sizes = [f.name for f in fields(shape) if type(getattr(shape, f.name)) is int]
    optional = {"n_kv_heads", "head_dim", "d_ff", "vocab_size", "source_context", "d_hidden"}
    require_range(shape, [name for name in sizes if name not in optional], 1)
    require_range(shape, [name for name in sizes if name in optional], 0)
    if isinstance(shape, ShapeConfig):
        require_range(shape, "rope_theta", 0, 1e15, open_low=True)
        allowed = ", ".join(SHAPE_FAMILIES)
        require(shape.family in SHAPE_FAMILIES, f"family must be one of {allowed}, got {shape.family!r}")


@dataclass(frozen=True)
class LanguageModelTaskConfig:
    """Train a decoder to predict each next token of packed documents."""

    kind: ClassVar = "lm"
    tokenizer_kind: ClassVar[TokenizerKind] = "bpe"

    model: ShapeConfig | ModelConfig = PRESETS["tiny"]
    "the architecture; with from_model only its context is used"
    init: InitConfig = InitConfig()
    "the initial weights of a new model"
    shuffle: bool = True
    "shuffle documents; --no-shuffle keeps their order in the first epoch, for a curriculum"
    compile: bool = False
    "compile the blocks with torch.compile"
    strict: bool = False
    "raise an error for an unusable file or line, with its position, instead of skipping it"

    def __post_init__(self):
        require_types(self, "task.")
        _check_sizes(self.model)

    @property
    def context(self) -> int:
        """Tokens of a training sequence."""
        return self.model.context_length if isinstance(self.model, ModelConfig) else self.model.context


@dataclass(frozen=True)
class Seq2SeqTaskConfig:
    """Train an encoder-decoder to generate the target of each source-target pair."""

    kind: ClassVar = "seq2seq"
    # Targets are mostly forms (dates, numbers, codes) in which every character must be right.
    tokenizer_kind: ClassVar[TokenizerKind] = "char"

    model: Seq2SeqShape | RecurrentShape = Seq2SeqShape(d_model=128, n_layers=3, n_heads=4, context=128)  # noqa: RUF009
    "the architecture; with from_model it must be the shape of that model, as `checkpoint_shape` returns it"
    label_smoothing: float = 0.0
    "probability mass of each target that is spread over all tokens, in the training loss only; 0.1 in 2017"
    exact_match_examples: int = 128
    "held-out examples decoded greedily at each evaluation and compared with their targets"
    strict: bool = False
    "raise an error for an unusable example, with file and line, instead of skipping it"

    def __post_init__(self):
        require_types(self, "task.")
        _check_sizes(self.model)
        smoothing = self.label_smoothing
        require(0 <= smoothing < 1, f"label_smoothing must be at least 0 and below 1, got {smoothing}")
        require_range(self, "exact_match_examples", 0)

    @property
    def context(self) -> int:
        """Tokens of the longest target, including the token that starts or ends it."""
        return self.model.context


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Give at most one of `seconds`, `steps` and `tokens`; the default is 120 seconds. Seconds include evaluation and
    checkpoints. An interval of 0 steps means about twenty times a run.
    """

    data: tuple[str, ...] = ()
    'files, folders, globs, pipes, or "-" for standard input: text or records for lm, source-target pairs for seq2seq'
    read: ReadOptions = DEFAULT_READ
    "how the files are read"
    out: str = "run"
    "the run folder, created by the run"
    task: LanguageModelTaskConfig | Seq2SeqTaskConfig = LanguageModelTaskConfig()
    "the task and the options that apply to it alone"
    tokenizer: TokenizerConfig = TokenizerConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    from_model: str | None = None
    "continue from this model: its architecture, weights and tokenizer"
    batch: int = 0
    "sequences (lm) or examples (seq2seq) of a micro-batch, over all processes; 0 is 32, fewer on a slow machine"
    accumulate: int = 1
    "micro-batches of a step"
    seconds: float | None = None
    "train for about this long: the run measures its speed, then fixes the number of steps; 120 by default"
    steps: int | None = None
    "train for this many steps; by default as many as fit into the seconds"
    tokens: int | None = None
    "train on this many target tokens; by default as many as fit into the seconds"
    eval_every: int = 0
    "steps between evaluations; 0 is a twentieth of the run"
    eval_tokens: int = 32_768
    "maximum held-out target tokens of an evaluation"
    save_every: int = 0
    "steps between checkpoints; 0 is a twentieth of the run, and at least one a minute"
    keep_last: int = 2
    "latest checkpoints to keep in addition to the best"
    sample_every: int = 0
    "steps between samples; 0 is a twentieth of the run"
    sample_prompt: str = ""
    "the prompt (lm) or source (seq2seq) of the samples; without one there are none"
    sample_tokens: int = 64
    "maximum tokens of a sample"
    held_out: float = 0.05
    "fraction of the documents or examples held out for evaluation"
    held_out_data: tuple[str, ...] = ()
    "files to evaluate on instead; may be given several times"
    seed: int = 0
    "seed of initial weights and data order"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    "dtype of matrix products; auto is the fastest that this device trains well in"
    device: str = "auto"
    "auto, cpu, cuda, cuda:N or mps"
    threads: int = 0
    "CPU threads; 0 is all cores"
    tensorboard: bool = False
    "write event files to OUT/tensorboard"
    wandb: bool = False
    "log to Weights & Biases"
    resume: bool = False
    "resume the run in `out`"

    def __post_init__(self):
        require_types(self)
        if self.task.kind == "seq2seq":
            self.read.check_for_examples()
        require_range(self, "batch", 0)
        require_range(self, "accumulate eval_tokens keep_last sample_tokens", 1)
        require_range(self, "eval_every save_every sample_every", 0)
        require_range(self, "threads", 0, MAX_THREADS)
        require_range(self, "seed", 0, MAX_SEED)
        require_range(self, "held_out", 0, 0.5)
        require_range(self, "seconds steps tokens", 0, open_low=True)
        given = [name for name in ("seconds", "steps", "tokens") if getattr(self, name) is not None]
        require(len(given) <= 1, f"give one of seconds, steps and tokens, got {' and '.join(given)}")
        require(bool(self.out), "out must name a folder, got ''")
        if self.from_model is not None:
            init, option = getattr(self.task, "init", InitConfig()), self.tokenizer.training_option
            require(init == InitConfig(), "init applies to new weights, and from_model has its own: leave one out")
            require(
                not option, f"{option} applies to a newly trained tokenizer, and from_model has its own: leave it out"
            )
        require(
            not self.tokenizer.digits_apart or self.tokenizer_kind == "bpe",
            f"tokenizer.digits_apart applies to a bpe tokenizer, got kind {self.tokenizer_kind}",
        )
        require(
            not self.held_out_data or self.held_out == TrainConfig.held_out,
            f"held_out and held_out_data exclude each other, got held_out {self.held_out}: leave one out",
        )
        require("-" not in self.data or "-" not in self.held_out_data, "data and held_out_data cannot both be stdin")
        require(
            self.task.kind == "lm" or not self.sample_every or self.sample_prompt != "",
            "sample_every needs a sample_prompt for task seq2seq: give a source text",
        )

    @property
    def budget_seconds(self) -> float | None:
        """The wall-clock budget in seconds; None where steps or tokens are given."""
        return self.seconds if self.seconds is not None or self.steps or self.tokens else DEFAULT_SECONDS

    @property
    def filled_optim(self) -> OptimConfig:
        """The optimizer with every learning rate filled in; `from_model` lowers the defaults."""
        scale = FINE_TUNING if self.from_model is not None else 1.0
        rates = {f"{name}lr": self.optim.peak(role, scale) for name, role in RATES.items()}
        return replace(self.optim, **rates)

    @property
    def tokenizer_kind(self) -> TokenizerKind:
        """The kind of a newly trained tokenizer."""
        return self.task.tokenizer_kind if self.tokenizer.kind == "auto" else self.tokenizer.kind


def config_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain JSON values. A task also has its `kind`, which `from_dict` needs."""
    values = asdict(config)
    return values | {"task": {"kind": config.task.kind} | values["task"]} if isinstance(config, TrainConfig) else values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted keys: {"optim": {"lr": 1}} becomes {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def from_dict(kind: Any, value: Any, name: str = "config") -> Any:
    """Return JSON values as an instance of `kind`, the inverse of `config_dict`.

    Raises ConfigError that names the field which is unknown, missing, or of another type.
    """
    if is_dataclass(kind):
        require(isinstance(value, dict), f"{name} must be an object, got {value!r}")
        value = {key: item for key, item in value.items() if key != "kind" or key in _field_names(kind)}
        if unknown := value.keys() - _field_names(kind):
            raise ConfigError(f"{name} has unknown keys: {', '.join(sorted(unknown))}")
        needed = (f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)
        if missing := [key for key in needed if key not in value]:
            raise ConfigError(f"{name} has no {', '.join(missing)}")
        hints = typing.get_type_hints(kind)
        return kind(**{key: from_dict(hints[key], item, f"{name}.{key}") for key, item in value.items()})  # pyright: ignore
    inner = typing.get_args(kind)
    kinds = [k for k in inner if is_dataclass(k)]
    if isinstance(value, dict) and kinds:
        named = [k for k in kinds if getattr(k, "kind", None) == value.get("kind") is not None]
        fitting = [k for k in kinds if value.keys() <= _field_names(k)]
        return from_dict((named or fitting or kinds)[0], value, name)
    tuples = [k for k in (kind, *inner) if typing.get_origin(k) is tuple]
    if isinstance(value, list) and tuples:
        each = typing.get_args(tuples[0])
        items = [each[0]] * len(value) if each[-1] is Ellipsis or len(each) != len(value) else each
        value = tuple(from_dict(k, item, f"{name}[{i}]") for i, (k, item) in enumerate(zip(items, value, strict=True)))
    require_type(value, kind, name)
    return value


def _field_names(kind: Any) -> set[str]:
    return {f.name for f in fields(kind)}


@dataclass(frozen=True)
class Plan:
    """The steps of a run, fixed once and recorded in run.json, so that schedule and resumption are well defined.

    steps: total steps; 0 while a run with a budget in seconds still measures its speed.
    measured: initial steps used to measure the speed. They warm up as configured and have no evaluation or checkpoint.
    eval_every, save_every, sample_every: in steps; 0 is never.
    tokens_per_step: the maximum number of targets.
    """

    steps: int
    warmup: int
    eval_every: int
    save_every: int
    sample_every: int
    tokens_per_step: int
    measured: int = 0
    seconds: float | None = None

    def __post_init__(self):
        require_types(self, "plan.")
        require_range(self, "steps warmup sample_every measured", 0, prefix="plan.")
        require_range(self, "eval_every save_every tokens_per_step", 1, prefix="plan.")


def make_plan(config: TrainConfig, steps: int, *, measured: int = 0, evaluations: int = 20) -> Plan:
    """Return the plan of a run of `steps` steps (0: still measuring) with `evaluations` unless intervals are set."""
    interval = max(1, -(-steps // evaluations))
    eval_every = config.eval_every or interval
    return Plan(
        steps=steps,
        warmup=min(config.schedule.warmup, steps // 5) if steps else config.schedule.warmup,
        eval_every=eval_every,
        save_every=config.save_every or eval_every,
        sample_every=config.sample_every or (interval if config.sample_prompt else 0),
        tokens_per_step=config.batch * config.accumulate * config.task.context,
        measured=measured,
        seconds=config.budget_seconds,
    )
