"""The tokens of a text, and the byte-pair merges of a word. View 2."""

from __future__ import annotations

from dataclasses import dataclass

from glassformer.errors import RequestError, TokenizerError
from glassformer.inspect.trace.trace import Language, Receipt, bytes_text
from glassformer.text.bpe import BPE
from glassformer.text.hf_tokenizer import HFTokenizer
from glassformer.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenInfo:
    """A token. bytes: hexadecimal; text[start:end]: the characters that it covers (0 and 0: none)."""

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
    """The parts of a word after one merge. rank: of the merge, from 0; at: the index of the merged part."""

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

    Raises:
        RequestError: The model has no tokenizer.
        TokenizerError: The text cannot be encoded as UTF-8.
    """
    tokenizer = require_tokenizer(lm)
    found = tokenizer.encode_offsets(text)
    control = set(tokenizer.special_tokens.values())
    infos = tuple(
        TokenInfo(id, bytes_text(data), data.hex(), start, end, id in control)
        for id, data, (start, end) in zip(found.ids, found.tokens, found.offsets, strict=True)
    )
    joined = b"".join(data for id, data in zip(found.ids, found.tokens, strict=True) if id not in control)
    differs = float(joined.decode("utf-8", "replace").strip() != text.strip())
    receipt = Receipt(f"lm.tokenizer.encode_offsets({text!r})", "0 if the tokens' bytes, joined, are the text", differs)
    return TokensView(text, infos, len(text.encode()), tokenizer.vocab_size, receipt)


def merges(lm: Language, *, word: str) -> Merges:
    """The byte-pair merges that produce the tokens of a word, in order.

    Raises:
        RequestError: The tokenizer is not a byte-pair tokenizer, or `word` is not exactly one word.
    """
    tokenizer = require_tokenizer(lm)
    core = tokenizer.backend
    if not isinstance(core, HFTokenizer):
        raise RequestError(f"merges need a byte-pair tokenizer; this one is {core.kind}", param="word")
    try:
        bpe = BPE.from_json(core.json)
    except TokenizerError as error:
        raise RequestError(f"merges are not supported for this tokenizer: {error}", param="word") from None
    words = bpe.words(word)
    if words != [word]:
        raise RequestError(f"word must be one word; the tokenizer splits {word!r} into {words}", param="word")
    steps = tuple(
        Merge(tuple(map(bytes_text, step.parts)), tuple(part.hex() for part in step.parts), step.rank, step.at)
        for step in bpe.merge_steps(word)
    )
    ids = tuple(bpe.vocab[bytes.fromhex(part)] for part in steps[-1].bytes)
    fast = tokenizer.encode(word, bare=True)
    receipt = Receipt(
        f"lm.merges(word={word!r})",
        "0 if the last parts' ids are the fast tokenizer's",
        float(list(ids) != fast),
    )
    return Merges(word, steps, ids, receipt)


def require_tokenizer(lm: Language) -> Tokenizer:
    if lm.tokenizer is None:
        raise RequestError("this model has no tokenizer", param="text")
    return lm.tokenizer
