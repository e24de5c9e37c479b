"""What a family file says, and the reader that leaves no key of a config.json unread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from glassformer.config import Activation, ModelConfig, RecurrentConfig
from glassformer.errors import ConfigError
from glassformer.families.shape import ShapeConfig

# Keys that say nothing about what the model computes: how it was trained, by which program, how it is generated from.
IGNORED = frozenset(
    """_name_or_path architectures attention_dropout attention_probs_dropout_prob attn_pdrop auto_map bos_token_id
    cache_implementation chunk_size_feed_forward classifier_dropout dtype embd_pdrop eos_token_id hidden_dropout
    hidden_dropout_prob id2label initializer_range keys_to_ignore_at_inference label2id max_window_layers n_ctx
    output_attentions output_hidden_states output_router_logits pad_token_id pretraining_tp problem_type
    reorder_and_upcast_attn resid_pdrop return_dict router_aux_loss_coef router_jitter_noise summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj task_specific_params torch_dtype
    transformers_version use_cache""".split()
)

# Activations as checkpoints call them; the first name of each is the one that is written.
ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
}
ACTIVATION_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}

MISSING = object()


class Fields:
    """A config.json being read: every key must be taken, or ignored by name."""

    def __init__(self, raw: dict[str, Any], source: str, ignore: tuple[str, ...] = ()):
        self.raw, self.source, self.unread = raw, source, set(raw) - IGNORED - set(ignore)

    def take(self, name: str, default: Any = MISSING) -> Any:
        """The value of a key. Without a default a missing key is a ConfigError."""
        self.unread.discard(name)
        if name in self.raw:
            return self.raw[name]
        if default is MISSING:
            raise ConfigError(f"{self.source}: the key {name!r} is missing")
        return default

    def size(self, name: str, default: Any = MISSING, least: int = 1) -> Any:
        """A whole number of at least `least`. The default also stands for null."""
        return self._kind(name, default, f"a whole number of at least {least}", lambda v: type(v) is int and v >= least)

    def number(self, name: str, default: Any = MISSING) -> float:
        """A number above 0."""
        return float(self._kind(name, default, "a number above 0", lambda v: type(v) in (int, float) and v > 0))

    def optional(self, name: str, default: float | None = None, kind: type = int) -> Any:
        """A whole number of at least 1 (or, of kind float, a number above 0), or null: there is none."""
        if self.take(name, default) is None:
            return None
        return self.size(name, default) if kind is int else self.number(name, default)

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        return self._kind(name, default, "true or false", lambda v: type(v) is bool)

    def _kind(self, name: str, default: Any, allowed: str, fits: Callable[[Any], bool]) -> Any:
        value = self.take(name, default)
        if value is None and default is not MISSING:
            return default
        if not fits(value):
            raise ConfigError(f"{self.source}: {name} must be {allowed}, got {value!r}")
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """A key of which only some values are supported; the first is the default."""
        value = self.take(name, allowed[0])
        if value not in allowed:
            shown = ", ".join(map(repr, allowed))
            raise ConfigError(f"{self.source}: {name} = {value!r} is not supported, only {shown}")

    def activation(self, name: str, default: str) -> Activation:
        """An activation function, by any of its names."""
        value = self.take(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise ConfigError(f"{self.source}: {name} = {value!r} is not supported, only {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def windows(self, n_layers: int, window: int | None, default: Sequence[bool]) -> list[int | None]:
        """Each layer's window: `layer_types` says which layers have one, or else `default` does."""
        names = {"full_attention": None, "sliding_attention": window}
        kinds = self.take("layer_types", None)
        if kinds is None:
            return [window if sliding else None for sliding in default]
        if not isinstance(kinds, list) or len(kinds) != n_layers or any(kind not in list(names) for kind in kinds):
            raise ConfigError(
                f"{self.source}: layer_types must name full_attention or sliding_attention for each of {n_layers} "
                f"layers, got {kinds}"
            )
        return [names[kind] for kind in kinds]

    def close(self) -> None:
        if self.unread:
            raise ConfigError(
                f"{self.source}: keys this family does not understand: {', '.join(sorted(self.unread))}. "
                "Name those that do not matter with --ignore-key."
            )


@dataclass(frozen=True)
class Rule:
    """One tensor of a checkpoint and the parameters it fills, `{i}` being the layer.

    Several parameters share one tensor along its output axis (a fused q, k, v). `transposed`: stored [in, out].
    `by_head`: the tensor holds, for each key/value head, its queries' rows, its key's and its value's. `{j}` in both
    counts what a layer has several of (norms of heads, experts). `{j}` in `ours` alone: all experts lie in one tensor,
    one behind the other along a first axis. `by_turns`: the tensor holds the first row of each parameter, then the
    second of each. `interleaved`: the two numbers that rotary positions turn lie side by side in a head, not half a
    head apart. `plus`: the tensor holds the parameter plus this number.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    by_head: bool = False
    interleaved: bool = False
    by_turns: bool = False
    plus: float = 0.0


def rule(theirs: str, *ours: str, transposed: bool = False, by_turns: bool = False) -> Rule:
    return Rule(theirs, ours, transposed, by_turns=by_turns)


def linear(
    theirs: str, *ours: str, transposed: bool = False, by_head: bool = False, interleaved: bool = False
) -> tuple[Rule, Rule]:
    """The rules of a linear layer: its weight and, where the model has one, its bias."""
    weight, bias = (tuple(f"{name}.{part}" for name in ours) for part in ("weight", "bias"))
    return (
        Rule(f"{theirs}.weight", weight, transposed, by_head, interleaved),
        Rule(f"{theirs}.bias", bias, False, by_head, interleaved),
    )


def no_shape(s: ShapeConfig) -> ModelConfig:
    """For a family whose models are loaded, and not made from a few numbers."""
    raise ConfigError(f"a model of family {s.family!r} is loaded from a checkpoint: shapes are of qwen3, llama or gpt2")


@dataclass(frozen=True)
class Family:
    """A model family. `prefix` may be absent from all tensor names; `ignored` are tensors that hold no weights.

    `others`: more rules, for tensors that may stand where those of `rules` are not; they are read, and never written.
    `rules` None: tensors are named, and lie, as our parameters do. `shape` makes a model from the few numbers that a
    person types.
    """

    name: str
    architecture: str
    read: Callable[[Fields], ModelConfig | RecurrentConfig]
    write: Callable[[Any], dict[str, Any]]
    shape: Callable[..., ModelConfig] = no_shape
    rules: tuple[Rule, ...] | None = None
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    others: tuple[Rule, ...] = ()
