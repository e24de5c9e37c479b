"""Export of a tokenizer to GGUF metadata; `tokenizer_read` is the inverse."""

import base64
import json
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.formats.gguf.tokenizer_keys import ACCENTS, CUTS, IDS, KEY, LOWERCASE, TEMPLATE, WHOLE_WORDS
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
    core = tokenizer.backend
    size = max(tokenizer.vocab_size, vocab_size or 0)
    if isinstance(core, SentencePieceTokenizer):
        found = _pieces_out(core)
    elif isinstance(core, HFTokenizer):
        found = _library_out(core)
    else:
        raise TokenizerError(f"GGUF cannot represent a tokenizer of the kind {core.kind}")
    types = {token.id: CONTROL if token.text in core.special_tokens else USER_DEFINED for token in core.added_tokens}
    tokens, kinds = found[KEY + "tokens"], found[KEY + "token_type"]
    for token in core.added_tokens:
        tokens[token.id] = token.text
        if kinds.get(token.id, NORMAL) != UNKNOWN:
            kinds[token.id] = types[token.id]
    found[KEY + "tokens"] = [tokens.get(index, f"[PAD{index}]") for index in range(size)]
    found[KEY + "token_type"] = [kinds.get(index, NORMAL if index in tokens else UNUSED) for index in range(size)]
    if scores := found.get(KEY + "scores"):
        found[KEY + "scores"] = [scores.get(index, -10000.0) for index in range(size)]
    for name, key in IDS.items():
        text = tokenizer.config.get(name)
        text = text.get("content") if isinstance(text, dict) else text
        if text in core.vocab:
            found[KEY + key] = core.vocab[text]
    if found[KEY + "model"] == "bert":
        found[KEY + "cls_token_id"] = tokenizer.encode("")[0]
        found[KEY + "bos_token_id"] = found[KEY + "cls_token_id"]
        found[KEY + "seperator_token_id"] = tokenizer.encode("")[-1]
        found |= {KEY + "add_bos_token": True, KEY + "add_eos_token": False}
    else:
        _frame_out(tokenizer, found)
    if tokenizer.chat_template is not None:
        found[TEMPLATE] = tokenizer.chat_template
    elif isinstance(template := tokenizer.config.get("chat_template"), str):
        found[TEMPLATE] = template
    return found


def _frame_out(tokenizer: Tokenizer, found: dict[str, Any]) -> None:
    """Add the keys for BOS and EOS. Raises TokenizerError for other ids around a text."""
    before, after = tokenizer.prefix_ids, tokenizer.suffix_ids
    if before not in ([], [tokenizer.bos_id]) or after not in ([], [tokenizer.eos_id]):
        raise TokenizerError(f"GGUF supports only a BOS before and an EOS after a text, got {before} and {after}")
    found |= {KEY + "add_bos_token": bool(before), KEY + "add_eos_token": bool(after)}
    if after and isinstance(tokenizer.backend, HFTokenizer):
        pair = tokenizer.encode_pairs([("", "")])[0][0]
        found[KEY + "add_sep_token"] = pair == [*before, *after * 3]
        if not found[KEY + "add_sep_token"] and pair != [*before, *after * 2]:
            raise TokenizerError(f"GGUF cannot represent two texts joined as {pair}")
        if found[KEY + "model"] == "gpt2" and found[KEY + "pre"] == "gpt-2":
            found[KEY + "pre"] = "roberta-bpe"


def _pieces_out(core: SentencePieceTokenizer) -> dict[str, Any]:
    model = core.original_model
    if model.suffix or not model.escape:
        raise TokenizerError(
            "GGUF cannot represent a SentencePiece model with spaces after words, or spaces not written as ▁"
        )
    if model.kind == BPE and (model.charsmap or model.remove_extra_spaces):
        raise TokenizerError("GGUF cannot represent a SentencePiece BPE that normalizes text")
    found: dict[str, Any] = {
        KEY + "model": "llama" if model.kind == BPE else "t5",
        KEY + "pre": "default",
        KEY + "tokens": {index: piece.text for index, piece in enumerate(model.pieces)},
        KEY + "scores": {index: piece.score for index, piece in enumerate(model.pieces)},
        KEY + "token_type": {index: piece.type for index, piece in enumerate(model.pieces)},
        KEY + "add_space_prefix": model.dummy_prefix,
    }
    if model.kind == UNIGRAM:
        found[KEY + "remove_extra_whitespaces"] = model.remove_extra_spaces
        if model.charsmap:
            found[KEY + "precompiled_charsmap"] = list(model.charsmap)
    return found


def _library_out(core: HFTokenizer) -> dict[str, Any]:
    model, layout = core.layout["model"], core.layout
    if core.kind == "WordPiece":
        return _wordpieces_out(core)
    if core.kind == "Unigram":
        return _unigram_out(core)
    if core.kind != "BPE":
        raise TokenizerError(f"GGUF cannot represent a tokenizer of the kind {core.kind}")
    vocab = model["vocab"]
    tokens = {index: token for token, index in vocab.items()}
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    if model.get("byte_fallback"):
        return _fallback_out(core, tokens, pairs)
    cut = layout.get("pre_tokenizer") or {}
    names = next((row.split() for known, row in CUTS if _same_cut(cut, known)), [])
    normal = layout.get("normalizer") or {}
    normal = None if normal.get("normalizers") == [] else normal.get("type")  # DeepSeek's are a list of none
    if not names or normal not in (None, "NFC"):  # llama.cpp has no NFC; Qwen's files in GGUF leave it out too
        what = json.dumps(cut)[:200] if not names else normal
        raise TokenizerError(f"GGUF has no name for this pre-tokenizer: {what}")
    if not model.get("ignore_merges"):  # the same pre-tokenizer, without ignore_merges
        names = [name for name in names if name not in WHOLE_WORDS]
    if not names:
        raise TokenizerError("GGUF names this pre-tokenizer only for models with ignore_merges")
    return {
        KEY + "model": "gpt2",
        KEY + "pre": names[0],
        KEY + "tokens": tokens,
        KEY + "token_type": dict.fromkeys(tokens, NORMAL),
        KEY + "merges": [" ".join(pair) for pair in pairs],
    }


def _unigram_out(core: HFTokenizer) -> dict[str, Any]:
    """Return the keys of T5's and XLM-RoBERTa's `tokenizer.json`: pieces with scores, and compiled rules."""
    model, steps = core.layout["model"], core.layout.get("normalizer") or {}
    steps = steps.get("normalizers", [steps])
    charsmap = [step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"]
    cuts = core.layout.get("pre_tokenizer") or {}
    cuts = {step["type"]: step for step in cuts.get("pretokenizers", [cuts])}
    spaced, rest = cuts.get("Metaspace", {}), [step.get("type") for step in steps]
    whole = (
        len(charsmap) == 1
        and {*rest} <= {"Precompiled", "Replace", "Strip"}
        and {*cuts} <= {"WhitespaceSplit", "Metaspace"}
    )
    if not whole or spaced.get("prepend_scheme", "always") != "always" or model.get("unk_id") is None:
        parts = json.dumps([core.layout.get("normalizer"), core.layout.get("pre_tokenizer")])
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


def _same_cut(one: Any, other: Any) -> bool:
    """Return whether two pre-tokenizers split alike, ignoring `trim_offsets` and the two spellings of line ends."""

    def normalized(cut: Any) -> Any:
        cut = json.loads(json.dumps(cut).replace(r"\\r", r"\r").replace(r"\\n", r"\n"))
        steps = cut.get("pretokenizers", [cut])
        return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]

    return normalized(one) == normalized(other)


def _fallback_out(core: HFTokenizer, tokens: dict[int, str], pairs: list[list[str]]) -> dict[str, Any]:
    """Return the keys of Llama's `tokenizer.json`: a token's score is the rank of its first merge."""
    steps = json.dumps([core.layout.get("normalizer"), core.layout.get("pre_tokenizer")])
    prefixed = [step for step in ("Prepend", "Metaspace", "Replace") if f'"type": "{step}"' in steps]
    if not prefixed or "Precompiled" in steps or "Split" in steps.replace('"split"', ""):
        raise TokenizerError(f"GGUF cannot represent this normalization: {steps[:200]}")
    made = {left + right: rank for rank, (left, right) in reversed(list(enumerate(pairs)))}
    added, all_bytes = {token.id for token in core.added_tokens}, set(byte_pieces())
    types = {index: BYTE if token in all_bytes else NORMAL for index, token in tokens.items()}
    unknown = core.layout["model"].get("unk_token")
    types |= {index: UNKNOWN for index, token in tokens.items() if token == unknown}
    odd = [t for i, t in tokens.items() if types[i] == NORMAL and i not in added and len(t) > 1 and t not in made]
    if odd:
        raise TokenizerError(f"GGUF would merge the token {odd[0]!r}, which no merge forms")
    prefix = "Prepend" in prefixed or ("Metaspace" in prefixed and '"prepend_scheme": "never"' not in steps)
    return {
        KEY + "model": "llama",
        KEY + "pre": "default",
        KEY + "tokens": tokens,
        KEY + "scores": {index: -float(made.get(token, 0)) for index, token in tokens.items()},
        KEY + "token_type": types,
        KEY + "add_space_prefix": prefix,
    }


def _wordpieces_out(core: HFTokenizer) -> dict[str, Any]:
    normalizer = core.layout.get("normalizer") or {}
    if normalizer.get("type") != "BertNormalizer" or not normalizer.get("handle_chinese_chars"):
        raise TokenizerError("GGUF cannot represent a WordPiece model that does not split Chinese characters")
    lowercase = bool(normalizer.get("lowercase"))
    accents = lowercase if normalizer.get("strip_accents") is None else bool(normalizer["strip_accents"])
    special = {token.text for token in core.added_tokens}

    def spelled(token: str) -> str:
        if token in special:
            return token
        return token.removeprefix("##") if token.startswith("##") else SPACE + token

    tokens = {index: spelled(token) for token, index in core.layout["model"]["vocab"].items()}
    unknown = core.layout["model"]["vocab"][core.layout["model"]["unk_token"]]
    types = {index: UNKNOWN if index == unknown else NORMAL for index in tokens}
    found: dict[str, Any] = {KEY + "model": "bert", KEY + "pre": "default", KEY + "tokens": tokens}
    found |= {} if lowercase else {KEY + LOWERCASE: False}
    found |= {} if accents == lowercase else {KEY + ACCENTS: accents}
    return found | {KEY + "token_type": types}
