"""Loading a folder's tokenizer from any supported format; `find_tokenizer` defines the order of precedence."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.text.files.find import TARGET_VOCAB, find_tokenizer, read_text
from glassformer.text.files.tiktoken import ENCODINGS, END, parse_tiktoken, tiktoken_json
from glassformer.text.files.vocab_files import (
    BERT_TOKENS,
    BYTE_LEVEL,
    bpe_model,
    parse_bpe,
    parse_vocab_txt,
    tokenizer_json,
    wordpiece_json,
)
from glassformer.text.hf_tokenizer import HFTokenizer, TokenizerBackend
from glassformer.text.patterns import GPT2, QWEN2, byte_level
from glassformer.text.sentencepiece.model_file import parse_sentencepiece
from glassformer.text.sentencepiece.source_target import SPECIAL_TOKENS, SourceTargetTokenizer
from glassformer.text.sentencepiece.tokenizer import SentencePieceTokenizer
from glassformer.text.special_tokens import AddedToken, token_text
from glassformer.text.tokenizer import CONFIG, TEMPLATE, Tokenizer, template_text

TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# Class names of `transformers`: in older folders only `tokenizer_class` says how a vocabulary is used.
ROBERTA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>"}
ROBERTA_TOKENS |= {"pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>"}
BPE_CLASSES: dict[str, dict[str, str]] = {
    "GPT2Tokenizer": {"bos_token": END, "eos_token": END, "unk_token": END},
    "Qwen2Tokenizer": {"eos_token": END, "pad_token": END},
    "RobertaTokenizer": ROBERTA_TOKENS,
    "BartTokenizer": ROBERTA_TOKENS,
    "LongformerTokenizer": ROBERTA_TOKENS,
}
SHIFTED_CLASSES = ("XLMRobertaTokenizer", "CamembertTokenizer")  # their ids are not those of the SentencePiece model
CLASS_OF_MODEL_TYPE = {"bart": "BartTokenizer", "roberta": "RobertaTokenizer", "t5": "T5Tokenizer"}
WORDPIECE_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")

Paths = tuple[Path, ...]
Config = Mapping[str, Any]


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load the tokenizer of a folder, in any format that `find_tokenizer` recognizes.

    Raises:
        TokenizerError: A file is missing or malformed; the message names the file.
    """
    folder = Path(folder)
    try:
        files = find_tokenizer(folder)
    except OSError as error:
        raise TokenizerError(f"{folder} cannot be read: {error.strerror or error}") from error
    if files is None:
        raise TokenizerError(
            f"{folder} has no tokenizer: expected tokenizer.json, a SentencePiece model (tokenizer.model, "
            f"spiece.model, ...), source.spm with target.spm and vocab.json, vocab.json with "
            f"merges.txt, encoder.json with vocab.bpe, *.tiktoken or vocab.txt"
        )
    config = _read_json(folder / CONFIG) if files.format == "json" or (folder / CONFIG).exists() else {}
    template = read_text(folder / TEMPLATE) if (folder / TEMPLATE).exists() else None
    try:
        if files.format == "json":
            source: str | TokenizerBackend = read_text(files.paths[0])
        else:
            config = _merge_older_files(folder, config)
            source, defaults = LOADERS[files.format](files.paths, config, template_text(config, template))
            config = defaults | config
        return Tokenizer(source, config, chat_template=template)
    except TokenizerError as error:
        where = files.paths[0] if files.format != "json" else folder
        raise error if str(folder) in str(error) else TokenizerError(f"{where}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise TokenizerError(f"{path} must hold a JSON object, not {type(config).__name__}")
    return config


def _merge_older_files(folder: Path, config: Config) -> dict[str, Any]:
    """Return the config, merged with special_tokens_map.json, added_tokens.json and config.json's model_type."""
    names = _read_json(folder / "special_tokens_map.json") if (folder / "special_tokens_map.json").exists() else {}
    merged = {key: value for key, value in names.items() if key in TOKEN_NAMES} | dict(config)
    if (folder / "added_tokens.json").exists():
        added = {str(index): {"content": text} for text, index in _read_json(folder / "added_tokens.json").items()}
        merged["added_tokens_decoder"] = added | merged.get("added_tokens_decoder", {})
    model_type = _read_json(folder / "config.json").get("model_type") if (folder / "config.json").exists() else None
    if isinstance(model_type, str) and model_type in CLASS_OF_MODEL_TYPE:
        merged.setdefault("tokenizer_class", CLASS_OF_MODEL_TYPE[model_type])
    return merged


def added_tokens(config: Config, vocab: Mapping[str, int]) -> list[AddedToken]:
    """Return the tokens that a config adds; those it names as BOS, EOS and so on are special tokens.

    vocab: Token -> id, to find the ids of named tokens that the config does not list.
    """
    names = {text for key in TOKEN_NAMES if isinstance(text := token_text(config.get(key)), str)}
    found: dict[str, AddedToken] = {}
    for index, entry in config.get("added_tokens_decoder", {}).items():
        try:
            text, flags = entry["content"], {key: bool(entry.get(key)) for key in ("special", "lstrip", "rstrip")}
            found[text] = AddedToken(int(index), text, **flags | {"special": flags["special"] or text in names})
        except (TypeError, KeyError, ValueError) as error:
            raise TokenizerError(
                f"{CONFIG}: added_tokens_decoder must map ids to tokens with a content, got {index!r}: {entry!r}"
            ) from error
    for text in sorted(names - found.keys()):
        if text in vocab:
            found[text] = AddedToken(vocab[text], text, special=True)
    return list(found.values())


def _tokenizer_class(config: Config, default: str = "") -> str:
    return str(config.get("tokenizer_class", default)).removesuffix("Fast")


# ---- loaders: each takes the paths, the config and the chat template, and returns a backend and config defaults


def _load_sentencepiece(paths: Paths, config: Config, template: str) -> tuple[TokenizerBackend, dict[str, Any]]:
    kind = _tokenizer_class(config)
    if kind in SHIFTED_CLASSES:
        raise TokenizerError(f"{kind} does not use the ids of its SentencePiece model: the folder needs tokenizer.json")
    data = paths[0].read_bytes()
    # "legacy" of Llama's tokenizer: each text between special tokens gets a dummy prefix space of its own
    prefix_after_special, added = bool(config.get("legacy", False)), added_tokens(config, {})
    if kind == "T5Tokenizer":
        prefix_after_special, added = True, added + sentinels(data, config, {token.text for token in added})
    backend = SentencePieceTokenizer(
        data, added, name=paths[0].name, template=template, prefix_after_special=prefix_after_special
    )
    return backend, {}


def sentinels(data: bytes, config: Config, existing: Collection[str]) -> list[AddedToken]:
    """Return T5's sentinel tokens <extra_id_0>, ..., which its model file lacks; <extra_id_0> has the last id."""
    n = config.get("extra_ids", 100)
    if type(n) is not int or n < 0:
        raise TokenizerError(f"{CONFIG}: extra_ids must be an integer of at least 0, got {n!r}")
    names = [f"<extra_id_{i}>" for i in range(n)]
    if all(name in existing for name in names):
        return []
    pieces = [piece.text for piece in parse_sentencepiece(data).pieces]
    if any(name in pieces for name in names):  # a model made from a GGUF file contains them
        return []
    return [
        AddedToken(len(pieces) + n - 1 - i, name, special=True) for i, name in enumerate(names) if name not in existing
    ]


def _load_source_target(paths: Paths, config: Config, template: str) -> tuple[TokenizerBackend, dict[str, Any]]:
    target_vocab = paths[0].with_name(TARGET_VOCAB)
    separate = bool(config.get("separate_vocabs"))
    if separate != target_vocab.exists():
        state = "exists" if target_vocab.exists() else "is missing"
        raise TokenizerError(f"separate_vocabs is {str(separate).lower()} in {CONFIG}, but {target_vocab} {state}")
    if separate:
        paths = (*paths, target_vocab)
    names = {key: token_text(config.get(key)) or name for key, name in SPECIAL_TOKENS.items()}
    return SourceTargetTokenizer(tuple(path.read_bytes() for path in paths), names), {}


def _load_tiktoken(paths: Paths, config: Config, template: str) -> tuple[TokenizerBackend, dict[str, Any]]:
    ranks = parse_tiktoken(paths[0].read_bytes())
    pattern, special_tokens, defaults = ENCODINGS.get(len(ranks), (config.get("pattern"), {}, {}))
    if not isinstance(pattern, str):
        raise TokenizerError(
            f"no known encoding has {len(ranks)} ranks (known: {', '.join(map(str, ENCODINGS))}): set the split "
            f'pattern ("pattern", a regular expression) and the special tokens (added_tokens_decoder) in {CONFIG}'
        )
    added = {text: AddedToken(index, text, special=True) for text, index in special_tokens.items()}
    added |= {token.text: token for token in added_tokens(config, {})}
    backend = HFTokenizer(json.dumps(tiktoken_json(ranks, pattern, added.values())), template)
    for text, index in backend.special_tokens.items():
        if index in backend.encode([text], parse_special=False)[0]:
            raise TokenizerError(f"with the pattern {pattern!r}, the plain text {text!r} would become a special token")
    return backend, dict(defaults)


def _load_bpe(paths: Paths, config: Config, template: str) -> tuple[TokenizerBackend, dict[str, Any]]:
    vocab, merges = parse_bpe(read_text(paths[0]), read_text(paths[1]))
    kind = _tokenizer_class(config, "GPT2Tokenizer")
    if kind not in BPE_CLASSES:
        raise TokenizerError(f"tokenizer_class {kind} is unknown for this format; known: {', '.join(BPE_CLASSES)}")
    defaults: dict[str, Any] = {key: name for key, name in BPE_CLASSES[kind].items() if name in vocab or key in config}
    names = {**defaults, **config}
    prefix_space = bool(config.get("add_prefix_space"))
    parts: dict[str, Any] = {"pre_tokenizer": byte_level(GPT2, prefix_space=prefix_space), "decoder": BYTE_LEVEL}
    if kind == "Qwen2Tokenizer":
        parts |= {"pre_tokenizer": byte_level(QWEN2, prefix_space=prefix_space), "normalizer": {"type": "NFC"}}
    if BPE_CLASSES[kind] is ROBERTA_TOKENS:
        sep, cls = token_text(names["sep_token"]), token_text(names["cls_token"])
        parts["post_processor"] = {
            "type": "RobertaProcessing",
            "sep": [sep, vocab[sep]],
            "cls": [cls, vocab[cls]],
            "trim_offsets": True,
            "add_prefix_space": prefix_space,
        }
    contents = tokenizer_json(bpe_model(vocab, merges), added_tokens(names, vocab), **parts)
    return HFTokenizer(json.dumps(contents), template), defaults


def _load_wordpiece(paths: Paths, config: Config, template: str) -> tuple[TokenizerBackend, dict[str, Any]]:
    kind = _tokenizer_class(config, "BertTokenizer")
    if kind not in WORDPIECE_CLASSES:
        known = ", ".join(WORDPIECE_CLASSES)
        raise TokenizerError(f"tokenizer_class {kind} is unknown for vocab.txt; known: {known}")
    names = {key: token_text(config.get(key)) or name for key, name in BERT_TOKENS.items()}
    contents = wordpiece_json(
        parse_vocab_txt(read_text(paths[0])),
        lowercase=bool(config.get("do_lower_case", True)),
        strip_accents=config.get("strip_accents"),
        split_chinese=bool(config.get("tokenize_chinese_chars", True)),
        names=names,
    )
    return HFTokenizer(json.dumps(contents), template), dict(names)


Loader = Callable[[Paths, Config, str], tuple[TokenizerBackend, dict[str, Any]]]
LOADERS: dict[str, Loader] = {
    "sentencepiece": _load_sentencepiece,
    "source_target": _load_source_target,
    "tiktoken": _load_tiktoken,
    "bpe": _load_bpe,
    "wordpiece": _load_wordpiece,
}
