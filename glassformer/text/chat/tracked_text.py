"""Strings with a record of which characters a chat template wrote.

A message must not forge a special token. The template's literals are therefore `TrackedText`, and the text of messages
is plain `str`. Every operation of `TrackedText` carries the origin of each character to its result:

    literal   "<|" + role + "|>" + content      ->  "<|user|>Hi <|end|>"
                                                     111111110000000000     "1": written by the template

An operation that is not defined here is inherited from `str` and returns a plain `str`: text of unknown origin counts
as the text of a message. So a character marked "1" always comes from the template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from markupsafe import Markup, escape

_PERCENT = re.compile(
    r"%(?:\((?P<key>[^()]*)\))?[#0\- +]*(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d+))?[hlL]?(?P<type>.)", re.DOTALL
)
_REGION = re.compile("1+")


class TrackedText(str):
    """A text and the origin of its characters: `_origin[i]` is "1" if the template wrote character i, else "0"."""

    __slots__ = ("_origin",)
    _origin: str

    def __new__(cls, text: str, origin: str | None = None) -> Self:
        self = super().__new__(cls, text)
        self._origin = "0" * len(text) if origin is None else origin
        return self

    def __str__(self) -> str:
        return self

    @property
    def is_from_template(self) -> bool:
        """Whether the template wrote all characters."""
        return "0" not in self._origin

    def __add__(self, other: Any) -> Any:
        return join_texts((self, other)) if _is_text(other) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return join_texts((other, self)) if _is_text(other) else NotImplemented

    def __mul__(self, count: Any) -> Self:
        return type(self)(str.__mul__(self, count), self._origin * count)

    def __rmul__(self, count: Any) -> Self:
        return self * count

    def __mod__(self, values: Any) -> str:
        return format_percent(self, values)

    def __getitem__(self, key: Any) -> Self:
        return type(self)(str.__getitem__(self, key), self._origin[key])

    def __iter__(self) -> Iterator[TrackedText]:
        return map(TrackedText, super().__iter__(), self._origin)

    # ---- letter case

    def recased(self, text: str) -> Self:
        """Return `text`, which is this text in other letter case. If its length differs, its origin is unknown."""
        return type(self)(text, self._origin if len(text) == len(self) else None)

    def upper(self) -> Self:
        return self.recased(super().upper())

    def lower(self) -> Self:
        return self.recased(super().lower())

    def casefold(self) -> Self:
        return self.recased(super().casefold())

    def swapcase(self) -> Self:
        return self.recased(super().swapcase())

    def title(self) -> Self:
        return self.recased(super().title())

    def capitalize(self) -> Self:
        return self.recased(super().capitalize())

    # ---- parts

    def lstrip(self, chars: Any = None, /) -> Self:
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: Any = None, /) -> Self:
        return self[: len(super().rstrip(chars))]

    def strip(self, chars: Any = None, /) -> Self:
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> Self:
        return self[len(self) - len(super().removeprefix(prefix)) :]

    def removesuffix(self, suffix: str, /) -> Self:
        return self[: len(super().removesuffix(suffix))]

    def split(self, sep: Any = None, maxsplit: Any = -1) -> list[Any]:
        return self._cut(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: Any = None, maxsplit: Any = -1) -> list[Any]:
        return self._cut(super().rsplit(sep, maxsplit), sep)

    def _cut(self, parts: Iterable[str], sep: str | None) -> list[Self]:
        """Return the parts between separators; None separates at white space, which no part begins with."""
        cut, at = [], 0
        for part in parts:
            start = self.find(part, at) if sep is None else at
            at = start + len(part)
            cut.append(self[start:at])
            at += len(sep or "")
        return cut

    def splitlines(self, keepends: Any = False) -> list[Any]:
        cut, at = [], 0
        for line, complete in zip(super().splitlines(keepends), super().splitlines(True), strict=True):
            cut.append(self[at : at + len(line)])
            at += len(complete)
        return cut

    def partition(self, sep: str, /) -> Any:
        return self._split_at(self.find(sep), sep) if sep in self else (self, self[:0], self[:0])

    def rpartition(self, sep: str, /) -> Any:
        return self._split_at(self.rfind(sep), sep) if sep in self else (self[:0], self[:0], self)

    def _split_at(self, at: int, sep: str) -> tuple[Self, Self, Self]:
        if not sep:
            raise ValueError("empty separator")
        return self[:at], self[at : at + len(sep)], self[at + len(sep) :]

    # ---- combinations

    def replace(self, old: str, new: str, count: Any = -1, /) -> str:
        if not old:
            return super().replace(old, new, count)
        return _join(new, self.split(old, count))

    def join(self, texts: Iterable[str], /) -> str:
        return _join(self, texts)

    # ---- results

    def regions(self) -> list[tuple[int, int]]:
        """Return the ranges of characters that the template wrote."""
        return [match.span() for match in _REGION.finditer(self._origin)]


class TrackedMarkup(TrackedText):
    """Text marked as HTML by `safe` or `escape`. As by markupsafe's `Markup`, what is added to it is escaped first."""

    __slots__ = ()

    def __html__(self) -> str:
        return str.__str__(self)

    def __str__(self) -> str:
        return TrackedText(str.__str__(self), self._origin)

    def __add__(self, other: Any) -> Any:
        return _markup(join_texts((self, _escape(other)))) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return _markup(join_texts((_escape(other), self))) if isinstance(other, str) else NotImplemented

    def __mod__(self, values: Any) -> str:
        return TrackedMarkup(Markup(self) % values)

    def replace(self, old: str, new: str, count: Any = -1, /) -> str:
        return _markup(super().replace(old, _escape(new), count))

    def join(self, texts: Iterable[Any], /) -> str:
        return _markup(super().join(map(_escape, texts)))


def _markup(text: str) -> TrackedMarkup:
    return TrackedMarkup(text, text._origin if isinstance(text, TrackedText) else None)


def _escape(value: Any) -> str:
    if hasattr(value, "__html__") or not isinstance(value, TrackedText):
        return escape(value)
    for char in "&<>'\"":  # in this order: the results of the others contain &
        value = value.replace(char, str(escape(char)))
    return value


def mark_safe(value: Any) -> TrackedMarkup:
    """Return a text marked as HTML."""
    return _markup(value if isinstance(value, TrackedText) else Markup(value))


def mark_escaped(value: Any) -> TrackedMarkup:
    """Return a text with HTML's special characters escaped, marked as HTML."""
    return _markup(_escape(value))


def template_text(text: str) -> TrackedText:
    """Return text that the template wrote."""
    return TrackedText(text, "1" * len(text))


def message_text(text: str) -> TrackedText:
    """Return text that the template did not write, with the methods of `TrackedText`."""
    return TrackedText(text)


def join_texts(texts: Iterable[str]) -> str:
    """Concatenate texts."""
    texts = list(texts)
    joined = "".join(texts)
    if not any(isinstance(text, TrackedText) for text in texts):
        return joined
    return TrackedText(
        joined, "".join([text._origin if isinstance(text, TrackedText) else "0" * len(text) for text in texts])
    )


def _join(separator: str, texts: Iterable[str]) -> str:
    pieces: list[str] = []
    for text in texts:
        pieces += (separator, text)
    return join_texts(pieces[1:])


def format_percent(template: str, values: Any) -> str:
    """Return `template % values`."""
    plain = str.__mod__(template, values)
    pattern = template if isinstance(template, TrackedText) else message_text(template)
    mapping: Any = values
    rest = iter(values if isinstance(values, tuple) else (values,))
    pieces: list[str] = []
    at = 0
    for match in _PERCENT.finditer(pattern):
        pieces.append(pattern[at : match.start()])
        at = match.end()
        key, kind = match["key"], match["type"]
        if "*" in (match["width"], match["precision"]):
            return plain
        if kind == "%":
            pieces.append(pattern[at - 1 : at])
            continue
        value = mapping[key] if key is not None else next(rest)
        simple = kind == "s" and match["width"] is None and match["precision"] is None
        pieces.append(str(value) if simple else match[0] % ((value,) if key is None else {key: value}))
    joined = join_texts([*pieces, pattern[at:]])
    return joined if joined == plain else plain


def written_by_template(value: Any) -> bool:
    """Return whether a value contains text that the template wrote."""
    if isinstance(value, TrackedText):
        return "1" in value._origin
    if isinstance(value, Mapping):
        return any(map(written_by_template, value)) or any(map(written_by_template, value.values()))
    return isinstance(value, list | tuple) and any(map(written_by_template, value))


def _is_text(value: Any) -> bool:
    """Return whether a value is a str; markup is not, because it escapes what is added to it."""
    return isinstance(value, str) and not hasattr(value, "__html__")
