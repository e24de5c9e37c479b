"""Loading a folder's tokenizer from any supported format; `find_tokenizer` defines the order of precedence."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.json_file import parse_json, read_file
from glassformer.text.files.find import TARGET_VOCAB, find_tokenizer, read_text
from glassformer.text.files.tiktoken import ENCODINGS, END, parse_tiktoken, tiktoken_json
from glassformer.text.files.tokenizer_config import added_tokens, read_config
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
from glassformer.text.special_tokens import AddedToken, Vocabulary, entry_text, token_entry
from glassformer.text.tokenizer import CONFIG, TEMPLATE, TEMPLATE_FOLDER, Tokenizer, named_templates

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
WORDPIECE_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")

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
    config, n_rows = read_config(folder)
    templates = _read_templates(folder)
    try:
        joined = "\n".join(named_templates(config, templates).values())
        source = Source(files.paths, config, joined, n_rows)
        backend, defaults = LOADERS[files.format](source)
        return Tokenizer(backend, defaults | config, chat_template=templates)
    except TokenizerError as error:
        where = files.paths[0] if files.format != "json" else folder
        raise error if str(folder) in str(error) else TokenizerError(f"{where}: {error}") from error


def _read_templates(folder: Path) -> str | dict[str, str] | None:
    """Return the contents of `chat_template.jinja`; with files in TEMPLATE_FOLDER, all templates by name."""
    templates = {"default": read_text(folder / TEMPLATE)} if (folder / TEMPLATE).exists() else {}
    for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja")):
        templates[path.stem] = read_text(path)
    return templates.get("default") if templates.keys() <= {"default"} else templates


@dataclass(frozen=True)
class Source:
    """The input of a loader: the vocabulary's files, the config, the joined chat templates, the model's vocab_size."""

    paths: tuple[Path, ...]
    config: dict[str, Any]
    template: str
    n_rows: int | None

    def added_tokens(self, vocab: Mapping[str, int], roles: Mapping[str, Any] | None = None) -> list[AddedToken]:
        """Return the tokens that the config adds to `vocab`. They are stored in the config, which is saved.

        roles: Default tokens of the tokenizer's class by role.
        """
        tokens = added_tokens({**(roles or {}), **self.config}, vocab, n_rows=self.n_rows)
        self.config["added_tokens_decoder"] = {str(token.id): token_entry(token) for token in tokens}
        return tokens


def _tokenizer_class(config: Config, default: str = "") -> str:
    return str(config.get("tokenizer_class", default)).removesuffix("Fast")


# ---- loaders: each returns a backend and config defaults


def _load_json(source: Source) -> tuple[TokenizerBackend, dict[str, Any]]:
    backend = HFTokenizer(read_text(source.paths[0]), source.template)
    added = added_tokens(source.config, backend.vocab, backend.added_tokens, source.n_rows)
    return (HFTokenizer(backend.json, source.template, added) if added else backend), {}


def _load_sentencepiece(source: Source) -> tuple[TokenizerBackend, dict[str, Any]]:
    path, config = source.paths[0], source.config
    kind = _tokenizer_class(config)
    if kind in SHIFTED_CLASSES:
        raise TokenizerError(f"{kind} does not use the ids of its SentencePiece model: the folder needs tokenizer.json")
    model = parse_sentencepiece(data := read_file(path, error_type=TokenizerError))
    vocab = {piece.text: index for index, piece in enumerate(model.pieces)}
    # "legacy" of Llama's tokenizer: each text between special tokens gets a dummy prefix space of its own
    prefix_after_special = bool(config.get("legacy", False)) or kind == "T5Tokenizer"
    if kind == "T5Tokenizer":
        declared = {entry["content"] for entry in config["added_tokens_decoder"].values()}
        config["added_tokens_decoder"] |= {
            str(token.id): token_entry(token) for token in sentinels(vocab, config, declared)
        }
    backend = SentencePieceTokenizer(
        data,
        source.added_tokens(vocab),
        name=path.name,
        template=source.template,
        prefix_after_special=prefix_after_special,
    )
    return backend, {}


def sentinels(vocab: Mapping[str, int], config: Mapping[str, Any], declared: Collection[str]) -> list[AddedToken]:
    """Return T5's sentinel tokens <extra_id_0>, ..., which its model file lacks; <extra_id_0> has the last id."""
    n = config.get("extra_ids", 100)
    names = [f"<extra_id_{i}>" for i in range(n)]
    if any(name in vocab for name in names):  # a model made from a GGUF file contains them
        return []
    return [
        AddedToken(len(vocab) + n - 1 - i, name, special=True) for i, name in enumerate(names) if name not in declared
    ]


def _load_source_target(source: Source) -> tuple[TokenizerBackend, dict[str, Any]]:
    paths, config = source.paths, source.config
    target_vocab = paths[0].with_name(TARGET_VOCAB)
    separate = bool(config.get("separate_vocabs"))
    if separate != target_vocab.exists():
        state = "exists" if target_vocab.exists() else "is missing"
        raise TokenizerError(f"separate_vocabs is {str(separate).lower()} in {CONFIG}, but {target_vocab} {state}")
    if separate:
        paths = (*paths, target_vocab)
    names = {key: entry_text(config.get(key)) or name for key, name in SPECIAL_TOKENS.items()}
    data = tuple(read_file(path, error_type=TokenizerError) for path in paths)
    vocab = parse_json(data[2], paths[2], Vocabulary, error_type=TokenizerError)
    return SourceTargetTokenizer(data, names, source.added_tokens(vocab)), {}


def _load_tiktoken(source: Source) -> tuple[TokenizerBackend, dict[str, Any]]:
    ranks = parse_tiktoken(read_file(source.paths[0], error_type=TokenizerError))
    pattern, special_tokens, defaults = ENCODINGS.get(len(ranks), (source.config.get("pattern"), {}, {}))
    if not isinstance(pattern, str):
        raise TokenizerError(
            f"no known encoding has {len(ranks)} ranks (known: {', '.join(map(str, ENCODINGS))}): set the split "
            f'pattern ("pattern", a regular expression) and the special tokens (added_tokens_decoder) in {CONFIG}'
        )
    added = {text: AddedToken(index, text, special=True) for text, index in special_tokens.items()}
    vocab = {f"rank {rank}": rank for rank in ranks.values()} | special_tokens  # no name of a token is like this
    added |= {token.text: token for token in source.added_tokens(vocab)}
    backend = HFTokenizer(json.dumps(tiktoken_json(ranks, pattern, added.values())), source.template)
    for text, index in backend.special_tokens.items():
        if index in backend.encode([text], parse_special=False)[0]:
            raise TokenizerError(f"with the pattern {pattern!r}, the plain text {text!r} would become a special token")
    return backend, dict(defaults)


def _load_bpe(source: Source) -> tuple[TokenizerBackend, dict[str, Any]]:
    config, (vocab_path, merges_path) = source.config, source.paths
    vocab, merges = parse_bpe(read_text(vocab_path), read_text(merges_path))
    kind = _tokenizer_class(config, "GPT2Tokenizer")
    if kind not in BPE_CLASSES:
        raise TokenizerError(f"tokenizer_class {kind} is unknown for this format; known: {', '.join(BPE_CLASSES)}")
    defaults: dict[str, Any] = {key: name for key, name in BPE_CLASSES[kind].items() if name in vocab or key in config}
    is_roberta = BPE_CLASSES[kind] is ROBERTA_TOKENS
    if is_roberta and isinstance(mask := config.get("mask_token", defaults.get("mask_token")), str):
        config["mask_token"] = {"content": mask, "lstrip": True}
    added = source.added_tokens(vocab, defaults)
    prefix_space = bool(config.get("add_prefix_space"))
    parts: dict[str, Any] = {"pre_tokenizer": byte_level(GPT2, prefix_space=prefix_space), "decoder": BYTE_LEVEL}
    if kind == "Qwen2Tokenizer":
        parts |= {"pre_tokenizer": byte_level(QWEN2, prefix_space=prefix_space), "normalizer": {"type": "NFC"}}
    if is_roberta:
        ids = vocab | {token.text: token.id for token in added}
        names = {key: entry_text({**defaults, **config}.get(key)) for key in ("sep_token", "cls_token")}
        if missing := [key for key, name in names.items() if name not in ids]:
            raise TokenizerError(f"{kind} needs a {missing[0]}, but {names[missing[0]]!r} is not in the vocabulary")
        sep, cls = names["sep_token"], names["cls_token"]
        parts["post_processor"] = {
            "type": "RobertaProcessing",
            "sep": [sep, ids[sep]],
            "cls": [cls, ids[cls]],
            "trim_offsets": True,
            "add_prefix_space": prefix_space,
        }
    contents = tokenizer_json(bpe_model(vocab, merges), **parts)
    return HFTokenizer(json.dumps(contents), source.template, added), defaults


def _load_wordpiece(source: Source) -> tuple[TokenizerBackend, dict[str, Any]]:
    config = source.config
    kind = _tokenizer_class(config, "BertTokenizer")
    if kind not in WORDPIECE_CLASSES:
        known = ", ".join(WORDPIECE_CLASSES)
        raise TokenizerError(f"tokenizer_class {kind} is unknown for vocab.txt; known: {known}")
    names = {key: entry_text(config.get(key)) or name for key, name in BERT_TOKENS.items()}
    vocab = parse_vocab_txt(read_text(source.paths[0]))
    lowercase, split_chinese = config.get("do_lower_case"), config.get("tokenize_chinese_chars")
    contents = wordpiece_json(
        vocab,
        lowercase=lowercase is None or lowercase,
        strip_accents=config.get("strip_accents"),
        split_chinese=split_chinese is None or split_chinese,
        names=names,
    )
    defaults = {key: name for key, name in names.items() if name in vocab}
    return HFTokenizer(json.dumps(contents), source.template, source.added_tokens(vocab)), defaults


LOADERS: dict[str, Callable[[Source], tuple[TokenizerBackend, dict[str, Any]]]] = {
    "json": _load_json,
    "sentencepiece": _load_sentencepiece,
    "source_target": _load_source_target,
    "tiktoken": _load_tiktoken,
    "bpe": _load_bpe,
    "wordpiece": _load_wordpiece,
}
