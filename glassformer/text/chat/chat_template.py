"""A conversation as token ids, by the model's own chat template; no message can forge a control token.

    messages --template--> "<|user|>\\nHi <|end|> there<|end|>\\n" --> [user] "\\nHi <|end|> there" [end] "\\n"
                            ^^^^^^^^       ~~~~~~~     ^^^^^^^          ids of plain text, those two apart

The template is rendered twice: as it is, and with its own words marked (see `template.py`).  Only what it wrote itself
becomes a control token; all between two of them is encoded as plain text, in one piece, so that tokens are the same as
those of `transformers` where no message holds the text of a control token.  That a template trims or splits a message
does not matter: it is the template's words that are known, not the message's.

The template writes the BOS where there is to be one; nothing is added to what it writes.
"""

import random
from collections.abc import Container, Iterator, Mapping, Sequence
from datetime import datetime
from types import CodeType
from typing import Any

import jinja2

from glassformer.errors import TokenizerError
from glassformer.text.chat.sandbox import NAMES, compiled, run
from glassformer.text.special_tokens import SpecialTokenSplitter
from glassformer.text.tokenizer import Tokenizer

ROLES = frozenset(
    "system user assistant tool developer function model ipython observation environment tool_response".split()
)
Message = Mapping[str, Any]
Regions = list[tuple[int, int]]


def chat_templates(tokenizer: Tokenizer) -> dict[str, str]:
    """The chat templates that come with a tokenizer, by name: `chat_template.jinja`, or those of its configuration."""
    kept = tokenizer.config.get("chat_template")
    found: dict[str, str] = {}
    if isinstance(kept, str):
        found["default"] = kept
    elif isinstance(kept, list):
        found |= {str(one["name"]): str(one["template"]) for one in kept if isinstance(one, dict) and "template" in one}
    if tokenizer.chat_template is not None:
        found["default"] = tokenizer.chat_template
    return found


class ChatTemplate:
    """A tokenizer's chat template.  Nothing in it changes between two renderings, save the marks it has compiled."""

    def __init__(self, tokenizer: Tokenizer, name: str = "default", *, source: str | None = None):
        """name: of several templates, which;  source: a template of one's own instead.

        Raises TokenizerError where there is none of this name, and for one that is not Jinja, with its line.
        """
        if source is None:
            known = chat_templates(tokenizer)
            if name not in known:
                has = f"has the chat templates {', '.join(known)}" if known else "has no chat template"
                raise TokenizerError(f"the tokenizer {has}, and {name!r} was asked for")
            source = known[name]
        self.tokenizer, self.source, self.name = tokenizer, source, name
        self._special = tokenizer.backend.special_tokens
        self._cut = SpecialTokenSplitter(
            token for token in tokenizer.backend.added_tokens if token.text in self._special
        )
        self._tokens = {key: text for key in NAMES if isinstance(text := _text(tokenizer.config.get(key)), str)}
        self._words: set[str] = set(self._tokens.values()) | ROLES  # all that may stand between two marks
        self._plain = self._compiled(None)
        self._marked = self._new_marks("")

    def render(self, messages: Sequence[Message], **fields: Any) -> str:
        """The conversation as one text.  fields: what the template may ask for, such as `tools`, `documents`,
        `add_generation_prompt`, and `now`, a datetime for `strftime_now`.

        Raises TokenizerError when the template does, with its line, and for one that goes beyond the bounds.
        """
        return self._rendered(messages, fields)[0]

    def encode(self, messages: Sequence[Message], **fields: Any) -> list[int]:
        """The ids of the conversation.  Raises as `render`, and for a template that makes the text of a control token
        out of what it was given, or whose result depends on the marks."""
        text, regions = self._rendered(messages, fields)
        backend, ids = self.tokenizer.backend, []
        try:
            for start, end, token in self._cut(text, regions):
                if token is not None:
                    ids.append(token)
                elif start == 0:
                    ids += backend.encode([text[:end]], parse_special=False)[0]
                else:
                    ids += backend.encode_continuation(text[start:end])
        except TypeError:
            self.tokenizer.encode(text)  # says where the lone surrogate is
            raise
        return ids

    def _rendered(self, messages: Sequence[Message], fields: Mapping[str, Any]) -> tuple[str, Regions]:
        """The text, and where in it the template wrote the parts of control tokens."""
        fields = dict(fields)
        now = fields.pop("now", None) or datetime.now()
        data = {"tools": None, "documents": None, "add_generation_prompt": False} | self._tokens
        data |= {name: _plain(value, name) for name, value in fields.items()}
        data["messages"] = _plain(messages, "messages")
        if not isinstance(data["messages"], list) or not all(isinstance(one, dict) for one in data["messages"]):
            raise TokenizerError("messages must be a list of objects, each with a role and its content")
        inputs = "\0".join(_strings([value for name, value in data.items() if name not in self._tokens]))
        text = self._run(self._plain, data, now)
        marks, code = self._marked
        if any(mark in inputs or mark in text for mark in marks):
            marks, code = self._marked = self._new_marks(inputs + text)
        bare, regions = _unmarked(self._run(code, data, now, marks), marks, self._words)
        if bare != text:
            at = next(
                (i for i, (a, b) in enumerate(zip(bare, text, strict=False)) if a != b), min(len(bare), len(text))
            )
            raise self._error(
                f"it treats its own control tokens as it treats a message's text, at {text[at : at + 40]!r}"
            )
        self._check_built(text, regions, inputs)
        return text, regions

    def _check_built(self, text: str, regions: Regions, inputs: str) -> None:
        """Refuse a control token that was not marked, unless a message says it: then it is plain text."""
        inside = {at for start, end in regions for at in range(start, end)}
        for start, end, token in self._cut(text):
            if token is None or inside.issuperset(range(start, end)):
                continue
            name = text[start:end].strip()
            if {start, end - 1} <= inside:
                raise self._error(f"it makes the control token {name!r} out of what a message says")
            if name not in inputs:
                raise self._error(f"it makes the control token {name!r} in a way that is not followed here")

    def _run(self, code: CodeType, data: Mapping[str, Any], now: datetime, marks: str = "") -> str:
        def trust(value: Any) -> Any:
            known = value in ROLES or value in self._tokens.values() if isinstance(value, str) else False
            return marks[0] + value + marks[1] if marks and known else value

        try:
            return run(code, data, now, trust)
        except jinja2.TemplateError as error:
            raise self._error(str(error.message or error), _line(error)) from error
        except RecursionError as error:
            raise self._error("stopped: it calls itself without an end") from error
        except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
            raise self._error(f"{type(error).__name__}: {error}", _line(error)) from error

    def _compiled(self, marks: str | None) -> CodeType:
        names = list(self._special)

        def mark(literal: str) -> str:
            spans = list(_spans(literal, self._cut, names))
            for start, end in reversed(spans):
                assert marks
                self._words.add(literal[start:end])
                literal = literal[:start] + marks[0] + literal[start:end] + marks[1] + literal[end:]
            return literal

        try:
            return compiled(self.source, mark if marks else None)
        except jinja2.TemplateSyntaxError as error:
            raise self._error(str(error.message), error.lineno) from error
        except (RecursionError, jinja2.TemplateError, ValueError) as error:
            raise self._error(f"{type(error).__name__}: {error}") from error

    def _new_marks(self, inputs: str) -> tuple[str, CodeType]:
        """Two private-use characters that stand nowhere in the inputs, and the template compiled with them."""
        chance = random.SystemRandom()
        marks = ""
        while len(set(marks)) < 2 or any(mark in inputs or mark in self.source for mark in marks):
            marks = "".join(chr(chance.randrange(0x100000, 0x10FFFE)) for _ in range(2))
        return marks, self._compiled(marks)

    def _error(self, what: str, line: int | None = None) -> TokenizerError:
        where = "" if line is None else f", line {line}"
        return TokenizerError(f"chat template {self.name}{where}: {what}")


def _spans(literal: str, cut: SpecialTokenSplitter, names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where a string of the template holds a control token, or at its ends a part of one."""
    found = [(m.start(), m.end()) for m in cut.pattern.finditer(literal) if m.end() > m.start()]
    first, last = (found[0][0], found[-1][1]) if found else (len(literal), 0)
    head = max(
        (n for name in names for n in range(1, min(len(name), first + 1)) if literal[:n] == name[-n:]), default=0
    )
    rest = len(literal) - max(last, head)
    tail = max((n for name in names for n in range(1, min(len(name), rest + 1)) if literal[-n:] == name[:n]), default=0)
    if head:
        yield 0, head
    yield from found
    if tail:
        yield len(literal) - tail, len(literal)


def _unmarked(marked: str, marks: str, words: Container[str]) -> tuple[str, Regions]:
    """A text without its marks, and the regions between them; neighbours are one.  Marks stay that do not pair, or have
    anything but one of the template's words between them: then it is not the text any more, and is refused."""
    out: list[str] = []
    regions: Regions = []
    at = size = 0
    while True:
        start = marked.find(marks[0], at)
        end = marked.find(marks[1], at)
        if start < 0 or end < start or marked[start + 1 : end] not in words:
            out.append(marked[at:])
            return "".join(out), regions
        out += [marked[at:start], marked[start + 1 : end]]
        size += start - at
        if regions and regions[-1][1] == size:
            regions[-1] = (regions[-1][0], size + end - start - 1)
        else:
            regions.append((size, size + end - start - 1))
        size, at = size + end - start - 1, end + 1


def _strings(value: Any) -> Iterator[str]:
    """All texts in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _plain(value: Any, where: str) -> Any:
    """A copy in plain JSON types, which is all that a template gets to see."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TokenizerError(f"{where} is a {type(value).__name__}: a template is given texts, numbers, lists and objects")


def _text(entry: Any) -> Any:
    return entry.get("content") if isinstance(entry, dict) else entry


def _line(error: BaseException) -> int | None:
    """The template's line at which an error arose."""
    found, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            found = trace.tb_lineno
        trace = trace.tb_next
    return found
