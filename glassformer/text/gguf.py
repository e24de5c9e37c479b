"""A tokenizer inside a GGUF file: `tokenizer.ggml.*` metadata, byte-level BPE for now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.text.patterns import PATTERNS
from glassformer.text.tokenizer import Tokenizer

PRE = {"gpt2": "gpt-2", "qwen2": "qwen2"}  # our names of patterns, and llama.cpp's
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def tokenizer_to_gguf(tokenizer: Tokenizer, vocab_size: int | None = None) -> dict[str, Any]:
    """The metadata of a byte-level BPE tokenizer. Ids up to the embedding's `vocab_size` that have no token are unused.

    TokenizerError where the format cannot say what the tokenizer does.
    """
    layout = tokenizer._layout
    vocab_size = max(tokenizer.vocab_size, vocab_size or 0)
    model = layout["model"]
    if model["type"] != "BPE" or (layout.get("decoder") or {}).get("type") != "ByteLevel":
        raise TokenizerError(f"only byte-level BPE can be put into a GGUF file, and this tokenizer is {tokenizer}")
    pattern = _pattern(layout.get("pre_tokenizer"))
    names = {expression: name for name, expression in PATTERNS.items()}
    if pattern not in names or layout.get("normalizer") is not None:
        raise TokenizerError(f"GGUF has no name for how this tokenizer cuts words: {pattern or 'unknown'}")
    added = {token["id"]: token for token in layout.get("added_tokens", [])}
    vocab = {index: token for token, index in model["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    kinds = {i: CONTROL if token["content"] in tokenizer.special else USER_DEFINED for i, token in added.items()}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PRE[names[pattern]],
        "tokenizer.ggml.tokens": [vocab.get(i, f"[PAD{i}]") for i in range(vocab_size)],
        "tokenizer.ggml.token_type": [kinds.get(i, NORMAL) if i in vocab else UNUSED for i in range(vocab_size)],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": tokenizer.add_bos,
    }
    if tokenizer.eos_id is not None:
        metadata["tokenizer.ggml.eos_token_id"] = tokenizer.eos_id
    if tokenizer.bos_id is not None:
        metadata["tokenizer.ggml.bos_token_id"] = tokenizer.bos_id
    template = tokenizer.chat_template or tokenizer.config.get("chat_template")
    if isinstance(template, str):
        metadata["tokenizer.chat_template"] = template
    return metadata


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file. TokenizerError for a kind that is not understood."""
    kind = metadata.get("tokenizer.ggml.model")
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    names = {theirs: ours for ours, theirs in PRE.items()}
    if kind != "gpt2" or pre not in names:
        raise TokenizerError(
            f"a GGUF tokenizer of kind {kind!r}, {pre!r} is not supported, only 'gpt2' with {[*names]}"
        )
    tokens, kinds, merges = (metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges"))
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise TokenizerError("tokenizer.ggml.tokens must be a list of texts")
    kinds = [NORMAL] * len(tokens) if kinds is None else kinds
    if not isinstance(kinds, list) or len(kinds) != len(tokens) or not isinstance(merges or [], list):
        raise TokenizerError("tokenizer.ggml.token_type must name a kind for each token, and merges be a list")
    used = {i: token for i, token in enumerate(tokens) if kinds[i] != UNUSED}
    added = [
        {"id": i, "content": token, "special": kinds[i] == CONTROL, "normalized": False, "lstrip": False,
         "rstrip": False, "single_word": False}
        for i, token in used.items()
        if kinds[i] in (CONTROL, USER_DEFINED)
    ]  # fmt: skip
    split = {"type": "Split", "pattern": {"Regex": PATTERNS[names[pre]]}, "behavior": "Isolated", "invert": False}
    spelled = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    inside = {token: i for i, token in used.items()}
    layout = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, spelled]},
        "post_processor": None, "decoder": spelled,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": inside, "merges": [merge.split(" ", 1) for merge in merges or []]},
    }  # fmt: skip
    config: dict[str, Any] = {"add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", False))}
    for name in ("bos", "eos"):
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if index is not None and (not isinstance(index, int) or index not in used):
            raise TokenizerError(f"tokenizer.ggml.{name}_token_id = {index!r} is no token's id")
        if index is not None:
            config[f"{name}_token"] = used[index]
    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(json.dumps(layout), config, chat_template=template if isinstance(template, str) else None)


def _pattern(part: Any) -> str | None:
    """The expression by which a pre-tokenizer cuts words."""
    if not isinstance(part, dict):
        return None
    if part["type"] == "ByteLevel":
        return PATTERNS["gpt2"] if part.get("use_regex", True) and not part.get("add_prefix_space") else None
    if part["type"] == "Split":
        return part["pattern"].get("Regex")
    if part["type"] == "Sequence":
        found = [_pattern(one) for one in part["pretokenizers"]]
        return next((one for one in found if one), None) if len(found) <= 2 else None
    return None
