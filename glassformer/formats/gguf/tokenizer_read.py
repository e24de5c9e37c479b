"""Import of a tokenizer from GGUF metadata: the keys `tokenizer.ggml.*` and `tokenizer.chat_template`.

Source: the GGUF specification (`docs/gguf.md` of ggml) and the behaviour of `llama.cpp`. Four kinds are supported:
`llama` (SentencePiece BPE: tokens and scores), `t5` (SentencePiece unigram), `gpt2` (byte-level BPE: tokens and merges;
`pre` names the pre-tokenizer) and `bert` (WordPiece, where ▁ begins a word and continuations have no prefix).
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.formats.gguf.tokenizer_keys import (
    ACCENTS,
    BOS_BY_DEFAULT,
    DEFAULT_IDS,
    ID_KEYS,
    IGNORE_MERGES,
    KEY,
    LOWERCASE,
    NO_TOKEN,
    PRE_BY_ARCHITECTURE,
    PRE_TOKENIZER_BY_NAME,
    SEP_BY_DEFAULT,
    TEMPLATE,
    TEMPLATES,
    TYPES,
)
from glassformer.json_file import check_schema
from glassformer.text.files.vocab_files import BERT_TOKENS, BYTE_LEVEL, bpe_model, tokenizer_json, wordpiece_json
from glassformer.text.hf_tokenizer import HFTokenizer, TokenizerBackend
from glassformer.text.sentencepiece.model_file import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    SentencePiecePiece,
)
from glassformer.text.sentencepiece.normalizer import SPACE
from glassformer.text.sentencepiece.tokenizer import SentencePieceTokenizer
from glassformer.text.special_tokens import AddedToken
from glassformer.text.tokenizer import Tokenizer


class _Metadata:
    """The metadata of a file, with the types of TYPES."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = values

    def __getitem__(self, name: str) -> list[Any]:
        if KEY + name not in self.values:
            raise TokenizerError(f"{KEY}{name} is missing")
        return self.values[KEY + name]

    def flag(self, name: str, default: bool) -> bool:
        return bool(self.values.get(KEY + name, default))

    def token_id(self, name: str, n_tokens: int) -> int | None:
        index = self.values.get(KEY + name)
        if index is None or index in NO_TOKEN:
            return None
        if not 0 <= index < n_tokens:
            raise TokenizerError(f"{KEY}{name} is {index}, but there are only {n_tokens} tokens")
        return index


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer that a GGUF file's metadata describe.

    Args:
        metadata: Plain Python values; arrays are lists.

    Raises:
        TokenizerError: The kind or the pre-tokenizer is not supported, or a key is malformed; the message names it.
    """
    for key, value in metadata.items():
        if key in TYPES:
            check_schema(value, key, TYPES[key], error_type=TokenizerError)
    keys, kind = _Metadata(metadata), metadata.get(KEY + "model")
    builders = {
        "llama": _sentencepiece_backend,
        "t5": _sentencepiece_backend,
        "gpt2": _bpe_backend,
        "bert": _wordpiece_backend,
    }
    if kind not in builders:
        raise TokenizerError(f"{KEY}model is {kind!r}; supported are {', '.join(builders)}")
    templates = _chat_templates(metadata)
    tokens: list[str] = keys["tokens"]
    types: list[int] = metadata.get(KEY + "token_type", [NORMAL] * len(tokens))
    if not tokens:
        raise TokenizerError(f"{KEY}tokens is empty")
    if len(types) != len(tokens):
        raise TokenizerError(f"{KEY}token_type has {len(types)} entries, but there are {len(tokens)} tokens")
    if len(set(tokens)) < len(tokens):
        duplicate = Counter(tokens).most_common(1)[0][0]
        raise TokenizerError(f"{KEY}tokens contains {duplicate!r} more than once")
    config: dict[str, Any] = {}
    for name, key in ID_KEYS.items():
        index = keys.token_id(key, len(tokens))
        if index is None:
            index = DEFAULT_IDS[kind].get(name.removesuffix("_token"))
        if index is not None and index < len(tokens):
            config[name] = tokens[index]
    pre = metadata.get(KEY + "pre", "")
    add_bos = kind == "llama" or (kind == "gpt2" and pre in BOS_BY_DEFAULT) or kind == "bert"
    if kind != "bert":
        config["add_bos_token"] = keys.flag("add_bos_token", add_bos) and "bos_token" in config
        config["add_eos_token"] = keys.flag("add_eos_token", kind == "t5")
    backend = builders[kind](keys, kind, tokens, types, config, "\n".join(templates.values()))
    return Tokenizer(backend, config, chat_template=templates)


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the chat templates by name."""
    keys = {"default": TEMPLATE} | {name: f"{TEMPLATE}.{name}" for name in metadata.get(TEMPLATES, [])}
    templates = {name: metadata[key] for name, key in keys.items() if key in metadata}
    for name, template in templates.items():
        check_schema(template, keys[name], str, error_type=TokenizerError)
    return templates


def _sentencepiece_backend(
    keys: _Metadata, kind: str, tokens: list[str], types: list[int], config: dict[str, Any], template: str
) -> TokenizerBackend:
    scores: list[float] = keys["scores"]
    if len(scores) != len(tokens):
        raise TokenizerError(f"{KEY}scores has {len(scores)} entries, but there are {len(tokens)} tokens")
    unknown = keys.token_id(ID_KEYS["unk_token"], len(tokens))
    if types.count(UNKNOWN) != 1:  # some files mark all padding tokens as unknown, and older files no token
        types = [UNUSED if type == UNKNOWN else type for type in types]
        types[unknown or 0] = UNKNOWN
    charsmap = (
        bytes(byte & 255 for byte in keys["precompiled_charsmap"])
        if KEY + "precompiled_charsmap" in keys.values
        else b""
    )
    model = SentencePieceModel(
        tuple(SentencePiecePiece(*fields) for fields in zip(tokens, scores, types, strict=True)),
        kind=BPE if kind == "llama" else UNIGRAM,
        byte_fallback=BYTE in types,
        charsmap=charsmap,
        dummy_prefix=keys.flag("add_space_prefix", True),
        remove_extra_spaces=keys.flag("remove_extra_whitespaces", False),
        bos=config.get("bos_token", "<s>"),
        eos=config.get("eos_token", "</s>"),
    )
    mask = config.get("mask_token") if kind == "t5" else None  # XLM-RoBERTa's
    added = [AddedToken(tokens.index(mask), mask, special=True, lstrip=True)] if mask else []
    return SentencePieceTokenizer(model, added, template=template, prefix_after_special=True)


def _bpe_backend(
    keys: _Metadata, kind: str, tokens: list[str], types: list[int], config: dict[str, Any], template: str
) -> TokenizerBackend:
    pre = keys.values.get(KEY + "pre", "default")
    architecture = keys.values.get("general.architecture")
    if pre == "default":
        pre = PRE_BY_ARCHITECTURE.get(str(architecture), pre)
    if pre not in PRE_TOKENIZER_BY_NAME:
        known = ", ".join(PRE_TOKENIZER_BY_NAME)
        if pre == "default":
            raise TokenizerError(
                f"the file does not name its pre-tokenizer ({KEY}pre), and other files of the architecture "
                f"{architecture} have several: add the name with the gguf package, `gguf-new-metadata "
                f"--pre-tokenizer NAME IN.gguf OUT.gguf`; known: {known}"
            )
        raise TokenizerError(f"{KEY}pre is {pre!r}, an unknown pre-tokenizer; known: {known}")
    known = {token for token, type in zip(tokens, types, strict=True) if type != UNUSED}
    merges = []
    for number, merge in enumerate(keys["merges"]):
        space = merge.find(" ", 1)
        pair = (merge[:space], merge[space + 1 :])
        if space < 0 or not {*pair, "".join(pair)} <= known:
            raise TokenizerError(f"{KEY}merges: {merge!r} (number {number}) must be two tokens that form a third")
        merges.append(pair)
    added = _added_tokens(tokens, types)
    if pre in SEP_BY_DEFAULT:
        added = [replace(token, lstrip=token.text == config.get("mask_token")) for token in added]
    vocab = {token: index for index, token in enumerate(tokens) if types[index] != UNUSED}  # unused tokens are padding
    model = bpe_model(vocab, merges, ignore_merges=pre in IGNORE_MERGES)
    pre_tokenizer = _with_prefix_space(PRE_TOKENIZER_BY_NAME[pre], keys.flag("add_space_prefix", False))
    parts: dict[str, Any] = {"pre_tokenizer": pre_tokenizer, "decoder": BYTE_LEVEL}
    if config.pop("add_eos_token"):  # RoBERTa
        parts["post_processor"] = _bos_eos_processor(
            config, vocab, double_sep=keys.flag("add_sep_token", pre in SEP_BY_DEFAULT)
        )
    return HFTokenizer(json.dumps(tokenizer_json(model, added, **parts)), template)


def _with_prefix_space(pre_tokenizer: dict[str, Any], prefix_space: bool) -> dict[str, Any]:
    """Return the pre-tokenizer with `add_prefix_space` set to `prefix_space`."""
    if pre_tokenizer["type"] == "Sequence":
        return pre_tokenizer | {
            "pretokenizers": [_with_prefix_space(step, prefix_space) for step in pre_tokenizer["pretokenizers"]]
        }
    return pre_tokenizer | {"add_prefix_space": prefix_space} if pre_tokenizer["type"] == "ByteLevel" else pre_tokenizer


def _bos_eos_processor(config: Mapping[str, Any], vocab: Mapping[str, int], double_sep: bool) -> dict[str, Any]:
    """Return the post-processor that adds BOS and EOS; `double_sep`: whether two EOS separate two texts."""
    bos_tokens = [config["bos_token"]] if config["add_bos_token"] else []
    if (end := config.get("eos_token")) is None:
        raise TokenizerError(f"{KEY}add_eos_token is true, but there is no {KEY}eos_token_id")
    for token in (*bos_tokens, end):
        if token not in vocab:
            raise TokenizerError(f"{token!r} begins or ends a text, but its {KEY}token_type is {UNUSED} (unused)")
    prefix, suffix = ([{"SpecialToken": {"id": token, "type_id": 0}} for token in some] for some in (bos_tokens, [end]))
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [*prefix, first, *suffix],
        "pair": [*prefix, first, *suffix * (1 + double_sep), second, *suffix],
        "special_tokens": {
            token: {"id": token, "ids": [vocab[token]], "tokens": [token]} for token in {*bos_tokens, end}
        },
    }


def _wordpiece_backend(
    keys: _Metadata, kind: str, tokens: list[str], types: list[int], config: dict[str, Any], template: str
) -> TokenizerBackend:
    def token_text(token: str, type: int) -> str:
        if type in (CONTROL, UNKNOWN) or (token.startswith("[") and token.endswith("]")):
            return token
        return token.removeprefix(SPACE) if token.startswith(SPACE) else f"##{token}"

    rows = enumerate(zip(tokens, types, strict=True))
    vocab = {token_text(token, type): index for index, (token, type) in rows if type != UNUSED}
    names = {key: config.get(key, name) for key, name in BERT_TOKENS.items()}
    if "cls_token" not in config and "bos_token" in config:
        names["cls_token"] = config["bos_token"]
    config.pop("bos_token", None)  # in GGUF, BOS and EOS of WordPiece are [CLS] and [SEP]
    config.pop("eos_token", None)
    config.update(names)
    lowercase = keys.flag(LOWERCASE, True)
    accents = keys.flag(ACCENTS, lowercase)
    strip_accents = None if accents == lowercase else accents
    layout = wordpiece_json(vocab, lowercase=lowercase, strip_accents=strip_accents, split_chinese=True, names=names)
    return HFTokenizer(json.dumps(layout), template)


def _added_tokens(tokens: Sequence[str], types: Sequence[int]) -> list[AddedToken]:
    kinds = (CONTROL, UNKNOWN, USER_DEFINED)
    rows = enumerate(zip(tokens, types, strict=True))
    return [AddedToken(index, token, special=type != USER_DEFINED) for index, (token, type) in rows if type in kinds]
