"""Convert a GGUF file's metadata to a configuration and back.

Metadata keys are converted to those of config.json, so that each family's own reader reads them. Settings that the
format cannot describe raise ConfigError in both directions, so that a file never describes a different model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from glassformer.config import LayerConfig, LongScaling, ModelConfig, RecurrentConfig, TextEncoderConfig, as_dict
from glassformer.errors import ConfigError
from glassformer.families import FAMILIES, family_of
from glassformer.families.common.family import ConfigFields, Family
from glassformer.formats.gguf.architectures import (
    ARCHITECTURES,
    LLAMA,
    OPTIONAL_KEYS,
    SAME_AS,
    UNSUPPORTED,
    GgufArchitecture,
)
from glassformer.formats.gguf.metadata_keys import MetadataFields, divisors, has_divisors
from glassformer.formats.gguf.tensor_names import HEAD

TransformerConfig = ModelConfig | TextEncoderConfig
# Keys that llama.cpp does not use, or not for logits, and values that switch something off.
UNUSED_KEYS = ("tensor_data_layout", "pooling_type")
NEUTRAL_KEYS: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,), "attention.clamp_kqv": (0.0,), "attention.max_alibi_bias": (0.0,),
    "attention.sliding_window": (0,), "attn_logit_softcapping": (0.0,), "expert_count": (0,),
    "expert_shared_count": (0,), "expert_used_count": (0,), "final_logit_softcapping": (0.0,), "logit_scale": (1.0,),
    "nextn_predict_layers": (0,), "embedding_scale": (1.0,), "residual_scale": (1.0,),
}  # fmt: skip
TYPES_KEY = "tokenizer.ggml.token_type_count"  # a size of the model, in spite of its name


class GgufMetadata(NamedTuple):
    """A configuration in GGUF: the architecture's name, the metadata, and the tensors that hold the rest."""

    architecture: str
    metadata: dict[str, Any]
    tensors: dict[str, list[float]]


def gguf_family(family: Family) -> Family:
    """Return the family with GGUF's tensor rules. ConfigError: GGUF does not support the family."""
    name = SAME_AS.get(family.name, family.name)
    if name not in ARCHITECTURES:
        why = f": {UNSUPPORTED[name]}" if name in UNSUPPORTED else ""
        known = ", ".join(sorted({*ARCHITECTURES, *SAME_AS}))
        raise ConfigError(f"{family.name} cannot be stored as GGUF{why}; supported families are {known}")
    gguf = ARCHITECTURES[name]
    numbers = () if gguf.rope is None else tuple(re.escape(tensor) for tensor in gguf.rope.tensors)
    return replace(
        family, rules=gguf.rules, prefix="", ignored=(*numbers, *gguf.ignored_tensors), alternatives=gguf.alternatives
    )


def _detect_family(metadata: Mapping[str, Any], tensors: Collection[str], source: str) -> str:
    """Return the name of a file's family. ConfigError: unknown architecture; the message gives the most similar one."""
    architecture = metadata.get("general.architecture")
    names = [name for name, gguf in ARCHITECTURES.items() if gguf.architecture == architecture]
    if not names:
        known = sorted({gguf.architecture for gguf in ARCHITECTURES.values()})
        near = _nearest({key.removeprefix(f"{architecture}.") for key in metadata}, tensors) if tensors else None
        hint = f"; its keys and tensors are most like those of {near!r}" if near else ""
        raise ConfigError(f"{source}: unknown architecture {architecture!r:.100}{hint}. Known: {', '.join(known)}")
    routed = bool(metadata.get(f"{architecture}.expert_count"))
    for name in names:
        only, needs = ARCHITECTURES[name].required.items(), ARCHITECTURES[name].required_tensor
        if needs is not None and needs not in tensors:
            continue
        if ("expert_count" in ARCHITECTURES[name].keys) == routed and all(
            metadata.get(f"{architecture}.{k}", v) == v for k, v in only
        ):
            return name
    return names[0]


def _nearest(keys: set[str], tensors: Collection[str]) -> str:
    """Return the architecture with the fewest unknown keys and tensors, and among these the fewest missing keys."""
    patterns = {re.sub(r"\d+", "{i}", name) for name in tensors}

    def distance(gguf: GgufArchitecture) -> tuple[int, int]:
        names = {rule.tensor_name for rule in (*gguf.rules, *gguf.alternatives)}
        return len(keys - gguf.keys.keys()) + len(patterns - names), len(gguf.keys.keys() - keys)

    return min((LLAMA, *ARCHITECTURES.values()), key=distance).architecture  # of equals the first: Llama


def read_metadata(
    metadata: Mapping[str, Any],
    tensors: Collection[str],
    vocab_size: int,
    source: str,
    ignore: tuple[str, ...] = (),
    numbers: Callable[[str], list[float]] = lambda name: [],
) -> TransformerConfig:
    """Convert metadata to a configuration.

    Args:
        tensors: the names of the file's tensors.
        vocab_size: the number of rows of the file's embedding.
        numbers: reads a short tensor that belongs to the configuration.

    Raises:
        ConfigError: lists the unknown keys.
    """
    name = _detect_family(metadata, tensors, source)
    gguf = ARCHITECTURES[name]
    start = f"{gguf.architecture}."
    own = {key.removeprefix(start): value for key, value in metadata.items() if key.startswith(start)}
    fields = MetadataFields(
        ConfigFields(own, source, ignore), tensors, numbers, has_key_length="attention.key_length" in gguf.keys
    )
    with fields.keys.naming_source():
        raw = _config_json(gguf, fields) | {"vocab_size": vocab_size}
        raw |= {} if gguf.token_types_key is None else {gguf.token_types_key: metadata.get(TYPES_KEY, 2)}
        for key, value in gguf.required.items():
            fields.keys.expect(key, value)
        for key in (*gguf.write_only, *gguf.must_match, *gguf.ignored_keys, *UNUSED_KEYS):
            fields.keys.take(key, None)
        fields.keys.close(NEUTRAL_KEYS)
        config = FAMILIES[name].read(ConfigFields(raw, source))
    assert not isinstance(config, RecurrentConfig), "GGUF has no recurrent models"
    for key, value_of in gguf.must_match.items():
        if key not in gguf.keys and own.get(key, value_of(config)) != value_of(config):
            raise ConfigError(f"{source}: {start}{key} = {own[key]} is not supported, only {value_of(config)}")
    return config


def _config_json(gguf: GgufArchitecture, fields: MetadataFields) -> dict[str, Any]:
    """Return the file's metadata as keys of config.json."""
    keys, raw = fields.keys, {"tie_word_embeddings": HEAD not in fields.tensors}
    head_dim, _ = fields.head_dim_and_context()
    defaults = {"attention.head_count_kv": keys.size("attention.head_count"), "attention.key_length": head_dim}
    defaults |= gguf.defaults
    raw |= {
        theirs: keys.take(key, defaults[key]) if key in defaults else keys.take(key)
        for key, theirs in gguf.keys.items()
        if key in keys.raw or key not in OPTIONAL_KEYS or key in defaults
    }
    raw |= {theirs: fields.has_tensor(tensor) for theirs, tensor in gguf.true_if_present.items()}
    raw |= {theirs: not fields.has_tensor(tensor) for theirs, tensor in gguf.true_if_absent.items()}
    raw |= gguf.implied
    raw |= {} if gguf.rope is None else gguf.rope.read(fields)
    raw |= {} if gguf.windows is None else gguf.windows.read(fields)
    raw |= {} if gguf.latent is None else gguf.latent.read(fields)
    return raw | gguf.derive(raw)


def without_heads(config: TransformerConfig) -> TransformerConfig:
    """Return the part of a configuration that GGUF can hold: an encoder without heads, positions from row 0."""
    if not isinstance(config, TextEncoderConfig):
        return config
    return replace(config, position_offset=0, pooler=False, head=None, next_sentence=False)


def write_metadata(config: TransformerConfig) -> GgufMetadata:
    """Convert a configuration to metadata. ConfigError: GGUF cannot describe it."""
    family = gguf_family(family_of(config))
    config = replace(without_heads(config), family=SAME_AS.get(config.family, config.family))
    gguf, raw = ARCHITECTURES[config.family], FAMILIES[config.family].write(config)
    own = {key: raw[theirs] for key, theirs in {**gguf.write_only, **gguf.keys}.items() if raw.get(theirs) is not None}
    own |= {key: value_of(config) for key, value_of in gguf.must_match.items()} | dict(gguf.required)
    tensors: dict[str, list[float]] = {}
    if isinstance(config, ModelConfig):
        rope_keys, tensors = ({}, {}) if gguf.rope is None else gguf.rope.write(config)
        own |= rope_keys | ({} if gguf.windows is None else gguf.windows.write(config))
        own |= {} if gguf.latent is None else gguf.latent.write(config)
    metadata: dict[str, Any] = {"general.architecture": gguf.architecture}
    metadata |= {f"{gguf.architecture}.{key}": value for key, value in own.items()}
    if isinstance(config, TextEncoderConfig):
        metadata[TYPES_KEY] = config.n_token_types or 1  # llama.cpp rejects 0; with 1 it needs no table
    present = {tensor for theirs, tensor in gguf.true_if_present.items() if raw.get(theirs)} | {*tensors}
    present |= {tensor for theirs, tensor in gguf.true_if_absent.items() if not raw.get(theirs)}
    present |= {gguf.required_tensor} if gguf.required_tensor is not None else set()
    present |= {HEAD} if isinstance(config, ModelConfig) and not config.tied_head else set()
    cannot = f"GGUF's {gguf.architecture} cannot describe this {family.name} model"
    try:
        restored = read_metadata(metadata, present, config.vocab_size, "a file", numbers=tensors.__getitem__)
    except ConfigError as error:
        raise ConfigError(f"{cannot}: {error}") from None
    if difference := _first_difference(as_dict(_canonical(restored)), as_dict(_canonical(config))):
        path, got = difference
        raise ConfigError(f"{cannot}: {path} would be {got!r}")
    return GgufMetadata(gguf.architecture, metadata, tensors)


def _canonical(config: TransformerConfig) -> TransformerConfig:
    """Return a canonical form of equal configurations: no window as long as the context, scalings as divisors."""

    def canonical(layer: LayerConfig) -> LayerConfig:
        attention, rope = layer.attention, layer.attention.rope
        window = attention.window if (attention.window or config.context_length) < config.context_length else None
        if rope is not None and has_divisors(rope.scaling):
            by = tuple(divisors(rope, attention.head_dim))
            rope = replace(rope, scaling=LongScaling(by, by, config.context_length))
        return replace(layer, attention=replace(attention, rope=rope, window=window))

    return replace(config, layers=tuple(canonical(layer) for layer in config.layers))


def _first_difference(a: Any, b: Any, path: str = "") -> tuple[str, Any] | None:
    """Return the first difference of two configurations as (path, value in `a`), to float32 precision; or None."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        rows = [(key, a[key], b[key]) for key in a]
    elif isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        rows = [(str(i), one, other) for i, (one, other) in enumerate(zip(a, b, strict=True))]
    elif isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-6):
        return None
    else:
        return None if a == b else (path.removeprefix("."), a)
    return next((found for key, one, other in rows if (found := _first_difference(one, other, f"{path}.{key}"))), None)
