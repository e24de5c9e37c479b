"""A tokenizer as GGUF's metadata, and back: the keys `tokenizer.ggml.*` and `tokenizer.chat_template`.

Source: the GGUF specification (`docs/gguf.md` of ggml) and what `llama.cpp` makes of the keys.  Of its kinds four are
read: `llama` (SentencePiece BPE: tokens and scores), `t5` (SentencePiece unigram), `gpt2` (byte-level BPE: tokens and
merges; `pre` names how text is cut) and `bert` (WordPiece, where ▁ begins a word and nothing stands before the rest).
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.text.control import Added
from glassformer.text.formats import BERT
from glassformer.text.library import Core, LibraryCore
from glassformer.text.patterns import (
    DEEPSEEK_CODER,
    DEEPSEEK_LLM,
    DEEPSEEK_V3,
    FALCON,
    GPT2,
    LLAMA3,
    O200K,
    QWEN2,
    SEED_CODER,
    TEKKEN,
    byte_level,
)
from glassformer.text.sentencepiece_core import SentencePieceCore
from glassformer.text.sentencepiece_file import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    SentencePieceFile,
    byte_pieces,
)
from glassformer.text.sentencepiece_rules import SPACE
from glassformer.text.tokenizer import Tokenizer
from glassformer.text.vocab import BYTE_LEVEL, bpe_model, layout_of, wordpiece_of

KEY = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"

# How text is cut, and its names; the first of a row is the one that is written.
_CUTS: tuple[tuple[dict[str, Any], str], ...] = (
    (
        byte_level(GPT2),
        "gpt-2 phi-2 olmo mpt jais roberta-bpe jina-es jina-de jina-v2-es jina-v2-de exaone4 trillion gigachat mellum "
        "a.x-4.0 granite-docling",
    ),
    (
        byte_level(LLAMA3),
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe chatglm-bpe "
        "glm4 glm5",
    ),
    (byte_level(QWEN2), "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez kormo f2llmv2 grok-2 solar-open"),
    (byte_level(O200K), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (byte_level(TEKKEN), "tekken"),
    (byte_level(GPT2, digits=True), "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"),
    (byte_level(SEED_CODER), "seed-coder"),
    (FALCON, "falcon"),
    (DEEPSEEK_CODER, "deepseek-coder"),
    (DEEPSEEK_LLM, "deepseek-llm"),
    (DEEPSEEK_V3, "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
)
PRE = {name: cut for cut, names in _CUTS for name in names.split()}
# those that begin a text with the BOS where nothing says it, and whose tokens, with those of two more, are found whole
# before anything is joined
BOS_FIRST = set("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano tekken".split())
WHOLE_WORDS = BOS_FIRST | {"glm4", "glm5"}
DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2}, "t5": {"eos": 1}, "gpt2": {}, "bert": {}}

IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}


class _Metadata:
    """The keys, each checked when it is taken."""

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
    """The tokenizer that a GGUF file's metadata describe, as plain Python values (arrays as lists).

    Raises TokenizerError for a kind, or a way to cut text, that is not known here, and naming the key that is wrong.
    """
    keys, kind = _Metadata(metadata), metadata.get(KEY + "model")
    makers = {"llama": _from_pieces, "t5": _from_pieces, "gpt2": _from_merges, "bert": _from_wordpieces}
    if kind not in makers:
        raise TokenizerError(f"{KEY}model is {kind!r}; understood are {', '.join(makers)}")
    template = metadata.get(TEMPLATE)
    tokens = [token.decode("utf-8", "replace") if isinstance(token, bytes) else str(token) for token in keys["tokens"]]
    types = [int(type) for type in keys["token_type"]] if KEY + "token_type" in metadata else [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise TokenizerError(f"{KEY}token_type has {len(types)} entries, and there are {len(tokens)} tokens")
    if len(set(tokens)) < len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise TokenizerError(f"{KEY}tokens has {twice!r} twice")
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
) -> Core:
    scores = [float(score) for score in keys["scores"]]
    if len(scores) != len(tokens):
        raise TokenizerError(f"{KEY}scores has {len(scores)} entries, and there are {len(tokens)} tokens")
    unknown = keys.token_id(IDS["unk_token"], len(tokens))
    if types.count(UNKNOWN) != 1:  # some files call all unknown that fills up the embedding, and older ones none
        types = [UNUSED if type == UNKNOWN else type for type in types]
        types[unknown or 0] = UNKNOWN
    charsmap = bytes(keys["precompiled_charsmap"]) if KEY + "precompiled_charsmap" in keys.given else b""
    model = SentencePieceFile(
        tuple(Piece(*row) for row in zip(tokens, scores, types, strict=True)),
        kind=BPE if kind == "llama" else UNIGRAM,
        byte_fallback=BYTE in types,
        charsmap=charsmap,
        dummy_prefix=keys.flag("add_space_prefix", True),
        remove_extra_spaces=keys.flag("remove_extra_whitespaces", False),
        bos=config.get("bos_token", "<s>"),
        eos=config.get("eos_token", "</s>"),
    )
    return SentencePieceCore(model, template=template, prefix_inside=True)


def _from_merges(
    keys: _Metadata, kind: str, tokens: list[str], types: list[int], config: dict[str, Any], template: str
) -> Core:
    pre = str(keys.given.get(KEY + "pre", "default"))
    if pre not in PRE:
        raise TokenizerError(f"{KEY}pre is {pre!r}, a way to cut text that is not known; known: {', '.join(PRE)}")
    known = {token for token, type in zip(tokens, types, strict=True) if type != UNUSED}
    merges = []
    for number, merge in enumerate(keys["merges"]):
        at = merge.find(" ", 1)
        pair = (merge[:at], merge[at + 1 :])
        if at < 0 or not {*pair, "".join(pair)} <= known:
            raise TokenizerError(f"{KEY}merges: {merge!r} (number {number}) is not two tokens that make a third")
        merges.append(pair)
    added = _added(tokens, types)
    vocab = {
        token: index for index, token in enumerate(tokens) if types[index] != UNUSED
    }  # those fill up the embedding
    model = bpe_model(vocab, merges, ignore_merges=pre in WHOLE_WORDS)
    cut = _begun(PRE[pre], keys.flag("add_space_prefix", False))
    if config.pop("add_eos_token"):
        raise TokenizerError(f"{KEY}add_eos_token is true, which is not done for byte-level BPE")
    parts = {"pre_tokenizer": cut, "decoder": BYTE_LEVEL}
    return LibraryCore(json.dumps(layout_of(model, added, **parts)), template)


def _from_wordpieces(
    keys: _Metadata, kind: str, tokens: list[str], types: list[int], config: dict[str, Any], template: str
) -> Core:
    def spelled(token: str, type: int) -> str:
        if type in (CONTROL, UNKNOWN) or (token.startswith("[") and token.endswith("]")):
            return token
        return token.removeprefix(SPACE) if token.startswith(SPACE) else f"##{token}"

    rows = enumerate(zip(tokens, types, strict=True))
    vocab = {spelled(token, type): index for index, (token, type) in rows if type != UNUSED}
    names = {key: config.get(key, name) for key, name in BERT.items()}
    if index := keys.token_id("cls_token_id", len(tokens)):
        names["cls_token"] = tokens[index]
    elif "bos_token" in config:
        names["cls_token"] = config["bos_token"]
    config.pop("bos_token", None)  # here they are another name for [CLS] and [SEP]
    config.pop("eos_token", None)
    config.update(names)
    layout = wordpiece_of(vocab, lowercase=True, accents=None, chinese=True, names=names)
    return LibraryCore(json.dumps(layout), template)


def _added(tokens: Sequence[str], types: Sequence[int]) -> list[Added]:
    kinds = (CONTROL, UNKNOWN, USER_DEFINED)
    rows = enumerate(zip(tokens, types, strict=True))
    return [Added(index, token, special=type != USER_DEFINED) for index, (token, type) in rows if type in kinds]


# ---- to metadata


def tokenizer_to_gguf(tokenizer: Tokenizer, vocab_size: int | None = None) -> dict[str, Any]:
    """The metadata from which `tokenizer_from_gguf`, and llama.cpp, make the same tokenizer.

    vocab_size: of the model, where it has more rows than there are tokens.  Raises TokenizerError for a tokenizer that
    GGUF has no words for.
    """
    size = max(tokenizer.vocab_size, vocab_size or 0)
    core = tokenizer.core
    if isinstance(core, SentencePieceCore):
        found = _pieces_out(core)
    elif isinstance(core, LibraryCore):
        found = _library_out(core)
    else:
        raise TokenizerError(f"GGUF has no words for a tokenizer of the kind {core.kind}")
    types = {token.id: CONTROL if token.text in core.special else USER_DEFINED for token in core.added}
    tokens, kinds = found[KEY + "tokens"], found[KEY + "token_type"]
    for token in core.added:
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
    found[KEY + "add_bos_token"] = tokenizer.add_bos or found[KEY + "model"] == "bert"
    found[KEY + "add_eos_token"] = bool(isinstance(core, SentencePieceCore) and tokenizer.config.get("add_eos_token"))
    if tokenizer.chat_template is not None:
        found[TEMPLATE] = tokenizer.chat_template
    elif isinstance(template := tokenizer.config.get("chat_template"), str):
        found[TEMPLATE] = template
    return found


def _pieces_out(core: SentencePieceCore) -> dict[str, Any]:
    model = core.given_model
    if model.suffix or not model.escape:
        raise TokenizerError(
            "GGUF has no words for a SentencePiece model with spaces behind words, or not written as ▁"
        )
    if model.kind == BPE and (model.charsmap or model.remove_extra_spaces):
        raise TokenizerError("GGUF has no words for a SentencePiece BPE that normalizes text")
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


def _library_out(core: LibraryCore) -> dict[str, Any]:
    model, layout = core.layout["model"], core.layout
    if core.kind == "WordPiece":
        return _wordpieces_out(core)
    if core.kind != "BPE":
        raise TokenizerError(f"GGUF has no words for a tokenizer of the kind {core.kind}")
    vocab = model["vocab"]
    tokens = {index: token for token, index in vocab.items()}
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    if model.get("byte_fallback"):
        return _fallback_out(core, tokens, pairs)
    cut = layout.get("pre_tokenizer") or {}
    names = next((row.split() for known, row in _CUTS if _same_cut(cut, known)), [])
    normal = layout.get("normalizer") or {}
    normal = None if normal.get("normalizers") == [] else normal.get("type")  # DeepSeek's are a list of none
    if not names or normal not in (None, "NFC"):  # llama.cpp has no NFC; Qwen's files in GGUF leave it out too
        what = json.dumps(cut)[:200] if not names else normal
        raise TokenizerError(f"GGUF has no name for this way to cut text: {what}")
    if not model.get("ignore_merges"):  # the same cut, without looking for whole words first
        names = [name for name in names if name not in WHOLE_WORDS]
    if not names:
        raise TokenizerError("GGUF has no name for this way to cut text, but for tokens that are looked for whole")
    return {
        KEY + "model": "gpt2",
        KEY + "pre": names[0],
        KEY + "tokens": tokens,
        KEY + "token_type": dict.fromkeys(tokens, NORMAL),
        KEY + "merges": [" ".join(pair) for pair in pairs],
    }


def _begun(cut: dict[str, Any], prefix_space: bool) -> dict[str, Any]:
    """The same pre-tokenizer, for texts that begin with a space or do not."""
    if cut["type"] == "Sequence":
        return cut | {"pretokenizers": [_begun(step, prefix_space) for step in cut["pretokenizers"]]}
    return cut | {"add_prefix_space": prefix_space} if cut["type"] == "ByteLevel" else cut


def _same_cut(one: Any, other: Any) -> bool:
    """Whether two pre-tokenizers cut alike: `trim_offsets` moves no cut, and line ends are written in two ways."""

    def told(cut: Any) -> Any:
        cut = json.loads(json.dumps(cut).replace(r"\\r", r"\r").replace(r"\\n", r"\n"))
        steps = cut.get("pretokenizers", [cut])
        return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]

    return told(one) == told(other)


def _fallback_out(core: LibraryCore, tokens: dict[int, str], pairs: list[list[str]]) -> dict[str, Any]:
    """Llama's `tokenizer.json`: the rank at which a token is first made is its score."""
    steps = json.dumps([core.layout.get("normalizer"), core.layout.get("pre_tokenizer")])
    told = [step for step in ("Prepend", "Metaspace", "Replace") if f'"type": "{step}"' in steps]
    if not told or "Precompiled" in steps or "Split" in steps.replace('"split"', ""):
        raise TokenizerError(f"GGUF has no words for this normalization: {steps[:200]}")
    made = {left + right: rank for rank, (left, right) in reversed(list(enumerate(pairs)))}
    added, all_bytes = {token.id for token in core.added}, set(byte_pieces())
    types = {index: BYTE if token in all_bytes else NORMAL for index, token in tokens.items()}
    unknown = core.layout["model"].get("unk_token")
    types |= {index: UNKNOWN for index, token in tokens.items() if token == unknown}
    odd = [t for i, t in tokens.items() if types[i] == NORMAL and i not in added and len(t) > 1 and t not in made]
    if odd:
        raise TokenizerError(f"GGUF would join the token {odd[0]!r}, which no merge makes")
    prefix = "Prepend" in told or ("Metaspace" in told and '"prepend_scheme": "never"' not in steps)
    return {
        KEY + "model": "llama",
        KEY + "pre": "default",
        KEY + "tokens": tokens,
        KEY + "scores": {index: -float(made.get(token, 0)) for index, token in tokens.items()},
        KEY + "token_type": types,
        KEY + "add_space_prefix": prefix,
    }


def _wordpieces_out(core: LibraryCore) -> dict[str, Any]:
    normalizer = core.layout.get("normalizer") or {}
    if normalizer.get("type") != "BertNormalizer" or not normalizer.get("lowercase"):
        raise TokenizerError("GGUF has no words for a WordPiece that does not make letters small")
    special = {token.text for token in core.added}

    def spelled(token: str) -> str:
        if token in special:
            return token
        return token.removeprefix("##") if token.startswith("##") else SPACE + token

    tokens = {index: spelled(token) for token, index in core.layout["model"]["vocab"].items()}
    unknown = core.layout["model"]["vocab"][core.layout["model"]["unk_token"]]
    types = {index: UNKNOWN if index == unknown else NORMAL for index in tokens}
    return {KEY + "model": "bert", KEY + "pre": "default", KEY + "tokens": tokens, KEY + "token_type": types}
