"""Vocabularies from before `tokenizer.json`: GPT-2's pair of files, BERT's list, and tiktoken's ranks.

Each function returns the layout of a `tokenizer.json` that gives the same ids.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.text.patterns import byte_alphabet, byte_level
from glassformer.text.special_tokens import AddedToken

Layout = dict[str, Any]


def layout_of(model: Layout, added: Iterable[AddedToken] = (), **parts: Any) -> Layout:
    """A `tokenizer.json`: its model, its added tokens, and what else differs from nothing at all."""
    tokens = [
        {
            "id": token.id,
            "content": token.text,
            "single_word": False,
            "lstrip": token.lstrip,
            "rstrip": token.rstrip,
            "normalized": False,
            "special": token.special,
        }
        for token in sorted(added, key=lambda token: token.id)
    ]
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0"} | empty | parts | {"added_tokens": tokens, "model": model}


def bpe_model(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], **options: Any) -> Layout:
    """The `model` of a BPE.  merges: pairs of tokens, best first."""
    known = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    known |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE"} | known | options | {"vocab": dict(vocab), "merges": [list(pair) for pair in merges]}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def read_bpe(vocab_json: str, merges_txt: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """GPT-2's `vocab.json` and `merges.txt` (`encoder.json` and `vocab.bpe`): token -> id, and pairs, best first.

    Raises TokenizerError naming the line of a merge that is not two tokens of the vocabulary which make a third.
    """
    try:
        vocab = json.loads(vocab_json)
    except json.JSONDecodeError as error:
        raise TokenizerError(f"the vocabulary is not JSON: {error}") from error
    if not isinstance(vocab, dict) or not all(type(index) is int and index >= 0 for index in vocab.values()):
        raise TokenizerError("the vocabulary must be a JSON object: token -> id, a number from 0")
    merges = []
    for number, line in enumerate(merges_txt.split("\n"), 1):
        if (number == 1 and line.startswith("#version")) or not line.strip("\r"):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not all(part in vocab for part in (*pair, "".join(pair))):
            raise TokenizerError(
                f"line {number} of the merges is not two tokens that make one of the vocabulary: {line!r}"
            )
        merges.append((pair[0], pair[1]))
    return vocab, merges


def wordpiece_layout(
    vocab_txt: str, *, lowercase: bool, accents: bool | None, chinese: bool, names: Mapping[str, str]
) -> Layout:
    """BERT's `vocab.txt`: a token a line, its id the line's number from 0; ## before what goes on a word.

    lowercase, accents, chinese: whether letters are made small, accents taken off (None: as letters are made small)
    and Chinese characters cut apart.  names: which tokens are the unknown, the separator, and so on.
    """
    lines = vocab_txt.split("\n")
    tokens = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocab[token] != index)
        raise TokenizerError(f"the token {twice!r} stands twice in the vocabulary")
    return wordpiece_of(vocab, lowercase=lowercase, accents=accents, chinese=chinese, names=names)


def wordpiece_of(
    vocab: Mapping[str, int], *, lowercase: bool, accents: bool | None, chinese: bool, names: Mapping[str, str]
) -> Layout:
    """`wordpiece_layout` of a vocabulary that was read already."""
    for key in ("unk_token", "cls_token", "sep_token"):
        if names[key] not in vocab:
            raise TokenizerError(f"the {key} {names[key]!r} is not in the vocabulary of {len(vocab)} tokens")
    begin, end = names["cls_token"], names["sep_token"]
    single: list[Layout] = [_special(begin), {"Sequence": {"id": "A", "type_id": 0}}, _special(end)]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}, _special(end, 1)]
    framed = {token: {"id": token, "ids": [vocab[token]], "tokens": [token]} for token in (begin, end)}
    added = {name: AddedToken(vocab[name], name, special=True) for name in names.values() if name in vocab}
    normalizer = {"clean_text": True, "handle_chinese_chars": chinese, "strip_accents": accents, "lowercase": lowercase}
    model = {"type": "WordPiece", "unk_token": names["unk_token"], "continuing_subword_prefix": "##"}
    return layout_of(
        model | {"max_input_chars_per_word": 100, "vocab": dict(vocab)},
        added.values(),
        normalizer={"type": "BertNormalizer"} | normalizer,
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor={"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": framed},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


def _special(token: str, kind: int = 0) -> Layout:
    return {"SpecialToken": {"id": token, "type_id": kind}}


# ---- tiktoken


def read_ranks(data: bytes) -> dict[bytes, int]:
    """tiktoken's file: on each line a token in base64, a space, and its rank, which is its id.

    Raises TokenizerError naming the line that is not so, and for a byte that has no token.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            word, rank = line.split()
            token = base64.b64decode(word, validate=True)
            ranks[token] = int(rank)
        except (ValueError, binascii.Error) as error:
            if line.strip():
                raise TokenizerError(f"line {number} is not a token in base64 and its rank: {line[:60]!r}") from error
    if len(set(ranks.values())) < len(ranks):
        raise TokenizerError("two tokens have the same rank")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise TokenizerError(f"{len(missing)} of the 256 bytes have no token, the first of them {missing[0]}")
    return ranks


def ranks_layout(ranks: Mapping[bytes, int], pattern: str, added: Iterable[AddedToken]) -> Layout:
    """Byte-level BPE that joins as tiktoken does: the neighbours that make the token of the lowest rank.

    A merge of two tokens is thus every way to cut a token in two others, in the order of its rank.
    """
    shown = str.maketrans({chr(byte): char for byte, char in byte_alphabet().items()})

    def spell(token: bytes) -> str:
        return token.decode("latin-1").translate(shown)

    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [(a, b) for a, b in halves if a in ranks and b in ranks]
        if len(known) > 1:
            natural = _natural(token, ranks)
            known.sort(key=lambda pair: (pair != natural, ranks[pair[0]], ranks[pair[1]]))
        merges += [(spell(a), spell(b)) for a, b in known]
    vocab = {spell(token): rank for token, rank in ranks.items()}
    added = list(added)
    for token in added:  # the library numbers tokens that the vocabulary does not have anew, without a gap
        if vocab.setdefault(token.text, token.id) != token.id:
            raise TokenizerError(f"the added token {token.text!r} has the id {token.id}, and {vocab[token.text]} too")
    model = bpe_model(vocab, merges, ignore_merges=True)
    return layout_of(model, added, pre_tokenizer=byte_level(pattern), decoder=BYTE_LEVEL)


def _natural(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that `token` is made of when its bytes are joined by rank."""
    parts, none = [bytes([byte]) for byte in token], len(ranks) << 8
    found = [ranks.get(a + b, none) for a, b in pairwise(parts)]  # the rank of each two neighbours
    while len(parts) > 2:
        at = found.index(min(found))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del found[at]
        for near in (at - 1, at):
            if 0 <= near < len(found):
                found[near] = ranks.get(parts[near] + parts[near + 1], none)
    return (parts[0], parts[1]) if len(parts) == 2 else None
