"""Export of a tokenizer to GGUF metadata; `tokenizer_read` is the inverse."""

import base64
import json
import warnings
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.formats.gguf.tokenizer_keys import (
    ACCENTS,
    ID_KEYS,
    IGNORE_MERGES,
    KEY,
    LOWERCASE,
    PRE_TOKENIZERS,
    TEMPLATE,
    TEMPLATES,
)
from glassformer.formats.gguf.tokenizer_read import tokenizer_from_gguf
from glassformer.text.hf_tokenizer import HFTokenizer
from glassformer.text.sentencepiece.model_file import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    byte_pieces,
)
from glassformer.text.sentencepiece.normalizer import SPACE
from glassformer.text.sentencepiece.tokenizer import SentencePieceTokenizer
from glassformer.text.tokenizer import Tokenizer


def tokenizer_to_gguf(tokenizer: Tokenizer, vocab_size: int | None = None) -> dict[str, Any]:
    """Return the metadata from which `tokenizer_from_gguf` and llama.cpp create the same tokenizer.

    Args:
        tokenizer: The tokenizer.
        vocab_size: Number of rows of the model's embedding, if it is larger than the tokenizer's vocabulary.

    Raises:
        TokenizerError: GGUF cannot represent the tokenizer.
    """
    backend = tokenizer.backend
    size = max(tokenizer.vocab_size, vocab_size or 0)
    if isinstance(backend, SentencePieceTokenizer):
        metadata = _sentencepiece_metadata(backend)
    elif isinstance(backend, HFTokenizer):
        metadata = _hf_metadata(backend)
    else:
        raise TokenizerError(f"GGUF cannot represent a tokenizer of the kind {backend.kind}")
    types = {
        token.id: CONTROL if token.text in backend.special_tokens else USER_DEFINED for token in backend.added_tokens
    }
    tokens, kinds = metadata[KEY + "tokens"], metadata[KEY + "token_type"]
    for token in backend.added_tokens:
        tokens[token.id] = token.text
        if kinds.get(token.id, NORMAL) != UNKNOWN:
            kinds[token.id] = types[token.id]
    metadata[KEY + "tokens"] = [tokens.get(index, f"[PAD{index}]") for index in range(size)]
    metadata[KEY + "token_type"] = [kinds.get(index, NORMAL if index in tokens else UNUSED) for index in range(size)]
    if scores := metadata.get(KEY + "scores"):
        metadata[KEY + "scores"] = [scores.get(index, -10000.0) for index in range(size)]
    for name, key in ID_KEYS.items():
        text = tokenizer.config.get(name)
        text = text.get("content") if isinstance(text, dict) else text
        if text in backend.vocab:
            metadata[KEY + key] = backend.vocab[text]
    if metadata[KEY + "model"] == "bert":
        metadata[KEY + "cls_token_id"] = tokenizer.encode("")[0]
        metadata[KEY + "bos_token_id"] = metadata[KEY + "cls_token_id"]
        metadata[KEY + "seperator_token_id"] = tokenizer.encode("")[-1]
        metadata |= {KEY + "add_bos_token": True, KEY + "add_eos_token": False}
    else:
        _add_bos_eos_keys(tokenizer, metadata)
    templates = tokenizer.chat_templates
    if "default" in templates:
        metadata[TEMPLATE] = templates.pop("default")
    if templates:
        metadata |= {f"{TEMPLATE}.{name}": template for name, template in templates.items()}
        metadata[TEMPLATES] = list(templates)
    return metadata


def lost_in_gguf(tokenizer: Tokenizer) -> list[str]:
    """Return the parts of a tokenizer that a GGUF file does not hold, so that some texts get other ids.

    These are flags of added tokens, NFC normalization, and the rule for texts that begin with a space.

    Raises:
        TokenizerError: GGUF cannot represent the tokenizer.
    """
    imported = {token.text: token for token in tokenizer_from_gguf(tokenizer_to_gguf(tokenizer)).backend.added_tokens}
    layout = tokenizer.backend.layout if isinstance(tokenizer.backend, HFTokenizer) else {}
    steps = [*_steps(layout.get("normalizer")), *_steps(layout.get("pre_tokenizer"))]
    flags = ["lstrip", "rstrip", "single_word", *(["normalized"] if layout.get("normalizer") else [])]
    lost = [
        f"{flag} of {token.text}"
        for token in tokenizer.backend.added_tokens
        for flag in flags
        if getattr(token, flag) != getattr(imported.get(token.text), flag, False)
    ]
    if any(step["type"] == "NFC" for step in steps):
        lost.append("NFC normalization")
    if any(step["type"] == "Metaspace" and step["prepend_scheme"] != "never" for step in steps):
        lost.append("no second space before a text that begins with one")
    return lost


def warn_of_losses(tokenizer: Tokenizer) -> None:
    """Warn of the parts of a tokenizer that a GGUF file does not hold. Raises as `lost_in_gguf` does."""
    if lost := lost_in_gguf(tokenizer):
        warnings.warn(f"GGUF cannot store {', '.join(lost)}: some texts get other token ids", stacklevel=3)


def _add_bos_eos_keys(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    """Add the keys for BOS and EOS. Raises TokenizerError for any other prefix or suffix."""
    prefix, suffix = tokenizer.prefix_ids, tokenizer.suffix_ids
    if prefix not in ([], [tokenizer.bos_id]) or suffix not in ([], [tokenizer.eos_id]):
        raise TokenizerError(
            f"GGUF supports only the BOS before a text and the EOS after it, got {prefix} and {suffix}"
        )
    metadata |= {KEY + "add_bos_token": bool(prefix), KEY + "add_eos_token": bool(suffix)}
    if suffix and isinstance(tokenizer.backend, HFTokenizer):
        pair = tokenizer.encode_pairs([("", "")])[0][0]
        metadata[KEY + "add_sep_token"] = pair == [*prefix, *suffix * 3]
        if not metadata[KEY + "add_sep_token"] and pair != [*prefix, *suffix * 2]:
            raise TokenizerError(f"GGUF cannot represent two texts joined as {pair}")
        if metadata[KEY + "model"] == "gpt2" and metadata[KEY + "pre"] == "gpt-2":
            metadata[KEY + "pre"] = "roberta-bpe"


def _sentencepiece_metadata(backend: SentencePieceTokenizer) -> dict[str, Any]:
    model = backend.original_model
    if model.suffix or not model.escape:
        raise TokenizerError(
            "GGUF cannot represent a SentencePiece model with spaces after words, or without ▁ for spaces"
        )
    if model.kind == BPE and (model.charsmap or model.remove_extra_spaces):
        raise TokenizerError("GGUF cannot represent a SentencePiece BPE model that normalizes text")
    metadata: dict[str, Any] = {
        KEY + "model": "llama" if model.kind == BPE else "t5",
        KEY + "pre": "default",
        KEY + "tokens": {index: piece.text for index, piece in enumerate(model.pieces)},
        KEY + "scores": {index: piece.score for index, piece in enumerate(model.pieces)},
        KEY + "token_type": {index: piece.type for index, piece in enumerate(model.pieces)},
        KEY + "add_space_prefix": model.dummy_prefix,
    }
    if model.kind == UNIGRAM:
        metadata[KEY + "remove_extra_whitespaces"] = model.remove_extra_spaces
        if model.charsmap:
            metadata[KEY + "precompiled_charsmap"] = list(model.charsmap)
    return metadata


def _hf_metadata(backend: HFTokenizer) -> dict[str, Any]:
    model, layout = backend.layout["model"], backend.layout
    if backend.kind == "WordPiece":
        return _wordpiece_metadata(backend)
    if backend.kind == "Unigram":
        return _unigram_metadata(backend)
    if backend.kind != "BPE":
        raise TokenizerError(f"GGUF cannot represent a tokenizer of the kind {backend.kind}")
    vocab = model["vocab"]
    tokens = {index: token for token, index in vocab.items()}
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    if not pairs:
        raise TokenizerError("GGUF cannot represent a byte-pair encoding without merges")
    if model.get("byte_fallback"):
        return _byte_fallback_metadata(backend, tokens, pairs)
    pre_tokenizer = layout.get("pre_tokenizer") or {}
    names = next((names.split() for known, names in PRE_TOKENIZERS if _same_pre_tokenizer(pre_tokenizer, known)), [])
    normal = layout.get("normalizer") or {}
    normal = None if normal.get("normalizers") == [] else normal.get("type")  # DeepSeek has an empty sequence
    if not names or normal not in (None, "NFC"):  # llama.cpp has no NFC; Qwen's GGUF files omit it too
        part = json.dumps(pre_tokenizer)[:200] if not names else normal
        raise TokenizerError(f"GGUF has no name for this pre-tokenizer: {part}")
    if not model.get("ignore_merges"):  # keep the names that do not imply ignore_merges
        names = [name for name in names if name not in IGNORE_MERGES]
    if not names:
        raise TokenizerError("GGUF has a name for this pre-tokenizer only for models with ignore_merges")
    return {
        KEY + "model": "gpt2",
        KEY + "pre": names[0],
        KEY + "tokens": tokens,
        KEY + "token_type": dict.fromkeys(tokens, NORMAL),
        KEY + "merges": [" ".join(pair) for pair in pairs],
    }


def _unigram_metadata(backend: HFTokenizer) -> dict[str, Any]:
    """Return the keys of T5's and XLM-RoBERTa's `tokenizer.json`: pieces with scores and a compiled charsmap."""
    model, steps = backend.layout["model"], _steps(backend.layout["normalizer"])
    charsmap = [step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"]
    splitters = {step["type"]: step for step in _steps(backend.layout["pre_tokenizer"])}
    metaspace, step_types = splitters.get("Metaspace", {}), [step.get("type") for step in steps]
    supported = (
        len(charsmap) == 1
        and {*step_types} <= {"Precompiled", "Replace", "Strip"}
        and {*splitters} <= {"WhitespaceSplit", "Metaspace"}
    )
    if not supported or metaspace.get("prepend_scheme", "always") != "always" or model.get("unk_id") is None:
        parts = json.dumps([backend.layout.get("normalizer"), backend.layout.get("pre_tokenizer")])
        raise TokenizerError(
            f"GGUF cannot represent a unigram model with this normalizer and pre-tokenizer: {parts[:200]}"
        )
    pieces, all_bytes = model["vocab"], {*byte_pieces()} if model.get("byte_fallback") else set()
    types = {index: BYTE if piece in all_bytes else NORMAL for index, (piece, _) in enumerate(pieces)}
    return {
        KEY + "model": "t5",
        KEY + "pre": "default",
        KEY + "tokens": {index: piece for index, (piece, _) in enumerate(pieces)},
        KEY + "scores": {index: score for index, (_, score) in enumerate(pieces)},
        KEY + "token_type": types | {model["unk_id"]: UNKNOWN},
        KEY + "add_space_prefix": True,
        KEY + "remove_extra_whitespaces": True,
        KEY + "precompiled_charsmap": list(base64.b64decode(charsmap[0])),
    }


def _same_pre_tokenizer(first: Any, second: Any) -> bool:
    """Return whether two pre-tokenizers split equally, ignoring `trim_offsets` and the escaping of line ends."""

    def normalized(layout: Any) -> Any:
        layout = json.loads(json.dumps(layout).replace(r"\\r", r"\r").replace(r"\\n", r"\n"))
        steps = layout.get("pretokenizers", [layout])
        return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]

    return normalized(first) == normalized(second)


_TO_ESCAPE: list[dict[str, Any]] = [  # steps that write spaces as ▁
    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    {"type": "Metaspace", "replacement": SPACE},
]
_SPACES: list[dict[str, Any]] = [
    *_TO_ESCAPE,
    {"type": "Prepend", "prepend": SPACE},
    # Gemma: without an effect, since there are no spaces any more
    {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
]


def _steps(part: Any) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer, which is none, one or a sequence."""
    if part is None:
        return []
    nested = part.get("normalizers", part.get("pretokenizers"))
    return [part] if nested is None else [step for one in nested for step in _steps(one)]


def _byte_fallback_metadata(backend: HFTokenizer, tokens: dict[int, str], pairs: list[list[str]]) -> dict[str, Any]:
    """Return the keys of Llama's `tokenizer.json`: a token's score is the rank of its first merge."""
    steps = [*_steps(backend.layout["normalizer"]), *_steps(backend.layout["pre_tokenizer"])]
    plain = [{key: value for key, value in step.items() if key not in ("prepend_scheme", "split")} for step in steps]
    if not any(step in _TO_ESCAPE for step in plain) or not all(step in _SPACES for step in plain):
        raise TokenizerError(f"GGUF cannot represent this normalizer and pre-tokenizer: {json.dumps(steps)[:200]}")
    merge_rank = {left + right: rank for rank, (left, right) in reversed(list(enumerate(pairs)))}
    added, all_bytes = {token.id for token in backend.added_tokens}, set(byte_pieces())
    types = {index: BYTE if token in all_bytes else NORMAL for index, token in tokens.items()}
    unknown = backend.layout["model"].get("unk_token")
    types |= {index: UNKNOWN for index, token in tokens.items() if token == unknown}
    unmerged = [
        t for i, t in tokens.items() if types[i] == NORMAL and i not in added and len(t) > 1 and t not in merge_rank
    ]
    if unmerged:
        raise TokenizerError(f"GGUF cannot represent the token {unmerged[0]!r}, which no merge forms")
    prefix = any(s["type"] == "Prepend" or s.get("prepend_scheme", "never") != "never" for s in steps)
    return {
        KEY + "model": "llama",
        KEY + "pre": "default",
        KEY + "tokens": tokens,
        KEY + "scores": {index: -float(merge_rank.get(token, 0)) for index, token in tokens.items()},
        KEY + "token_type": types,
        KEY + "add_space_prefix": prefix,
    }


def _wordpiece_metadata(backend: HFTokenizer) -> dict[str, Any]:
    normalizer = backend.layout.get("normalizer") or {}
    if normalizer.get("type") != "BertNormalizer" or not normalizer.get("handle_chinese_chars"):
        raise TokenizerError("GGUF cannot represent a WordPiece model that does not split Chinese characters")
    lowercase = bool(normalizer.get("lowercase"))
    accents = lowercase if normalizer.get("strip_accents") is None else bool(normalizer["strip_accents"])
    special = {token.text for token in backend.added_tokens}

    def gguf_text(token: str) -> str:
        if token in special:
            return token
        return token.removeprefix("##") if token.startswith("##") else SPACE + token

    tokens = {index: gguf_text(token) for token, index in backend.layout["model"]["vocab"].items()}
    unknown = backend.layout["model"]["vocab"][backend.layout["model"]["unk_token"]]
    types = {index: UNKNOWN if index == unknown else NORMAL for index in tokens}
    metadata: dict[str, Any] = {KEY + "model": "bert", KEY + "pre": "default", KEY + "tokens": tokens}
    metadata |= {} if lowercase else {KEY + LOWERCASE: False}
    metadata |= {} if accents == lowercase else {KEY + ACCENTS: accents}
    return metadata | {KEY + "token_type": types}
