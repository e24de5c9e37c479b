"""Read and write the rotary settings of a config.json: `rope_parameters`, or `rope_theta` with `rope_scaling`.

`partial_rotary_factor`: int(head_dim * factor) dimensions of a head rotate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from glassformer.config import BandScaling, LinearScaling, LongScaling, RopeConfig, Scaling, YarnScaling
from glassformer.errors import ConfigError
from glassformer.families.common.family import ConfigFields


def read_rope(
    raw: ConfigFields,
    head_dim: int,
    context: int,
    *,
    theta: float = 10_000.0,
    rotary_share: float | None = None,
    keys: tuple[str, str] = ("rope_theta", "partial_rotary_factor"),
    layer_type: str | None = None,
    scaling_key: str | None = "rope_scaling",
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> RopeConfig:
    """Read the rotary settings.

    Args:
        theta, rotary_share: the values if the file has none. `rotary_share` None: the family always rotates full heads.
        keys: the keys of those two outside of `rope_parameters`.
        layer_type: the layer type ("full_attention") under which `rope_parameters` has its settings.
        scaling_key: the key of the scaling outside of `rope_parameters`.
        aliases: other names of scaling types.
    """
    theta, rotary_share = raw.number(keys[0], theta), rotary_share and raw.number(keys[1], rotary_share)
    new, scaling = raw.take("rope_parameters", None), raw.take(scaling_key, None) if scaling_key else None
    if new and layer_type is not None:
        if not isinstance(new, dict) or not {*new} <= {*LAYER_TYPES}:
            raise ConfigError(
                f"{raw.source}: rope_parameters must have the keys {' and '.join(LAYER_TYPES)}, got {new}"
            )
        new = new.get(layer_type)
    if new and scaling and new != scaling:
        raise ConfigError(f"{raw.source}: rope_parameters and {scaling_key} differ: {new} and {scaling}")
    return _rope(new or scaling or {}, raw, head_dim, context, theta, rotary_share, aliases)


def _rope(
    found: Any,
    raw: ConfigFields,
    head_dim: int,
    context: int,
    theta: float,
    share: float | None,
    aliases: Mapping[str, str],
) -> RopeConfig:
    """Read one object of rotary settings. ConfigError: an unknown type, or a key that the type does not have."""
    if not isinstance(found, dict):
        raise ConfigError(f"{raw.source}: rope scaling must be an object, got {found!r}")
    rest = ConfigFields(found, f"{raw.source}: rope scaling {found}")
    theta, share = rest.number("rope_theta", theta), share and rest.number("partial_rotary_factor", share)
    kind = rest.take("rope_type", rest.take("type", "default"))
    for name in ("type", "finetuned"):  # finetuned: about its training only
        rest.take(name, None)
    kind = aliases.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"{raw.source}: rope scaling {kind!r} is not supported, only {', '.join(map(repr, KINDS))}")
    if kind in CONTEXT_SCALINGS:
        original = rest.size("original_max_position_embeddings", context)
        scaling = CONTEXT_SCALINGS[kind](rest, context, raw.size("original_max_position_embeddings", original))
    else:
        factor = rest.number("factor") if kind in ("linear", "dynamic") else None
        scaling = LinearScaling(factor) if factor is not None and kind == "linear" else None
    if kind == "dynamic":  # scales texts longer than the context only, which are not processed here
        rest.expect("original_max_position_embeddings", context, None)
    if rest.unread:
        raise ConfigError(
            f"{raw.source}: rope scaling {kind!r} does not support the keys {', '.join(sorted(rest.unread))}"
        )
    dim = head_dim if share is None else int(head_dim * share)
    return RopeConfig(theta, None if dim == head_dim else dim, scaling)


def _band(rest: ConfigFields, _: int, original: int) -> Scaling:
    factor, low, high = (rest.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    return BandScaling(factor, low, high, original)


def _yarn(rest: ConfigFields, context: int, original: int) -> Scaling:
    factor = rest.number("factor", context / original)
    each, all_ = (rest.take(name, None) and rest.number(name) for name in ("mscale", "mscale_all_dim"))
    gain = partial(yarn_attention_factor, factor)
    return YarnScaling(
        factor=factor,
        original_context=original,
        beta_fast=rest.number("beta_fast", 32.0),
        beta_slow=rest.number("beta_slow", 1.0),
        attention_factor=rest.number("attention_factor", gain(each) / gain(all_) if each and all_ else gain()),
        truncate=rest.flag("truncate", True),
    )


def yarn_attention_factor(factor: float, by: float = 1.0) -> float:
    """Return the factor of queries and keys for a context `factor` times as long (YaRN, equation 26, times `by`)."""
    return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0


def _long(rest: ConfigFields, context: int, original: int) -> Scaling:
    factor = rest.number("factor", context / original)
    gain = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    short, long = (_numbers(rest, name) for name in ("short_factor", "long_factor"))
    return LongScaling(short, long, original, rest.number("attention_factor", gain))


def _numbers(rest: ConfigFields, name: str) -> tuple[float, ...]:
    value = rest.take(name)
    if not isinstance(value, list) or any(type(one) not in (int, float) for one in value):
        raise ConfigError(f"{rest.source}: {name} must be a list of numbers, got {value!r:.100}")
    return tuple(map(float, value))


CONTEXT_SCALINGS = {"llama3": _band, "yarn": _yarn, "longrope": _long}  # types with an original context
KINDS = ("default", "linear", "dynamic", *CONTEXT_SCALINGS)
LAYER_TYPES = ("full_attention", "sliding_attention")


def write_rope(
    rope: RopeConfig | None, head_dim: int, theta_key: str = "rope_theta", factor_key: str | None = None
) -> dict[str, Any]:
    """Return the keys of the base, of `rope_scaling` and, if `factor_key` names it, of the rotary share of a head."""
    if rope is None:
        return {theta_key: None, "rope_scaling": None}
    parts = {} if factor_key is None else {factor_key: 1.0 if rope.dim is None else rotary_factor(rope.dim, head_dim)}
    return {theta_key: rope.theta, "rope_scaling": write_scaling(rope.scaling), **parts}


def rotary_factor(dim: int, head_dim: int) -> float:
    """Return the factor for which int(head_dim * factor) == dim."""
    share = dim / head_dim
    return share if int(head_dim * share) == dim else math.nextafter(share, 1)


def write_scaling(scaling: Scaling | None) -> dict[str, Any] | None:
    """Return a scaling as the object of config.json."""
    match scaling:
        case None:
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case BandScaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low,
                "high_freq_factor": scaling.high,
                "original_max_position_embeddings": scaling.original_context,
            }
        case YarnScaling():
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_context,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "attention_factor": scaling.attention_factor,
                "truncate": scaling.truncate,
            }
        case LongScaling():
            return {
                "rope_type": "longrope",
                "short_factor": list(scaling.short),
                "long_factor": list(scaling.long),
                "original_max_position_embeddings": scaling.original_context,
                "attention_factor": scaling.attention_factor,
            }
