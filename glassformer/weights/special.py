"""What a checkpoint of an encoder-decoder says of tokens, and of how to write, beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glassformer.weights.reader import read_json

GENERATION = "generation_config.json"
IN_CONFIG = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
SPECIAL = (*IN_CONFIG, "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids")  # those that hold here
CARRIED = ("max_length", "min_length", "num_beams", "length_penalty", "early_stopping", "no_repeat_ngram_size")


def special_of(found: Path, metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the generation_config.json of a folder says, and of what it does not say config.json, as in older ones; or
    the metadata of a GGUF file."""
    if metadata:
        named = {"eos_token_id": "tokenizer.ggml.eos_token_id", "pad_token_id": "tokenizer.ggml.padding_token_id"}
        named["decoder_start_token_id"] = f"{metadata.get('general.architecture')}.decoder_start_token_id"
        return {name: metadata[key] for name, key in named.items() if key in metadata}
    folder = found.parent if found.is_file() else found
    generation = read_json(folder / GENERATION) if (folder / GENERATION).exists() else {}
    older = read_json(folder / "config.json")
    told = {name: older[name] for name in (*SPECIAL, *CARRIED) if name in older} | generation
    if older.get("force_bos_token_to_be_generated") and told.get("forced_bos_token_id") is None:  # an older spelling
        told["forced_bos_token_id"] = told.get("bos_token_id")
    return {name: value for name, value in told.items() if value is not None}
