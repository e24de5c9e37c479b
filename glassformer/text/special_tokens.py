"""Special tokens: which added tokens are special, and how a text is split at them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import regex
from annotated_types import Interval

from glassformer.errors import TokenizerError

_SPECIAL = re.compile(r"<\|.*\|>\Z", re.DOTALL)  # <|endoftext|>, <|fim_prefix|>, ...
_MARKUP = re.compile(r"<.*>\Z|\[.*\]\Z", re.DOTALL)  # <tool_call>, [INST], ...: special if the chat template uses them

_WORD = re.compile(r"\w")
_WHITE_SPACE = "".join(char for char in map(chr, range(0x3001)) if char.isspace() and char not in "\x1c\x1d\x1e\x1f")
"""Unicode's White_Space characters; `str.isspace` adds four separators to them."""
_SPACES = re.compile(f"[{re.escape(_WHITE_SPACE)}]*")

TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The roles of tokens, in the order in which `transformers` adds them to a vocabulary."""

MAX_ID = (1 << 22) - 1  # tables by id must fit into memory; the largest published vocabularies have a million tokens
Vocabulary = dict[str, Annotated[int, Interval(ge=0, le=MAX_ID)]]
"""The schema of a JSON file that maps each token to its id."""


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched in the text before any other token.

    special: whether the file marks it as special.
    lstrip, rstrip: whether it also absorbs the white space before and after it.
    single_word: whether it is matched only between characters that belong to no word.
    normalized: whether it is matched in the normalized text.
    """

    id: int
    text: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


def entry_text(entry: Any) -> Any:
    """Return a token's text from a config value: a string, or an object with a `content`."""
    return entry.get("content") if isinstance(entry, dict) else entry


def token_entry(token: AddedToken) -> dict[str, Any]:
    """Return a token's text and flags as Hugging Face files spell them, without the id."""
    entry = dict(vars(token))
    del entry["id"]
    return {"content": entry.pop("text"), **entry}


def check_ids(vocab: Mapping[str, int], source: object) -> None:
    """Raise TokenizerError for a token whose id is larger than MAX_ID, before a table of all ids is built."""
    token = max(vocab, key=vocab.__getitem__, default=None)
    if token is not None and vocab[token] > MAX_ID:
        raise TokenizerError(
            f"{source} gives the token {token[:40]!r} the id {vocab[token]}; at most {MAX_ID} is allowed"
        )


def find_special_tokens(added: Iterable[AddedToken], template: str) -> dict[str, int]:
    """Return text -> id of the tokens that plain text must never become.

    These are the tokens marked special, those spelled <|...|>, and those spelled <...> or [...] that occur in the
    chat template.
    """
    return {
        token.text: token.id
        for token in sorted(added, key=lambda token: token.id)
        if token.special or _SPECIAL.match(token.text) or (_MARKUP.match(token.text) and token.text in template)
    }


class SpecialTokenSplitter:
    """Splits a text at tokens: the leftmost match first; at the same position, the longest."""

    def __init__(self, tokens: Iterable[AddedToken]):
        self.tokens: Mapping[str, AddedToken] = {token.text: token for token in tokens if token.text}
        longest_first = sorted(self.tokens, key=len, reverse=True)
        self.pattern = regex.compile("|".join(map(regex.escape, longest_first)) or "(?!)")

    def __call__(
        self, text: str, regions: Iterable[tuple[int, int]] | None = None
    ) -> Iterator[tuple[int, int, int | None]]:
        """Yield (start, end, token id) of every part of `text`, in order; the id of plain text is None.

        regions: Ranges of the text; a token must lie completely inside one of them. Default: everywhere.
        """
        at = 0
        for first, last in ((0, len(text)),) if regions is None else regions:
            for match in self.pattern.finditer(text, max(first, at), max(last, at)):
                token, (start, end) = self.tokens[match[0]], match.span()
                if token.single_word and (_WORD.match(text, end) or (start and _WORD.match(text, start - 1))):
                    continue
                if token.lstrip:
                    start = at + len(text[at:start].rstrip(_WHITE_SPACE))
                if token.rstrip:
                    end = _SPACES.match(text, end).end()  # pyright: ignore[reportOptionalMemberAccess]
                if start > at:
                    yield at, start, None
                yield start, end, token.id
                at = end
        if at < len(text):
            yield at, len(text), None
