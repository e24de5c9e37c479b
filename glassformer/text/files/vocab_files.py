"""GPT-2's BPE files and BERT's `vocab.txt`, converted to the contents of a `tokenizer.json` that gives the same ids."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.json_file import parse_json
from glassformer.text.special_tokens import AddedToken, Vocabulary, token_entry

JSONObject = dict[str, Any]

BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def tokenizer_json(model: JSONObject, added: Iterable[AddedToken] = (), **parts: Any) -> JSONObject:
    """Return a `tokenizer.json` with this model, these added tokens and pipeline parts (the others are null)."""
    tokens = [{"id": token.id, **token_entry(token)} for token in sorted(added, key=lambda token: token.id)]
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0"} | empty | parts | {"added_tokens": tokens, "model": model}


def bpe_model(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], **options: Any) -> JSONObject:
    """Return the `model` of a BPE. `merges` are pairs of tokens, highest priority first."""
    defaults = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    defaults |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE"} | defaults | options | {"vocab": dict(vocab), "merges": [list(pair) for pair in merges]}


def parse_bpe(vocab_json: str, merges_txt: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Parse GPT-2's `vocab.json` and `merges.txt` (or `encoder.json` and `vocab.bpe`).

    Returns:
        The vocabulary (token -> id), and the merges, highest priority first.

    Raises:
        TokenizerError: A file is malformed, or a merge is not two tokens that form a third; the message gives the line.
    """
    vocab = parse_json(vocab_json, "the vocabulary", Vocabulary, error_type=TokenizerError)
    merges = []
    for number, line in enumerate(merges_txt.split("\n"), 1):
        if (number == 1 and line.startswith("#version")) or not line.strip("\r"):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not all(part in vocab for part in (*pair, "".join(pair))):
            raise TokenizerError(
                f"line {number} of the merges must be two tokens that form a token of the vocabulary, got {line!r}"
            )
        merges.append((pair[0], pair[1]))
    return vocab, merges


def parse_vocab_txt(vocab_txt: str) -> dict[str, int]:
    """Parse BERT's `vocab.txt`: one token per line; its id is the line number from 0. Returns token -> id."""
    lines = vocab_txt.split("\n")
    tokens = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        duplicate = next(token for index, token in enumerate(tokens) if vocab[token] != index)
        raise TokenizerError(f"the vocabulary contains the token {duplicate!r} twice")
    return vocab


def wordpiece_json(
    vocab: Mapping[str, int],
    *,
    lowercase: bool,
    strip_accents: bool | None,
    split_chinese: bool,
    names: Mapping[str, str],
) -> JSONObject:
    """Return the `tokenizer.json` of BERT's WordPiece; tokens that continue a word begin with ##.

    Args:
        vocab: Token -> id.
        lowercase: Whether text is lowercased.
        strip_accents: Whether accents are removed; None: the same as `lowercase`.
        split_chinese: Whether each Chinese character becomes a word of its own.
        names: Texts of the special tokens, as BERT_TOKENS.

    Raises:
        TokenizerError: The unk, cls or sep token is not in the vocabulary.
    """
    for key in ("unk_token", "cls_token", "sep_token"):
        if names[key] not in vocab:
            raise TokenizerError(f"the {key} {names[key]!r} is not in the vocabulary of {len(vocab)} tokens")
    cls, sep = names["cls_token"], names["sep_token"]
    single: list[JSONObject] = [_special(cls), {"Sequence": {"id": "A", "type_id": 0}}, _special(sep)]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}, _special(sep, 1)]
    special_tokens = {token: {"id": token, "ids": [vocab[token]], "tokens": [token]} for token in (cls, sep)}
    added = {name: AddedToken(vocab[name], name, special=True) for name in names.values() if name in vocab}
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": split_chinese,
        "strip_accents": strip_accents,
        "lowercase": lowercase,
    }
    model = {
        "type": "WordPiece",
        "unk_token": names["unk_token"],
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": dict(vocab),
    }
    return tokenizer_json(
        model,
        added.values(),
        normalizer=normalizer,
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor={"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special_tokens},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


def _special(token: str, type_id: int = 0) -> JSONObject:
    return {"SpecialToken": {"id": token, "type_id": type_id}}
