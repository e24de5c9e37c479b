"""Read an encoder-decoder's special tokens and generation settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glassformer.errors import CheckpointError
from glassformer.formats.reader import read_json

GENERATION_CONFIG = "generation_config.json"
CONFIG_TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
SPECIAL_KEYS = (
    *CONFIG_TOKEN_KEYS, "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "min_length",
    "no_repeat_ngram_size",
)  # fmt: skip
GENERATION_KEYS = ("max_length", "num_beams", "length_penalty", "early_stopping")


def read_generation_config(found: Path, metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the settings of generation_config.json, or of a GGUF file's metadata.

    Keys that generation_config.json lacks are read from config.json, where older checkpoints have them.
    """
    if metadata:
        named = {"eos_token_id": "tokenizer.ggml.eos_token_id", "pad_token_id": "tokenizer.ggml.padding_token_id"}
        named["decoder_start_token_id"] = f"{metadata.get('general.architecture')}.decoder_start_token_id"
        return {name: metadata[key] for name, key in named.items() if key in metadata}
    folder = found.parent if found.is_file() else found
    generation = read_json(folder / GENERATION_CONFIG) if (folder / GENERATION_CONFIG).exists() else {}
    older = read_json(folder / "config.json")
    settings = {name: older[name] for name in (*SPECIAL_KEYS, *GENERATION_KEYS) if name in older} | generation
    if older.get("force_bos_token_to_be_generated") and settings.get("forced_bos_token_id") is None:  # the older key
        settings["forced_bos_token_id"] = settings.get("bos_token_id")
    return {name: value for name, value in settings.items() if value is not None}


def token_id(special: Mapping[str, Any], name: str, source: str) -> int | None:
    """Return the token id under a key; None if the key is missing."""
    value = special.get(name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is not None and type(value) is not int:
        raise CheckpointError(f"{source or 'translator'}: {name} must be one token id, got {value!r:.100}")
    return value


def non_negative_int(special: Mapping[str, Any], name: str, source: str) -> int:
    """Return the number under a key; 0 if the key is missing."""
    value = special.get(name, 0)
    if type(value) is not int or value < 0:
        raise CheckpointError(
            f"{source or 'translator'}: {name} must be a whole number of at least 0, got {value!r:.100}"
        )
    return value


def banned_token_ids(special: Mapping[str, Any], source: str) -> tuple[int, ...]:
    """Return the ids of the tokens that are never generated."""
    words = special.get("bad_words_ids", [])
    if not isinstance(words, list) or not all(isinstance(w, list) and len(w) == 1 and type(w[0]) is int for w in words):
        raise CheckpointError(
            f"{source or 'translator'}: bad_words_ids must be a list of lists of one token id, got {words!r:.100}"
        )
    return tuple(word[0] for word in words)
