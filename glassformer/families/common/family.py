"""The data that a family module declares, and a config.json reader that rejects unread keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from glassformer.config import Activation, ModelConfig, RecurrentConfig, TextEncoderConfig
from glassformer.config.checks import MAX_LAYERS
from glassformer.errors import ConfigError
from glassformer.families.common.neutral import IGNORED
from glassformer.families.common.shape import ShapeConfig

QUANTIZATION = frozenset(("quantization_config", "quantization", "compression_config"))  # never ignored

# Activations by their names in checkpoints. The first name of each is used for writing.
ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}
ACTIVATION_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}

AnyConfig = ModelConfig | RecurrentConfig | TextEncoderConfig  # of a complete model

MISSING = object()
MAX_NUMBER = 1e30
MAX_SIZE = 1 << 62


class ConfigFields:
    """A config.json being read: every key must be taken, or ignored by name.

    Args:
        raw: the JSON object.
        source: its file, for messages.
        ignore: keys that do not matter.
    """

    def __init__(self, raw: dict[str, Any], source: str, ignore: tuple[str, ...] = ()):
        self.raw, self.source, self.unread = raw, source, set(raw) - IGNORED - (set(ignore) - QUANTIZATION)

    @contextmanager
    def naming_source(self) -> Iterator[None]:
        """Add the file's name to the message of a ConfigError that lacks it, such as those of a configuration class."""
        try:
            yield
        except ConfigError as error:
            if str(error).startswith(self.source):
                raise
            raise ConfigError(f"{self.source}: {error}") from None

    def take(self, name: str, default: Any = MISSING) -> Any:
        """Return the value of a key. Without a default, a missing key raises ConfigError."""
        self.unread.discard(name)
        if name in self.raw:
            return self.raw[name]
        if default is MISSING:
            raise ConfigError(f"{self.source}: the key {name!r} is missing")
        return default

    def size(self, name: str, default: Any = MISSING, minimum: int = 1) -> Any:
        """Return a whole number of at least `minimum`; null means the default. The number of layers is limited."""
        most = MAX_LAYERS if "layer" in name else MAX_SIZE
        allowed = (
            f"a whole number from {minimum} to {most}"
            if most == MAX_LAYERS
            else f"a whole number of at least {minimum}"
        )
        return self._checked(name, default, allowed, lambda v: type(v) is int and minimum <= v <= most)

    def number(self, name: str, default: Any = MISSING) -> float:
        """Return a number above 0, of which squares and products are finite."""
        fits = lambda v: type(v) in (int, float) and 0 < v <= MAX_NUMBER  # noqa: E731
        return float(self._checked(name, default, "a number above 0", fits))

    def optional(self, name: str, default: float | None = None, kind: type = int) -> Any:
        """Return a whole number of at least 1, or a number above 0 if `kind` is float; None for null."""
        if self.take(name, default) is None:
            return None
        return self.size(name, default) if kind is int else self.number(name, default)

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        return self._checked(name, default, "true or false", lambda v: type(v) is bool)

    def _checked(self, name: str, default: Any, allowed: str, fits: Callable[[Any], bool]) -> Any:
        value = self.take(name, default)
        if value is None and default is not MISSING:
            return default
        if not fits(value):
            raise ConfigError(f"{self.source}: {name} must be {allowed}, got {value!r}")
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """Check a key of which only some values are supported; the first is the default."""
        value = self.take(name, allowed[0])
        if value not in allowed:
            shown = ", ".join(map(repr, allowed))
            raise ConfigError(f"{self.source}: {name} = {value!r} is not supported, only {shown}")

    def activation(self, name: str, default: str) -> Activation:
        """Return an activation function, given by any of its names."""
        value = self.take(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise ConfigError(f"{self.source}: {name} = {value!r} is not supported, only {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def layer_windows(self, n_layers: int, window: int | None, default: Sequence[bool]) -> list[int | None]:
        """Return each layer's window. `layer_types`, or else `default`, determines which layers have one."""
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

    def rename(self, newer: str, name: str) -> None:
        """Read a newer name of a key. ConfigError: the values differ."""
        value = self.take(newer, None)
        if value is None:
            return
        if self.raw.get(name, value) not in (None, value):
            raise ConfigError(f"{self.source}: {name} and {newer} differ: {self.raw[name]!r} and {value!r}")
        self.raw = self.raw | {name: value}

    def close(self, neutral: Mapping[str, Collection[Any]] = MappingProxyType({})) -> None:
        """Raise ConfigError if a key was not read, unless it is null or has one of its `neutral` values."""
        unknown = sorted(key for key in self.unread if self.raw[key] not in (None, *neutral.get(key, ())))
        if unknown:
            stated = (f"{key} must be {' or '.join(map(repr, neutral[key]))}" for key in unknown if neutral.get(key))
            hint = "".join(f"; in this model {one}" for one in stated)
            raise ConfigError(
                f"{self.source}: keys this family does not understand: {', '.join(unknown)}{hint}. "
                "Name those that do not matter with --ignore-key."
            )


@dataclass(frozen=True)
class TensorRule:
    """One checkpoint tensor and the parameters that it fills. `{i}` in the names is the layer.

    Several parameters share one tensor along its output axis (fused q, k, v). `{j}` in both names is the index
    of an expert or of a head's norm. `{j}` in the parameter names alone: one tensor holds all experts, stacked along a
    first axis.

    Attributes:
        transposed: the tensor is stored [in, out].
        grouped_by_kv_head: the tensor holds, per key/value head, the rows of its queries, its key and its value.
        interleaved_rope: rotary pairs are neighbours within a head, not half a head apart. In latent attention they
            also come last in the head, not first.
        interleaved_rows: the tensor holds the first row of each parameter, then the second row of each, and so on.
        single_head: the complete output is one such head: the latent and the rotary key that latent attention caches.
        float32: the numbers are loaded and stored as float32, whatever the dtype of the others.
        head_axis: the tensor has an additional first axis for heads; `transposed` applies to each head.
        row_vector: a vector that is stored as a matrix of one row.
        zeros_if_missing: a checkpoint without this tensor means zeros.
        fallback: a checkpoint without this tensor uses the tensor of this name.
        offset: the tensor holds the parameter plus this number.
    """

    tensor_name: str
    parameter_names: tuple[str, ...]
    transposed: bool = False
    grouped_by_kv_head: bool = False
    interleaved_rope: bool = False
    interleaved_rows: bool = False
    single_head: bool = False
    float32: bool = False
    head_axis: bool = False
    row_vector: bool = False
    zeros_if_missing: bool = False
    fallback: str = ""
    offset: float = 0.0


def rule(theirs: str, *ours: str, transposed: bool = False, **how: Any) -> TensorRule:
    return TensorRule(theirs, ours, transposed, **how)


def linear(
    theirs: str,
    *ours: str,
    transposed: bool = False,
    grouped_by_kv_head: bool = False,
    interleaved_rope: bool = False,
    single_head: bool = False,
) -> tuple[TensorRule, TensorRule]:
    """Return the rules of a linear layer: its weight and, if the model has one, its bias."""
    weight, bias = (tuple(f"{name}.{part}" for name in ours) for part in ("weight", "bias"))
    return (
        TensorRule(
            f"{theirs}.weight", weight, transposed, grouped_by_kv_head, interleaved_rope, single_head=single_head
        ),
        TensorRule(f"{theirs}.bias", bias, False, grouped_by_kv_head, interleaved_rope, single_head=single_head),
    )


def no_shape(s: ShapeConfig) -> ModelConfig:
    """Reject a family whose models can only be loaded from a checkpoint."""
    raise ConfigError(
        f"a model of family {s.family!r} can only be loaded from a checkpoint; a shape needs qwen3, llama or gpt2"
    )


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: config.json's `model_type`.
        architecture: the class name that config.json states.
        read: config.json to a configuration; `write` is the inverse.
        shape: expands a `ShapeConfig` to a configuration.
        rules: how tensors map to parameters; may depend on the configuration. None: our parameter names.
        prefix: the prefix of the tensor names of the model without its head; a checkpoint of that model lacks it.
        ignored: patterns of tensors that are not weights; {n_layers} stands for the number of layers.
        alternatives: more rules, for tensors that may replace those of `rules`. Used for reading only.
        embedding_copies: names under which a checkpoint may hold the embedding again.
        adds_special_tokens: a source text is encoded with the tokenizer's special tokens.
        duplicates: pairs of a tensor that may be present and the tensor that it must equal.
        detect_heads: adds to a configuration the heads that are detected from the tensor names.
        renamed: prefixes of tensor names, each with the prefix that it stands for: the text model in a larger model.
        left_out: patterns of the tensors of the other parts of a larger model.
    """

    name: str
    architecture: str
    read: Callable[[ConfigFields], AnyConfig]
    write: Callable[[Any], dict[str, Any]]
    shape: Callable[..., ModelConfig] = no_shape
    rules: tuple[TensorRule, ...] | Callable[[Any], tuple[TensorRule, ...]] | None = None
    prefix: str = "model."
    ignored: tuple[str, ...] = ()
    alternatives: tuple[TensorRule, ...] = ()
    embedding_copies: tuple[str, ...] = ()
    adds_special_tokens: bool = False
    duplicates: tuple[tuple[str, str], ...] = ()
    detect_heads: Callable[[Any, Collection[str]], Any] = lambda config, _: config
    renamed: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()

    def rules_for(self, config: AnyConfig) -> tuple[TensorRule, ...] | None:
        """Return the rules for a model of this configuration."""
        return self.rules(config) if callable(self.rules) else self.rules
