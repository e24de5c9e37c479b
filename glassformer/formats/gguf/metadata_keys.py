"""Groups of GGUF metadata keys: rotary positions and their scaling, sliding windows, latent attention.

Each group is read as keys of config.json, and written from a configuration. Some numbers of a scaling are tensors:

    rope_freqs.weight                                a divisor of each rotary pair's angle (Llama 3.1)
    rope_factors_short.weight, rope_factors_long     the same, for short and long texts (LongRoPE)

Names and defaults are those of llama.cpp (`llama-arch.cpp`, `llama-model.cpp`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from glassformer.config import (
    AttentionConfig,
    BandScaling,
    LinearScaling,
    LongScaling,
    ModelConfig,
    RopeConfig,
    Scaling,
    YarnScaling,
)
from glassformer.errors import ConfigError
from glassformer.families.common.family import ConfigFields
from glassformer.families.common.rope import rotary_factor, write_scaling

DIVISORS = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
MAX_LOG_MULTIPLIER = 1000.0  # bound of `yarn_log_multiplier`
BANDS = (1.0, 4.0, 8192)  # low, high and original context of all models with band scaling


@dataclass(frozen=True)
class MetadataFields:
    """The metadata of a file being read.

    Attributes:
        keys: the metadata, without the architecture's name.
        tensors: the names of the file's tensors.
        read_vector: reads a short tensor.
        has_key_length: whether heads may be wider than d_model / n_heads.
    """

    keys: ConfigFields
    tensors: Collection[str]
    read_vector: Callable[[str], list[float]]
    has_key_length: bool

    def head_dim_and_context(self) -> tuple[int, int]:
        """Return head_dim and the context length."""
        n_heads, d_model = self.keys.size("attention.head_count"), self.keys.size("embedding_length")
        head_dim = max(1, d_model // n_heads)
        if self.has_key_length:
            head_dim = self.keys.size("attention.key_length", head_dim)
        return head_dim, self.keys.size("context_length")

    def has_tensor(self, tensor: str) -> bool:
        """Whether a tensor is present; queries may be fused with keys and values."""
        return tensor in self.tensors or tensor.replace(".attn_q.", ".attn_qkv.") in self.tensors


def has_divisors(scaling: Scaling | None) -> bool:
    """Whether a scaling is one divisor per rotary pair, for texts of any length."""
    return isinstance(scaling, BandScaling) or (isinstance(scaling, LongScaling) and scaling.short == scaling.long)


def divisors(rope: RopeConfig, head_dim: int) -> list[float]:
    """Return the divisor of each rotary pair's angle."""
    if isinstance(rope.scaling, LongScaling):
        return list(rope.scaling.short)
    assert isinstance(rope.scaling, BandScaling)
    dim, s = rope.dim or head_dim, rope.scaling
    turns = [s.original_context / (2 * math.pi * rope.theta ** (i / dim)) for i in range(0, dim, 2)]
    unscaled = [min(1.0, max(0.0, (n - s.low) / (s.high - s.low))) for n in turns]
    return [1 / ((1 - k) / s.factor + k) for k in unscaled]


@dataclass(frozen=True)
class RopeKeys:
    """The keys of rotary positions.

    Attributes:
        theta_key: config.json's key of the base.
        factor_key: config.json's key of the rotary share of a head; None: full heads rotate.
        local_theta_key: config.json's key of the base in layers with a window, which are not scaled.
        tensors: the tensors of scalings that the architecture may have.
        truncate: see `YarnScaling`; the format has no key for it.
        latent: latent attention: the rotary part of a head has its own size, and YaRN scales the scores
            (`yarn_log_multiplier`).
    """

    theta_key: str = "rope_theta"
    factor_key: str | None = None
    local_theta_key: str | None = None
    tensors: tuple[str, ...] = ()
    truncate: bool = True
    latent: bool = False

    def read(self, fields: MetadataFields) -> dict[str, Any]:
        keys, (head_dim, context) = fields.keys, fields.head_dim_and_context()
        dim = keys.size("rope.dimension_count") if self.latent else keys.optional("rope.dimension_count") or head_dim
        if self.factor_key is None and not self.latent and dim != head_dim:
            raise ConfigError(f"{keys.source}: rope.dimension_count = {dim} is not supported, only {head_dim}")
        theta = keys.number("rope.freq_base", 10_000.0)
        config_json: dict[str, Any] = {
            self.theta_key: theta,
            "rope_scaling": self._scaling(fields, theta, dim, context),
        }
        if self.factor_key is not None:
            config_json[self.factor_key] = rotary_factor(dim, head_dim)
        if self.latent:
            config_json["qk_rope_head_dim"] = dim
        if self.local_theta_key is not None:
            config_json[self.local_theta_key] = keys.number("rope.freq_base_swa", 10_000.0)
        else:
            keys.expect("rope.freq_base_swa", theta)
        return config_json

    def _scaling(self, fields: MetadataFields, theta: float, dim: int, context: int) -> dict[str, Any]:
        keys = fields.keys
        keys.take("rope.scaling.finetuned", None)  # about its training only
        kind = keys.take("rope.scaling.type", "linear")
        factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
        original = keys.size("rope.scaling.original_context_length", context)
        gain = keys.number("rope.scaling.attn_factor", 1.0)
        fast, slow = keys.number("rope.scaling.yarn_beta_fast", 32.0), keys.number("rope.scaling.yarn_beta_slow", 1.0)
        keys.expect("rope.scaling.yarn_ext_factor", 1.0, -1.0)
        by = _multiplier(keys) if self.latent else 0.0
        own = 1 + 0.1 * math.log(max(1.0, factor)) if kind == "yarn" and not by else 1.0
        stated = keys.number("rope.scaling.yarn_attn_factor", 1.0)  # must be 1 or the attention factor
        if kind not in ("none", "linear", "yarn", "longrope"):
            raise ConfigError(f"{keys.source}: rope.scaling.type {kind!r} is not supported")
        if min(abs(stated - 1), abs(stated - own * gain)) > 1e-5:
            raise ConfigError(f"{keys.source}: rope.scaling.yarn_attn_factor = {stated} is not supported, only 1.0")
        if (tensor := self._factors(fields, theta, dim, context, original, gain)) is not None:
            if kind not in ("none", "longrope") and factor != 1:
                raise ConfigError(
                    f"{keys.source}: rope.scaling.factor {factor} is not supported together with factor tensors"
                )
            return tensor
        if self.latent and kind != "none" and (factor < 1 or (factor != 1 and kind != "yarn")):
            raise ConfigError(f"{keys.source}: rope.scaling.factor = {factor} ({kind}) is not supported, only YaRN's")
        if kind == "yarn" and not (self.latent and factor == 1 and gain != 1):
            gain = float(f"{gain * own:.7g}")  # the precision of the file's numbers
            return {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
                "beta_fast": fast,
                "beta_slow": slow,
                "attention_factor": gain,
                "truncate": self.truncate,
                **({"mscale_all_dim": _mscale(gain, by, factor)} if self.latent else {}),
            }
        if gain != 1:
            raise ConfigError(f"{keys.source}: rope.scaling.attn_factor = {gain} is not supported, only 1.0")
        if kind == "linear" and factor != 1:
            return {"rope_type": "linear", "factor": factor}
        return {"rope_type": "default"}

    def _factors(
        self, fields: MetadataFields, theta: float, dim: int, context: int, original: int, gain: float
    ) -> dict[str, Any] | None:
        """Return the scaling that is stored as tensors; None if the file has no such tensors."""
        present = [name for name in self.tensors if name in fields.tensors]
        if DIVISORS in present and gain == 1:
            numbers = fields.read_vector(DIVISORS)
            low, high, trained = BANDS
            band = BandScaling(max([1.0, *numbers]), low, high, trained)
            if _near(divisors(RopeConfig(theta, dim, band), dim), numbers):
                return write_scaling(band)
            return write_scaling(LongScaling(tuple(numbers), tuple(numbers), context))
        if not {SHORT, LONG} <= {*present}:
            return None
        short, long = (tuple(fields.read_vector(name)) for name in (SHORT, LONG))
        return write_scaling(LongScaling(short, long, original, gain))

    def write(self, config: ModelConfig) -> tuple[dict[str, Any], dict[str, list[float]]]:
        """Return the metadata and the tensors of a configuration."""
        rotary = [layer.attention for layer in config.layers if layer.attention.rope is not None]
        rotary = [a for a in rotary if self.local_theta_key is None or a.window is None] or rotary
        if not rotary or (rope := rotary[0].rope) is None:
            return {}, {}
        head_dim = rotary[0].head_dim
        metadata: dict[str, Any] = {"rope.freq_base": rope.theta, "rope.dimension_count": rope.dim or head_dim}
        if self.local_theta_key is not None:
            local = (layer.attention for layer in config.layers if layer.attention.window is not None)
            metadata["rope.freq_base_swa"] = next((a.rope.theta for a in local if a.rope is not None), 10_000.0)
        scaling, tensors = rope.scaling, {}
        if has_divisors(scaling):
            tensors = {DIVISORS: divisors(rope, head_dim)}
        elif isinstance(scaling, LinearScaling):
            metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
        elif isinstance(scaling, YarnScaling):
            metadata |= _yarn_keys(scaling) | (_scale_keys(rotary[0], scaling) if self.latent else {})
        elif isinstance(scaling, LongScaling):
            metadata |= {
                "rope.scaling.type": "longrope",
                "rope.scaling.original_context_length": scaling.original_context,
                "rope.scaling.attn_factor": scaling.attention_factor,
            }
            tensors = {SHORT: list(scaling.short), LONG: list(scaling.long)}
        return metadata, {name: numbers for name, numbers in tensors.items() if name in self.tensors}


def _yarn_keys(scaling: YarnScaling) -> dict[str, Any]:
    """Return the metadata of YaRN. llama.cpp multiplies `attn_factor` by the paper's factor, so it is divided here."""
    own = 1 + 0.1 * math.log(max(1.0, scaling.factor))
    values = {
        "type": "yarn",
        "factor": scaling.factor,
        "original_context_length": scaling.original_context,
        "attn_factor": scaling.attention_factor / own,
        "yarn_beta_fast": scaling.beta_fast,
        "yarn_beta_slow": scaling.beta_slow,
    }
    return {f"rope.scaling.{name}": value for name, value in values.items()}


def _multiplier(keys: ConfigFields) -> float:
    """Return ten times `yarn_log_multiplier`, which equals `mscale_all_dim` if `attn_factor` is 1; 0 if missing."""
    value = keys.take("rope.scaling.yarn_log_multiplier", 0.0)
    if type(value) not in (int, float) or not -MAX_LOG_MULTIPLIER < value < MAX_LOG_MULTIPLIER:
        allowed = f"a number within {MAX_LOG_MULTIPLIER} of 0"
        raise ConfigError(f"{keys.source}: rope.scaling.yarn_log_multiplier must be {allowed}, got {value!r}")
    return 10.0 * value


def _mscale(gain: float, by: float, factor: float) -> float:
    """Return the `mscale_all_dim` of a file: the shortest number that gives the file's values.

    llama.cpp multiplies q k by gain^2 (1 + 0.1 by ln factor)^2.
    """
    log = 0.1 * math.log(factor)
    if not log:
        return 0.0
    exact = (gain * (1 + by * log) - 1) / log
    near = (round(exact, digits) for digits in range(1, 10))
    return next((one for one in near if _as_float32(((one * log + 1) / gain - 1) / log) == _as_float32(by)), exact)


def _scale_keys(attention: AttentionConfig, scaling: YarnScaling) -> dict[str, Any]:
    """Return the metadata with which llama.cpp computes this attention's scale; see `_mscale`."""
    log, gain = 0.1 * math.log(max(1.0, scaling.factor)), scaling.attention_factor
    total = math.sqrt((attention.scale or attention.head_dim**-0.5) * math.sqrt(attention.head_dim))
    by = (total / gain - 1) / log if log else 0.0
    if not by:
        return {}
    return {"rope.scaling.attn_factor": gain, "rope.scaling.yarn_log_multiplier": by / 10}


def _as_float32(by: float) -> float:
    """Return a multiplier as the float32 that a file stores."""
    return struct.unpack("f", struct.pack("f", by / 10))[0]


def _near(ours: list[float], theirs: list[float]) -> bool:
    return len(ours) == len(theirs) and all(map(lambda a, b: math.isclose(a, b, rel_tol=1e-5), ours, theirs))


@dataclass(frozen=True)
class WindowKeys:
    """The keys of sliding windows.

    Attributes:
        every: the last layer of this many has full attention, if the file has no pattern. None: all layers are equal.
        default: the window of a file without the key.
        required: llama.cpp fails if no layer has a window.
    """

    every: int | None = None
    default: int | None = None
    required: bool = False

    def read(self, fields: MetadataFields) -> dict[str, Any]:
        keys, n_layers = fields.keys, fields.keys.size("block_count")
        window = keys.take("attention.sliding_window", self.default)
        window = keys.size("attention.sliding_window", self.default) if window else None  # 0 means no window
        if self.every is None:
            return {"sliding_window": window}
        pattern = keys.take("attention.sliding_window_pattern", self.every)
        if type(pattern) is int and pattern >= 0:
            pattern = [pattern == 0 or i % pattern < pattern - 1 for i in range(min(n_layers, 10_000))]
        if not isinstance(pattern, list) or len(pattern) != n_layers:
            raise ConfigError(
                f"{keys.source}: attention.sliding_window_pattern must be a number of layers, or state for each of "
                f"{n_layers} layers whether it has a window, got {pattern!r:.100}"
            )
        slides = [bool(one) and window is not None for one in pattern]
        kinds = ["sliding_attention" if one else "full_attention" for one in slides]
        return {"sliding_window": window or 4096, "layer_types": kinds}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        windows = [layer.attention.window for layer in config.layers]
        metadata = {"attention.sliding_window": next((w for w in windows if w is not None), 0)}
        if self.required and not metadata["attention.sliding_window"]:
            raise ConfigError(f"GGUF's {config.family} needs a layer with a window, but this model has none")
        slides = [w is not None for w in windows]
        usual = self.every is None or slides == [i % self.every < self.every - 1 for i in range(len(windows))]
        return metadata if usual else metadata | {"attention.sliding_window_pattern": slides}


WITHOUT_Q_RANK = (26, 27)  # llama.cpp assumes that models of so many layers have no `q_lora_rank`


@dataclass(frozen=True)
class LatentKeys:
    """The keys of latent attention. A `q_lora_rank` of 0 or none means that queries are computed from x directly.

    llama.cpp treats it as one key/value head: the latents with the rotary key; its values are the latents. Newer files
    also have the sizes of the model's heads; older files have only those:

        attention.   head_count_kv   key_length   value_length   key_length_mla   value_length_mla
        newer        1               C + R        C              R + N            Dv
        older        H               R + N        Dv             -                -
    """

    def read(self, fields: MetadataFields) -> dict[str, Any]:
        keys, n_heads = fields.keys, fields.keys.size("attention.head_count")
        rank, rope_dim = keys.size("attention.kv_lora_rank"), keys.size("rope.dimension_count")
        if "attention.key_length_mla" in keys.raw or "attention.value_length_mla" in keys.raw:
            keys.expect("attention.head_count_kv", 1)
            keys.expect("attention.key_length", rank + rope_dim)
            keys.expect("attention.value_length", rank)
            width, v_dim = keys.size("attention.key_length_mla"), keys.size("attention.value_length_mla")
        else:
            keys.expect("attention.head_count_kv", n_heads)
            width, v_dim = keys.size("attention.key_length"), keys.size("attention.value_length")
        if width <= rope_dim:
            raise ConfigError(
                f"{keys.source}: the head width must be above rope.dimension_count, {rope_dim}, got {width}"
            )
        q_rank = keys.size("attention.q_lora_rank", 0, minimum=0)
        return {"qk_nope_head_dim": width - rope_dim, "v_head_dim": v_dim, "q_lora_rank": q_rank or None}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        attention = config.layers[0].attention
        latent = attention.latent
        assert latent is not None
        self.check(config)
        return {
            "attention.head_count_kv": 1,
            "attention.key_length": attention.cached_per_token,
            "attention.value_length": latent.rank,
            "attention.key_length_mla": attention.head_dim,
            "attention.value_length_mla": latent.v_dim,
            "attention.q_lora_rank": latent.q_rank or 0,
        }

    def check(self, config: ModelConfig) -> None:
        """Raise ConfigError if the format can describe the model but llama.cpp would not run it correctly."""
        latent, n_layers = config.layers[0].attention.latent, config.n_layers
        lite = n_layers in WITHOUT_Q_RANK or (n_layers, config.vocab_size) == (48, 128_256)
        cannot = f"GGUF's deepseek2 cannot describe this {config.family} model to llama.cpp, which"
        if lite and latent is not None and latent.q_rank is not None:
            raise ConfigError(f"{cannot} assumes no q_rank for {n_layers} layers, got {latent.q_rank}")
        for moe in (layer.experts for layer in config.layers if layer.experts is not None):
            if moe.shared_d_ff is None:
                raise ConfigError(f"{cannot} needs a shared expert (shared_d_ff)")
            if moe.n_groups > 1 and moe.group_best != 2:
                raise ConfigError(f"{cannot} compares groups of experts by the best 2 of each, not {moe.group_best}")
            if moe.n_groups > 1 and moe.top_groups == moe.n_groups:
                raise ConfigError(f"{cannot} leaves out a group of experts, got top_groups = n_groups = {moe.n_groups}")
