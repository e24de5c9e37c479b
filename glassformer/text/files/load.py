"""A folder's tokenizer, in whichever format it is kept; `files.find_tokenizer` says which is read first."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.text.files.find import TARGETS, TokenizerFiles, find_tokenizer, read_text
from glassformer.text.files.vocab_files import (
    BYTE_LEVEL,
    bpe_model,
    layout_of,
    ranks_layout,
    read_bpe,
    read_ranks,
    wordpiece_layout,
)
from glassformer.text.hf_tokenizer import HFTokenizer, TokenizerBackend
from glassformer.text.patterns import CL100K, GPT2, LLAMA3, O200K, QWEN2, byte_level
from glassformer.text.sentencepiece.model_file import read_sentencepiece
from glassformer.text.sentencepiece.source_target import CONTROL, SourceTargetTokenizer
from glassformer.text.sentencepiece.tokenizer import SentencePieceTokenizer
from glassformer.text.special_tokens import AddedToken
from glassformer.text.tokenizer import CONFIG, TEMPLATE, Tokenizer, template_text

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# Class names of `transformers`, which older files leave to say how a vocabulary is used.
BERT = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
ROBERTA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>"}
ROBERTA |= {"cls_token": "<s>", "mask_token": "<mask>"}
END = "<|endoftext|>"
BPE_CLASSES: dict[str, dict[str, str]] = {
    "GPT2Tokenizer": {"bos_token": END, "eos_token": END, "unk_token": END},
    "Qwen2Tokenizer": {"eos_token": END, "pad_token": END},
    "RobertaTokenizer": ROBERTA,
    "BartTokenizer": ROBERTA,
    "LongformerTokenizer": ROBERTA,
}
SHIFTED = ("XLMRobertaTokenizer", "CamembertTokenizer")  # whose control tokens stand before all of a model's pieces
MODEL_CLASSES = {"bart": "BartTokenizer", "roberta": "RobertaTokenizer", "t5": "T5Tokenizer"}  # where nothing says it
WORDPIECE_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")

RESERVED = "<|reserved_special_token_{}|>"
LLAMA3_CONTROL = ["<|begin_of_text|>", "<|end_of_text|>", *map(RESERVED.format, range(4)), "<|start_header_id|>"]
LLAMA3_CONTROL += ["<|end_header_id|>", RESERVED.format(4), "<|eot_id|>", *map(RESERVED.format, range(5, 251))]
FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")

# A file of ranks says neither how text is cut nor which the control tokens are: its number of tokens tells them.
RANKS: dict[int, tuple[str, dict[str, int], dict[str, Any]]] = {
    50256: (GPT2, {END: 50256}, {"eos_token": END}),
    100256: (CL100K, {END: 100257} | {t: 100258 + i for i, t in enumerate(FIM)} | {"<|endofprompt|>": 100276},
             {"eos_token": END}),
    128000: (LLAMA3, {t: 128000 + i for i, t in enumerate(LLAMA3_CONTROL)},
             {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "add_bos_token": True}),
    151643: (QWEN2, {END: 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}, {"eos_token": END}),
    199998: (O200K, {END: 199999, "<|endofprompt|>": 200018}, {"eos_token": END}),
}  # fmt: skip


def open_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a folder.  Raises TokenizerError naming the file, and what is wrong with it."""
    try:
        found = find_tokenizer(folder)
    except OSError as error:
        raise TokenizerError(f"{folder} cannot be read: {error.strerror or error}") from error
    if found is None:
        raise TokenizerError(
            f"{folder} has no tokenizer: looked for tokenizer.json, a SentencePiece model (tokenizer.model, "
            f"spiece.model, ...), source.spm with target.spm and vocab.json, vocab.json with "
            f"merges.txt, encoder.json with vocab.bpe, *.tiktoken and vocab.txt"
        )
    config = _json(folder / CONFIG) if found.format == "json" or (folder / CONFIG).exists() else {}
    template = read_text(folder / TEMPLATE) if (folder / TEMPLATE).exists() else None
    try:
        if found.format == "json":
            source: str | TokenizerBackend = read_text(found.paths[0])
        else:
            config = _older(folder, config)
            source, defaults = READERS[found.format](found, config, template_text(config, template))
            config = defaults | config
        return Tokenizer(source, config, chat_template=template)
    except TokenizerError as error:
        where = found.paths[0] if found.format != "json" else folder
        raise error if str(folder) in str(error) else TokenizerError(f"{where}: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise TokenizerError(f"{path} must hold a JSON object, not {type(config).__name__}")
    return config


def _older(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration, with what older folders keep in files of their own: names of tokens, and added tokens."""
    names = _json(folder / "special_tokens_map.json") if (folder / "special_tokens_map.json").exists() else {}
    merged = {key: value for key, value in names.items() if key in NAMES} | dict(config)
    if (folder / "added_tokens.json").exists():
        given = {str(index): {"content": text} for text, index in _json(folder / "added_tokens.json").items()}
        merged["added_tokens_decoder"] = given | merged.get("added_tokens_decoder", {})
    model = _json(folder / "config.json").get("model_type") if (folder / "config.json").exists() else None
    if isinstance(model, str) and model in MODEL_CLASSES:
        merged.setdefault("tokenizer_class", MODEL_CLASSES[model])
    return merged


def added_tokens(config: Mapping[str, Any], named: Mapping[str, int]) -> list[AddedToken]:
    """The tokens that a configuration adds; those that it names as its BOS, EOS and so on are control tokens.

    named: token -> id of the vocabulary, where it names one that was not added.
    """
    names = {text for key in NAMES if isinstance(text := _content(config.get(key)), str)}
    found: dict[str, AddedToken] = {}
    for index, entry in config.get("added_tokens_decoder", {}).items():
        try:
            text, flags = entry["content"], {key: bool(entry.get(key)) for key in ("special", "lstrip", "rstrip")}
            found[text] = AddedToken(int(index), text, **flags | {"special": flags["special"] or text in names})
        except (TypeError, KeyError, ValueError) as error:
            raise TokenizerError(
                f"{CONFIG}: added_tokens_decoder has {index!r}: {entry!r}, which is no token"
            ) from error
    for text in sorted(names - found.keys()):
        if text in named:
            found[text] = AddedToken(named[text], text, special=True)
    return list(found.values())


def _content(entry: Any) -> Any:
    return entry.get("content") if isinstance(entry, dict) else entry


def _sentencepiece(
    found: TokenizerFiles, config: Mapping[str, Any], template: str
) -> tuple[TokenizerBackend, dict[str, Any]]:
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if kind in SHIFTED:
        raise TokenizerError(f"the ids of {kind} are not those of its model: its folder needs a tokenizer.json")
    data = found.paths[0].read_bytes()
    # "legacy" of Llama's tokenizer: each text between control tokens begins with a space of its own
    inside, added = bool(config.get("legacy", False)), added_tokens(config, {})
    if kind == "T5Tokenizer":
        inside, added = True, added + sentinels(data, config, {token.text for token in added})
    core = SentencePieceTokenizer(data, added, name=found.paths[0].name, template=template, prefix_inside=inside)
    return core, {}


def sentinels(data: bytes, config: Mapping[str, Any], known: Collection[str]) -> list[AddedToken]:
    """The tokens that T5 marks a text's holes with, which its model lacks: the last id is <extra_id_0>'s."""
    n = config.get("extra_ids", 100)
    if type(n) is not int or n < 0:
        raise TokenizerError(f"{CONFIG}: extra_ids must be a whole number of at least 0, got {n!r}")
    names = [f"<extra_id_{i}>" for i in range(n)]
    if all(name in known for name in names):
        return []
    pieces = [piece.text for piece in read_sentencepiece(data).pieces]
    if any(name in pieces for name in names):  # the model of a GGUF file has them itself
        return []
    added = [(len(pieces) + n - 1 - i, name) for i, name in enumerate(names)]
    return [AddedToken(index, name, special=True) for index, name in added if name not in known and name not in pieces]


def _sides(found: TokenizerFiles, config: Mapping[str, Any], template: str) -> tuple[TokenizerBackend, dict[str, Any]]:
    targets = found.paths[0].with_name(TARGETS)
    apart = bool(config.get("separate_vocabs"))
    if apart != targets.exists():
        there = "is there" if targets.exists() else "is missing"
        raise TokenizerError(f"separate_vocabs is {str(apart).lower()} in {CONFIG}, and {targets} {there}")
    paths = (*found.paths, targets) if apart else found.paths
    names = {key: _content(config.get(key)) or name for key, name in CONTROL.items()}
    return SourceTargetTokenizer(tuple(path.read_bytes() for path in paths), names), {}


def _ranks(found: TokenizerFiles, config: Mapping[str, Any], template: str) -> tuple[TokenizerBackend, dict[str, Any]]:
    ranks = read_ranks(found.paths[0].read_bytes())
    pattern, control, names = RANKS.get(len(ranks), (config.get("pattern"), {}, {}))
    if not isinstance(pattern, str):
        raise TokenizerError(
            f"ranks of {len(ranks)} tokens are none that is known here ({', '.join(map(str, RANKS))}): {CONFIG} must "
            'say how text is cut ("pattern", a regular expression) and the control tokens (added_tokens_decoder)'
        )
    added = {text: AddedToken(index, text, special=True) for text, index in control.items()}
    added |= {token.text: token for token in added_tokens(config, {})}
    core = HFTokenizer(json.dumps(ranks_layout(ranks, pattern, added.values())), template)
    for text, index in core.special.items():
        if index in core.encode([text], special=False)[0]:
            raise TokenizerError(f"with the pattern {pattern!r}, the plain text {text!r} would be a control token")
    return core, dict(names)


def _bpe(found: TokenizerFiles, config: Mapping[str, Any], template: str) -> tuple[TokenizerBackend, dict[str, Any]]:
    vocab, merges = read_bpe(read_text(found.paths[0]), read_text(found.paths[1]))
    kind = str(config.get("tokenizer_class", "GPT2Tokenizer")).removesuffix("Fast")
    if kind not in BPE_CLASSES:
        raise TokenizerError(f"tokenizer_class {kind} is not known for this format; known: {', '.join(BPE_CLASSES)}")
    names: dict[str, Any] = {key: name for key, name in BPE_CLASSES[kind].items() if name in vocab or key in config}
    said = {**names, **config}
    added = added_tokens(said, vocab)
    prefix = bool(config.get("add_prefix_space"))
    parts: dict[str, Any] = {"pre_tokenizer": byte_level(GPT2, prefix_space=prefix), "decoder": BYTE_LEVEL}
    if kind == "Qwen2Tokenizer":
        parts |= {"pre_tokenizer": byte_level(QWEN2, prefix_space=prefix), "normalizer": {"type": "NFC"}}
    if BPE_CLASSES[kind] is ROBERTA:
        ends = {key: _content(said[key]) for key in ("sep_token", "cls_token")}
        frame = {
            "sep": [ends["sep_token"], vocab[ends["sep_token"]]],
            "cls": [ends["cls_token"], vocab[ends["cls_token"]]],
        }
        frame |= {"trim_offsets": True, "add_prefix_space": prefix}
        parts["post_processor"] = {"type": "RobertaProcessing"} | frame
    return HFTokenizer(json.dumps(layout_of(bpe_model(vocab, merges), added, **parts)), template), dict(names)


def _wordpiece(
    found: TokenizerFiles, config: Mapping[str, Any], template: str
) -> tuple[TokenizerBackend, dict[str, Any]]:
    kind = str(config.get("tokenizer_class", "BertTokenizer")).removesuffix("Fast")
    if kind not in WORDPIECE_CLASSES:
        raise TokenizerError(
            f"tokenizer_class {kind} is not known for vocab.txt; known: {', '.join(WORDPIECE_CLASSES)}"
        )
    names = {key: _content(config.get(key)) or name for key, name in BERT.items()}
    layout = wordpiece_layout(
        read_text(found.paths[0]),
        lowercase=bool(config.get("do_lower_case", True)),
        accents=config.get("strip_accents"),
        chinese=bool(config.get("tokenize_chinese_chars", True)),
        names=names,
    )
    return HFTokenizer(json.dumps(layout), template), dict(names)


Reader = Callable[[TokenizerFiles, Mapping[str, Any], str], tuple[TokenizerBackend, dict[str, Any]]]
READERS: dict[str, Reader] = {
    "sentencepiece": _sentencepiece,
    "sides": _sides,
    "ranks": _ranks,
    "bpe": _bpe,
    "wordpiece": _wordpiece,
}
