"""Control tokens in a text: which there are, and where a text is cut at them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import regex

_CONTROL = re.compile(r"<\|.*\|>\Z", re.DOTALL)  # <|endoftext|>, <|fim_prefix|>, ...
_MARKUP = re.compile(r"<.*>\Z|\[.*\]\Z", re.DOTALL)  # <tool_call>, [INST], ...: control where the template writes them


@dataclass(frozen=True)
class AddedToken:
    """A token that is looked for in the text before any other.

    special: flagged as a control token;  lstrip, rstrip: whether it takes in the white space before and after it.
    """

    id: int
    text: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False


def control_tokens(added: Iterable[AddedToken], template: str) -> dict[str, int]:
    """text -> id of those that only the program may write: flagged special, spelled <|...|>, or added <...> or [...]
    that the chat template writes."""
    return {
        token.text: token.id
        for token in sorted(added, key=lambda token: token.id)
        if token.special or _CONTROL.match(token.text) or (_MARKUP.match(token.text) and token.text in template)
    }


class SpecialTokenSplitter:
    """Cuts a text at tokens: the leftmost first, of those that begin at one place the longest."""

    def __init__(self, tokens: Iterable[AddedToken]):
        self.tokens: Mapping[str, AddedToken] = {token.text: token for token in tokens if token.text}
        longest_first = sorted(self.tokens, key=len, reverse=True)
        self.pattern = regex.compile("|".join(map(regex.escape, longest_first)) or "(?!)")

    def __call__(
        self, text: str, regions: Iterable[tuple[int, int]] | None = None
    ) -> Iterator[tuple[int, int, int | None]]:
        """(start, end, token id) of every part of `text`, in order; None for what is not one of the tokens.

        regions: where in the text a token may stand, wholly; everywhere by default.
        """
        at = 0
        for first, last in ((0, len(text)),) if regions is None else regions:
            for found in self.pattern.finditer(text, max(first, at), max(last, at)):
                token, (start, end) = self.tokens[found[0]], found.span()
                while token.lstrip and start > at and _is_space(text[start - 1]):
                    start -= 1
                while token.rstrip and end < len(text) and _is_space(text[end]):
                    end += 1
                if start > at:
                    yield at, start, None
                yield start, end, token.id
                at = end
        if at < len(text):
            yield at, len(text), None


def _is_space(char: str) -> bool:
    """Unicode's White_Space, which Python's `isspace` widens by four separators."""
    return char.isspace() and char not in "\x1c\x1d\x1e\x1f"
