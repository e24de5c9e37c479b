"""Import of a tokenizer from GGUF metadata: the keys `tokenizer.ggml.*` and `tokenizer.chat_template`.

Source: the GGUF specification (`docs/gguf.md` of ggml) and the behaviour of `llama.cpp`. Four kinds are supported:
`llama` (SentencePiece BPE: tokens and scores), `t5` (SentencePiece unigram), `gpt2` (byte-level BPE: tokens and merges;
`pre` names the pre-tokenizer) and `bert` (WordPiece, where ▁ begins a word and continuations have no prefix).
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.formats.gguf.tokenizer_keys import (
    ACCENTS,
    BOS_FIRST,
    DEFAULT_IDS,
    IDS,
    KEY,
    LOWERCASE,
    PRE,
    SEPARATED,
    TEMPLATE,
    WHOLE_WORDS,
)
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
    """The metadata; each key is checked when it is read."""

    def __init__(self, given: Mapping[str, Any]):
        self.given = given

    def __getitem__(self, name: str) -> list[Any]:
        if KEY + name not in self.given:
            raise TokenizerError(f"{KEY}{name} is missing")
        value = self.given[KEY + name]
        if isinstance(value, str) or not hasattr(value, "__len__"):
            raise TokenizerError(f"{KEY}{name} must be a list, not {value!r:.80}")
        return list(value)

    def flag(self, name: str, default: bool) -> bool:
        return bool(self.given.get(KEY + name, default))

    def token_id(self, name: str, n_tokens: int) -> int | None:
        index = self.given.get(KEY + name)
        if index is None:
            return None
        if not 0 <= int(index) < n_tokens:
            raise TokenizerError(f"{KEY}{name} is {index}, and there are {n_tokens} tokens")
        return int(index)


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer that a GGUF file's metadata describe.

    Args:
        metadata: Plain Python values; arrays are lists.

    Raises:
        TokenizerError: The kind or the pre-tokenizer is not supported, or a key is malformed; the message names it.
    """
    keys, kind = _Metadata(metadata), metadata.get(KEY + "model")
    makers = {"llama": _from_pieces, "t5": _from_pieces, "gpt2": _from_merges, "bert": _from_wordpieces}
    if kind not in makers:
        raise TokenizerError(f"{KEY}model is {kind!r}; supported are {', '.join(makers)}")
    template = metadata.get(TEMPLATE)
    tokens = [token.decode("utf-8", "replace") if isinstance(token, bytes) else str(token) for token in keys["tokens"]]
    types = [int(type) for type in keys["token_type"]] if KEY + "token_type" in metadata else [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise TokenizerError(f"{KEY}token_type has {len(types)} entries, and there are {len(tokens)} tokens")
    if len(set(tokens)) < len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise TokenizerError(f"{KEY}tokens contains {twice!r} twice")
    config: dict[str, Any] = {}
    for name, key in IDS.items():
        index = keys.token_id(key, len(tokens))
        if index is None:
            index = DEFAULT_IDS[kind].get(name.removesuffix("_token"))
        if index is not None and index < len(tokens):
            config[name] = tokens[index]
    pre = str(metadata.get(KEY + "pre", ""))
    bos_first = kind == "llama" or (kind == "gpt2" and pre in BOS_FIRST) or kind == "bert"
    if kind != "bert":
        config["add_bos_token"] = keys.flag("add_bos_token", bos_first) and "bos_token" in config
        config["add_eos_token"] = keys.flag("add_eos_token", kind == "t5")
    core = makers[kind](keys, kind, tokens, types, config, template or "")
    return Tokenizer(core, config, chat_template=template)


def _from_pieces(
    keys: _Metadata, kind: str, tokens: list[str], types: list[int], config: dict[str, Any], template: str
) -> TokenizerBackend:
    scores = [float(score) for score in keys["scores"]]
    if len(scores) != len(tokens):
        raise TokenizerError(f"{KEY}scores has {len(scores)} entries, and there are {len(tokens)} tokens")
    unknown = keys.token_id(IDS["unk_token"], len(tokens))
    if types.count(UNKNOWN) != 1:  # some files call all unknown that fills up the embedding, and older ones none
        types = [UNUSED if type == UNKNOWN else type for type in types]
        types[unknown or 0] = UNKNOWN
    charsmap = bytes(keys["precompiled_charsmap"]) if KEY + "precompiled_charsmap" in keys.given else b""
    model = SentencePieceModel(
        tuple(SentencePiecePiece(*row) for row in zip(tokens, scores, types, strict=True)),
        kind=BPE if kind == "llama" else UNIGRAM,
        byte_fallback=BYTE in types,
        charsmap=charsmap,
        dummy_prefix=keys.flag("add_space_prefix", True),
        remove_extra_spaces=keys.flag("remove_extra_whitespaces", False),
        bos=config.get("bos_token", "<s>"),
        eos=config.get("eos_token", "</s>"),
    )
    return SentencePieceTokenizer(model, template=template, prefix_after_special=True)


def _from_merges(
    keys: _Metadata, kind: str, tokens: list[str], types: list[int], config: dict[str, Any], template: str
) -> TokenizerBackend:
    pre = str(keys.given.get(KEY + "pre", "default"))
    if pre not in PRE:
        raise TokenizerError(f"{KEY}pre is {pre!r}, an unknown pre-tokenizer; known: {', '.join(PRE)}")
    known = {token for token, type in zip(tokens, types, strict=True) if type != UNUSED}
    merges = []
    for number, merge in enumerate(keys["merges"]):
        at = merge.find(" ", 1)
        pair = (merge[:at], merge[at + 1 :])
        if at < 0 or not {*pair, "".join(pair)} <= known:
            raise TokenizerError(f"{KEY}merges: {merge!r} (number {number}) must be two tokens that form a third")
        merges.append(pair)
    added = _added(tokens, types)
    vocab = {
        token: index for index, token in enumerate(tokens) if types[index] != UNUSED
    }  # those fill up the embedding
    model = bpe_model(vocab, merges, ignore_merges=pre in WHOLE_WORDS)
    cut = _begun(PRE[pre], keys.flag("add_space_prefix", False))
    parts: dict[str, Any] = {"pre_tokenizer": cut, "decoder": BYTE_LEVEL}
    if config.pop("add_eos_token"):  # RoBERTa
        parts["post_processor"] = _framed(config, vocab, twice=keys.flag("add_sep_token", pre in SEPARATED))
    return HFTokenizer(json.dumps(tokenizer_json(model, added, **parts)), template)


def _begun(cut: dict[str, Any], prefix_space: bool) -> dict[str, Any]:
    """Return the pre-tokenizer with `add_prefix_space` set to `prefix_space`."""
    if cut["type"] == "Sequence":
        return cut | {"pretokenizers": [_begun(step, prefix_space) for step in cut["pretokenizers"]]}
    return cut | {"add_prefix_space": prefix_space} if cut["type"] == "ByteLevel" else cut


def _framed(config: Mapping[str, Any], vocab: Mapping[str, int], twice: bool) -> dict[str, Any]:
    """Return the post-processor that adds BOS and EOS; `twice`: whether two EOS separate the texts of a pair."""
    begin = [config["bos_token"]] if config["add_bos_token"] else []
    if (end := config.get("eos_token")) is None:
        raise TokenizerError(f"{KEY}add_eos_token is true, and there is no {KEY}eos_token_id")
    before, after = ([{"SpecialToken": {"id": token, "type_id": 0}} for token in some] for some in (begin, [end]))
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [*before, first, *after],
        "pair": [*before, first, *after * (1 + twice), second, *after],
        "special_tokens": {token: {"id": token, "ids": [vocab[token]], "tokens": [token]} for token in {*begin, end}},
    }


def _from_wordpieces(
    keys: _Metadata, kind: str, tokens: list[str], types: list[int], config: dict[str, Any], template: str
) -> TokenizerBackend:
    def spelled(token: str, type: int) -> str:
        if type in (CONTROL, UNKNOWN) or (token.startswith("[") and token.endswith("]")):
            return token
        return token.removeprefix(SPACE) if token.startswith(SPACE) else f"##{token}"

    rows = enumerate(zip(tokens, types, strict=True))
    vocab = {spelled(token, type): index for index, (token, type) in rows if type != UNUSED}
    names = {key: config.get(key, name) for key, name in BERT_TOKENS.items()}
    if "cls_token" not in config and "bos_token" in config:
        names["cls_token"] = config["bos_token"]
    config.pop("bos_token", None)  # here they are another name for [CLS] and [SEP]
    config.pop("eos_token", None)
    config.update(names)
    lowercase = keys.flag(LOWERCASE, True)
    accents = keys.flag(ACCENTS, lowercase)
    same = None if accents == lowercase else accents
    layout = wordpiece_json(vocab, lowercase=lowercase, strip_accents=same, split_chinese=True, names=names)
    return HFTokenizer(json.dumps(layout), template)


def _added(tokens: Sequence[str], types: Sequence[int]) -> list[AddedToken]:
    kinds = (CONTROL, UNKNOWN, USER_DEFINED)
    rows = enumerate(zip(tokens, types, strict=True))
    return [AddedToken(index, token, special=type != USER_DEFINED) for index, (token, type) in rows if type in kinds]
