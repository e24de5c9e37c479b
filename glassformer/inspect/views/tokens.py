"""Of a tokenizer: the tokens of a text, and how the merges of a word make them. View 2."""

from __future__ import annotations

from dataclasses import dataclass

from glassformer.errors import RequestError, TokenizerError
from glassformer.inspect.trace.trace import Language, Receipt, bytes_text
from glassformer.text.bpe import BPE
from glassformer.text.hf_tokenizer import HFTokenizer
from glassformer.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenInfo:
    """`bytes` in hexadecimal; `text[start:end]` is what it covers (0 and 0: nothing)."""

    id: int
    text: str
    bytes: str
    start: int
    end: int
    special: bool


@dataclass(frozen=True)
class TokensView:
    text: str
    tokens: tuple[TokenInfo, ...]
    n_bytes: int
    vocab_size: int
    receipt: Receipt


@dataclass(frozen=True)
class Merge:
    """A word's parts after one merge. `rank`: which merge of the training, from 0; `at`: the part that it made."""

    parts: tuple[str, ...]
    bytes: tuple[str, ...]
    rank: int | None
    at: int | None


@dataclass(frozen=True)
class Merges:
    word: str
    steps: tuple[Merge, ...]
    ids: tuple[int, ...]
    receipt: Receipt


def tokens(lm: Language, *, text: str) -> TokensView:
    """The tokens of a text: ids, bytes and the characters that each covers.

    RequestError where the model has no tokenizer; TokenizerError for text that no UTF-8 can hold.
    """
    tokenizer = tokenizer_of(lm)
    found = tokenizer.encode_offsets(text)
    control = set(tokenizer.special_tokens.values())
    infos = tuple(
        TokenInfo(id, bytes_text(data), data.hex(), start, end, id in control)
        for id, data, (start, end) in zip(found.ids, found.tokens, found.offsets, strict=True)
    )
    whole = b"".join(data for id, data in zip(found.ids, found.tokens, strict=True) if id not in control)
    same = float(whole.decode("utf-8", "replace").strip() != text.strip())
    receipt = Receipt(f"lm.tokenizer.encode_offsets({text!r})", "the tokens' bytes, joined, are the text", same)
    return TokensView(text, infos, len(text.encode()), tokenizer.vocab_size, receipt)


def merges(lm: Language, *, word: str) -> Merges:
    """How byte-pair encoding makes a word's tokens, one merge after the other, by the readable definition.

    RequestError where the tokenizer is of another kind, and where `word` is none, or more than one.
    """
    tokenizer = tokenizer_of(lm)
    core = tokenizer.backend
    if not isinstance(core, HFTokenizer):
        raise RequestError(f"merges are of byte-pair encoding; this tokenizer is {core.kind}", param="word")
    try:
        bpe = BPE.from_json(core.json)
    except TokenizerError as error:
        raise RequestError(f"merges cannot be shown one by one: this tokenizer is {error}", param="word") from None
    words = bpe.words(word)
    if words != [word]:
        raise RequestError(f"merges are of one word; the tokenizer cuts {word!r} into {words}", param="word")
    steps = tuple(
        Merge(tuple(map(bytes_text, step.parts)), tuple(part.hex() for part in step.parts), step.rank, step.at)
        for step in bpe.merge_steps(word)
    )
    ids = tuple(bpe.vocab[bytes.fromhex(part)] for part in steps[-1].bytes)
    theirs = tokenizer.encode(word, bare=True)
    receipt = Receipt(
        f"lm.merges(word={word!r})",
        "the last parts' ids are the fast tokenizer's",
        float(list(ids) != theirs),
    )
    return Merges(word, steps, ids, receipt)


def tokenizer_of(lm: Language) -> Tokenizer:
    if lm.tokenizer is None:
        raise RequestError("this model has no tokenizer: it takes token ids", param="text")
    return lm.tokenizer
