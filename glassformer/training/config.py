"""What a training run is told, as frozen data. No torch: the command line reads these to write its help."""

from __future__ import annotations

import types
import typing
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Literal

from glassformer.config import ModelConfig
from glassformer.errors import ConfigError
from glassformer.families.common.shape import RecurrentShape, Seq2SeqShape, ShapeConfig

DEFAULT_SECONDS = 120.0


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    _require(value in allowed, f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer. Rates are peaks, which the schedule multiplies; None is the default of the kind of optimizer.

    name: muon (hidden matrices; AdamW for the rest) or adamw (everything).
    lr: of the blocks' matrices. embed_lr: of embeddings and head. scalar_lr: of norms and biases.
    clip: the largest norm of all gradients together; 0 does not clip.
    weight_decay: decoupled, times lr; matrices only. embed_decay: the same, of embeddings and head.
    momentum, nesterov, muon_scale, muon_dtype: Muon's; muon_dtype auto is bfloat16 where the run's dtype is.
    """

    name: Literal["muon", "adamw"] = "muon"
    lr: float | None = None
    embed_lr: float | None = None
    scalar_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    momentum: float = 0.95
    nesterov: bool = True
    muon_scale: Literal["spectral", "rms"] = "spectral"
    muon_dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self):
        _one_of("optim.name", self.name, ("muon", "adamw"))
        _one_of("optim.muon_scale", self.muon_scale, ("spectral", "rms"))
        _one_of("optim.muon_dtype", self.muon_dtype, ("auto", "float32", "bfloat16"))
        for name in ("lr", "embed_lr", "scalar_lr"):
            rate = getattr(self, name)
            _require(rate is None or rate > 0, f"optim.{name} must be above 0, got {rate}")
        _require(all(0 <= b < 1 for b in self.betas), f"optim.betas must be from 0 to below 1, got {self.betas}")
        _require(0 <= self.momentum < 1, f"optim.momentum must be from 0 to below 1, got {self.momentum}")
        for name in ("weight_decay", "clip"):
            _require(getattr(self, name) >= 0, f"optim.{name} must be at least 0, got {getattr(self, name)}")
        _require(self.eps > 0, f"optim.eps must be above 0, got {self.eps}")

    def peak(self, role: str) -> float:
        """The peak learning rate of a role: hidden, embed, head or scalar."""
        if role == "hidden":
            return self.lr if self.lr is not None else (0.02 if self.name == "muon" else 2e-3)
        given = self.scalar_lr if role == "scalar" else self.embed_lr
        if given is not None:
            return given
        return 5e-3 if self.name == "muon" else self.peak("hidden")


@dataclass(frozen=True)
class ScheduleConfig:
    """How the rates move: see `schedule.py`. warmup: steps, at most a fifth of the run. min_ratio: the last factor.

    decay: the share of all steps over which wsd goes down. inverse_sqrt has neither: it goes down by itself, all along.
    """

    kind: Literal["cosine", "wsd", "inverse_sqrt"] = "wsd"
    warmup: int = 50
    min_ratio: float = 0.0
    decay: float = 0.3

    def __post_init__(self):
        _one_of("schedule.kind", self.kind, ("cosine", "wsd", "inverse_sqrt"))
        _require(self.warmup >= 0, f"schedule.warmup must be at least 0 steps, got {self.warmup}")
        for name in ("min_ratio", "decay"):
            _require(0 <= getattr(self, name) <= 1, f"schedule.{name} must be from 0 to 1, got {getattr(self, name)}")
        _require(
            self.kind != "inverse_sqrt" or self.min_ratio == 0,
            f"schedule.min_ratio has no effect on inverse_sqrt, which has no last factor, got {self.min_ratio}",
        )


@dataclass(frozen=True)
class InitConfig:
    """The first weights: see `nn/init.py`.

    std: of all matrices. out_std: of those that write to the residual stream; None is std / sqrt(2 n_layers). qk_gain:
    the weight of the norms of queries and keys. look_back: above 0, the first layer's heads begin by looking 1, 2, 3,
    ... tokens back, the more sharply the larger it is.
    """

    std: float = 0.02
    out_std: float | None = None
    qk_gain: float = 1.0
    look_back: float = 0.0

    def __post_init__(self):
        for name in ("std", "qk_gain"):
            _require(getattr(self, name) > 0, f"init.{name} must be above 0, got {getattr(self, name)}")
        _require(self.out_std is None or self.out_std > 0, f"init.out_std must be above 0, got {self.out_std}")
        _require(self.look_back >= 0, f"init.look_back must be at least 0, got {self.look_back}")


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer: one that is there (path: a folder or tokenizer.json), or one trained on the run's own data.

    `vocab_size` is the most tokens that a trained one may have; 0 chooses by kind and amount of text. `kind` auto is
    bpe for text, and char for pairs: their targets are mostly forms, not words (dates, numbers, codes), of which each
    sign must be right, and which letter goes with which can then be seen. digits_apart: a bpe merges no digits.
    """

    path: str | None = None
    kind: Literal["auto", "bpe", "char", "word"] = "auto"
    vocab_size: int = 0
    digits_apart: bool = False

    def __post_init__(self):
        _one_of("tokenizer.kind", self.kind, ("auto", "bpe", "char", "word"))
        _require(self.vocab_size >= 0, f"tokenizer.vocab_size must be at least 0, got {self.vocab_size}")
        _require(self.path is None or not self.trained, f"{self.trained} is of a new tokenizer, and path names one")

    @property
    def trained(self) -> str:
        """What was asked of a tokenizer that is trained: the option's name, or nothing."""
        asked = (("kind", self.kind != "auto"), ("vocab_size", self.vocab_size), ("digits_apart", self.digits_apart))
        return next((f"tokenizer.{name}" for name, given in asked if given), "")


LANGUAGE_ONLY = {
    "init": "an encoder-decoder begins with the weights of its paper",
    "shuffle": "pairs of like length go into a batch together, whatever order they were given in",
    "compile": "pairs come in batches of many lengths, and compiling for them takes longer than it saves",
}
PAIRS_ONLY = {
    "label_smoothing": "the loss of a text is not smoothed",
    "exact_pairs": "a text has no one right answer",
    "strict": "`glassformer data check --strict` says what is broken in a text",
}


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    data: files, folders, globs, JSONL, or "-" for stdin. out: the run's folder, made by the run.
    task: lm, a language model from text; or seq2seq, an encoder-decoder (a PairShape or a RecurrentShape) from pairs of
    texts, TSV or JSONL with source and target. An option of the other task is refused by its name.
    from_model: the model to continue from; `model` then says how long its rows are (of pairs: all that it is, as
    `pair_model.model_shape` gives it).
    batch: rows (or pairs) of a micro-batch, over all processes. accumulate: micro-batches of a step.
    seconds, steps or tokens (at most one; 120 seconds by default): how long. Seconds count evaluation and saving too;
    tokens are targets.
    eval_every, save_every, sample_every: in steps; 0 is about twenty times a run (no samples without a prompt).
    eval_tokens: most held-out tokens read (of pairs: written) at each evaluation. keep_last: checkpoints kept beside
    the best. held_out: the share of documents (or pairs) kept for evaluation; held_out_data: files of them instead.
    sample_prompt: what a sample continues, or translates.
    of lm: shuffle: False keeps the given order (a curriculum). compile: torch.compile of the blocks, once for all of
    them. init: see there.
    of seq2seq: label_smoothing: the part of each target, from 0 to 1, that goes to all tokens alike; in the training
    loss only. exact_pairs: held-out pairs that are written out at each evaluation, and compared. strict: refuse what
    is no pair instead of leaving it out.
    resume: go on with the run in `out`.
    """

    data: tuple[str, ...] = ()
    out: str = "run"
    task: Literal["lm", "seq2seq"] = "lm"
    model: ShapeConfig | ModelConfig | Seq2SeqShape | RecurrentShape = ShapeConfig()  # noqa: RUF009 (frozen)
    tokenizer: TokenizerConfig = TokenizerConfig()
    init: InitConfig = InitConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    batch: int = 32
    accumulate: int = 1
    seconds: float | None = None
    steps: int | None = None
    tokens: int | None = None
    eval_every: int = 0
    eval_tokens: int = 32_768
    save_every: int = 0
    keep_last: int = 2
    sample_every: int = 0
    sample_prompt: str = ""
    sample_tokens: int = 64
    held_out: float = 0.05
    held_out_data: tuple[str, ...] = ()
    shuffle: bool = True
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    threads: int = 0
    compile: bool = False
    from_model: str | None = None
    label_smoothing: float = 0.0
    exact_pairs: int = 128
    strict: bool = False
    resume: bool = False
    tensorboard: bool = False
    wandb: bool = False

    def __post_init__(self):
        _one_of("task", self.task, ("lm", "seq2seq"))
        kinds = (ShapeConfig, ModelConfig) if self.task == "lm" else (Seq2SeqShape, RecurrentShape)
        names = " or a ".join(kind.__name__ for kind in kinds)
        found = type(self.model).__name__
        _require(isinstance(self.model, kinds), f"task {self.task} trains a {names}, got model {found}")
        other, theirs = ("lm", LANGUAGE_ONLY) if self.task == "seq2seq" else ("seq2seq", PAIRS_ONLY)
        for f in fields(self):
            value = getattr(self, f.name)
            _require(
                f.name not in theirs or value == f.default,
                f"{f.name} is an option of task {other} alone, got {value}: {theirs.get(f.name)}",
            )
        _require(
            self.from_model is None or self.init == InitConfig(),
            "init is of new weights, and from_model brings its own: give one of them",
        )
        _require(
            self.from_model is None or not self.tokenizer.trained,
            f"{self.tokenizer.trained} is of a new tokenizer, and from_model brings its own: leave it out",
        )
        _require(
            not self.tokenizer.digits_apart or self.tokenizer_kind == "bpe",
            f"tokenizer.digits_apart is of a bpe tokenizer, this one is of kind {self.tokenizer_kind}",
        )
        _require(
            not self.held_out_data or self.held_out == TrainConfig.held_out,
            f"held_out_data is what is held out: leave out held_out, got {self.held_out}",
        )
        _require("-" not in self.data or "-" not in self.held_out_data, "data and held_out_data cannot both be stdin")
        _require(
            self.task == "lm" or not self.sample_every or self.sample_prompt != "",
            "sample_every needs a sample_prompt: a source to translate",
        )
        _require(
            0 <= self.label_smoothing < 1, f"label_smoothing must be from 0 to below 1, got {self.label_smoothing}"
        )
        for name in ("batch", "accumulate", "eval_tokens", "keep_last", "sample_tokens"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("eval_every", "save_every", "sample_every", "threads", "seed", "exact_pairs"):
            _require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")
        _one_of("dtype", self.dtype, ("auto", "float32", "bfloat16"))
        given = [name for name in ("seconds", "steps", "tokens") if getattr(self, name) is not None]
        _require(len(given) <= 1, f"give one of seconds, steps and tokens, got {' and '.join(given)}")
        for name in given:
            _require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        _require(0 <= self.held_out <= 0.5, f"held_out must be a share from 0 to 0.5, got {self.held_out}")
        _require(bool(self.out), "out must name a folder, got ''")

    @property
    def budget_seconds(self) -> float | None:
        """The wall-clock budget in seconds, or None where steps or tokens were given."""
        return self.seconds if self.seconds is not None or self.steps or self.tokens else DEFAULT_SECONDS

    @property
    def context(self) -> int:
        """Tokens of a row, or of the longest target with the token that begins it."""
        return self.model.context_length if isinstance(self.model, ModelConfig) else self.model.context

    @property
    def tokenizer_kind(self) -> Literal["bpe", "char", "word"]:
        """The kind of a tokenizer that is trained."""
        if self.tokenizer.kind != "auto":
            return self.tokenizer.kind
        return "bpe" if self.task == "lm" else "char"


def config_dict(config: Any) -> dict[str, Any]:
    """Settings as plain JSON values."""
    return asdict(config)


def flatten(values: typing.Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} as {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, typing.Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def build(kind: Any, value: Any, name: str = "settings") -> Any:
    """The inverse of `settings_dict`: JSON values as `kind`. Raises ConfigError naming keys that `kind` has not."""
    origin = typing.get_origin(kind)
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{name} must be an object, got {value!r}")
        unknown = value.keys() - {f.name for f in fields(kind)}
        if unknown:
            raise ConfigError(f"{name}: keys that nobody reads: {', '.join(sorted(unknown))}")
        hints = typing.get_type_hints(kind)
        return kind(**{key: build(hints[key], item, f"{name}.{key}") for key, item in value.items()})  # pyright: ignore
    if origin is tuple:
        inner = typing.get_args(kind)
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(build(k, item, name) for k, item in zip(kinds, value, strict=True))
    if origin in (types.UnionType, typing.Union):
        kinds = [k for k in typing.get_args(kind) if is_dataclass(k)]
        if not isinstance(value, dict) or not kinds:
            return value
        fitting = [k for k in kinds if value.keys() <= {f.name for f in fields(k)}]
        return build((fitting or kinds)[0], value, name)
    return value


def settings_from(values: dict[str, Any]) -> TrainConfig:
    """The settings that a run.json records."""
    return build(TrainConfig, values)


@dataclass(frozen=True)
class Plan:
    """What a run will do, fixed once and recorded in run.json, so that schedule and resume are well defined.

    steps: of the whole run; 0 while a run by seconds still measures its speed. measured: how many first steps that
    took; they warm up as configured, and nothing is evaluated or saved among them. *_every: in steps; 0 is never.
    tokens_per_step: at most so many targets.
    """

    steps: int
    warmup: int
    eval_every: int
    save_every: int
    sample_every: int
    tokens_per_step: int
    measured: int = 0
    seconds: float | None = None


def make_plan(config: TrainConfig, steps: int, *, measured: int = 0, parts: int = 20) -> Plan:
    """The plan of a run of `steps` steps (0: it still measures), evaluated `parts` times where nothing was asked."""
    part = max(1, -(-steps // parts))
    eval_every = config.eval_every or part
    return Plan(
        steps=steps,
        warmup=min(config.schedule.warmup, steps // 5) if steps else config.schedule.warmup,
        eval_every=eval_every,
        save_every=config.save_every or eval_every,
        sample_every=config.sample_every or (part if config.sample_prompt else 0),
        tokens_per_step=config.batch * config.accumulate * config.context,
        measured=measured,
        seconds=config.budget_seconds,
    )
