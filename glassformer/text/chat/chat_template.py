"""Chat templates: messages -> token ids. No message can forge a special token.

    messages --template--> "<|user|>\\nHi <|end|> there<|end|>\\n" --> [user] "\\nHi <|end|> there" [end] "\\n"
                            ^^^^^^^^       ~~~~~~~     ^^^^^^^          ids of plain text between the special tokens

The template is rendered twice: unchanged, and with its own literals marked (see `sandbox.py`). Only special tokens that
the template itself emits become special tokens. The text between two of them is encoded as plain text, in one call, so
the ids equal those of `transformers` if no message contains the text of a special token. The template may trim or split
messages, because its own literals are tracked, not the messages.

The template emits the BOS where it is needed; nothing is added to its output.
"""

import random
from collections.abc import Container, Iterator, Mapping, Sequence
from datetime import datetime
from types import CodeType
from typing import Any

import jinja2

from glassformer.errors import TokenizerError
from glassformer.text.chat.sandbox import TOKEN_NAMES, compile_template, render_template
from glassformer.text.special_tokens import SpecialTokenSplitter, token_text
from glassformer.text.tokenizer import Tokenizer

ROLES = frozenset(
    "system user assistant tool developer function model ipython observation environment tool_response".split()
)
Message = Mapping[str, Any]
Regions = list[tuple[int, int]]


def chat_templates(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the chat templates of a tokenizer by name: `chat_template.jinja`, or those of its config."""
    entry = tokenizer.config.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(entry, str):
        templates["default"] = entry
    elif isinstance(entry, list):
        templates |= {
            str(item["name"]): str(item["template"]) for item in entry if isinstance(item, dict) and "template" in item
        }
    if tokenizer.chat_template is not None:
        templates["default"] = tokenizer.chat_template
    return templates


class ChatTemplate:
    """A chat template of a tokenizer. Rendering changes no state except the compiled marks."""

    def __init__(self, tokenizer: Tokenizer, name: str = "default", *, source: str | None = None):
        """Compile the template.

        Args:
            tokenizer: The tokenizer.
            name: The name of one of its templates.
            source: A Jinja template that is used instead.

        Raises:
            TokenizerError: There is no template of this name, or it is not valid Jinja; the message gives the line.
        """
        if source is None:
            known = chat_templates(tokenizer)
            if name not in known:
                has = f"has the chat templates {', '.join(known)}" if known else "has no chat template"
                raise TokenizerError(f"the tokenizer {has}, but {name!r} was requested")
            source = known[name]
        self.tokenizer, self.source, self.name = tokenizer, source, name
        self._special = tokenizer.backend.special_tokens
        self._split = SpecialTokenSplitter(
            token for token in tokenizer.backend.added_tokens if token.text in self._special
        )
        self._tokens = {
            key: text for key in TOKEN_NAMES if isinstance(text := token_text(tokenizer.config.get(key)), str)
        }
        self._words: set[str] = set(self._tokens.values()) | ROLES  # the texts that marks may enclose
        self._plain = self._compile(None)
        self._marked = self._new_marks("")

    def render(self, messages: Sequence[Message], **fields: Any) -> str:
        """Return the rendered conversation.

        Args:
            messages: Each has a role and a content.
            fields: Variables of the template, such as `tools`, `documents` and `add_generation_prompt`; and `now`, a
                datetime for `strftime_now`.

        Raises:
            TokenizerError: The template raises an error (the message gives the line) or exceeds a limit.
        """
        return self._render(messages, fields)[0]

    def encode(self, messages: Sequence[Message], **fields: Any) -> list[int]:
        """Return the ids of the conversation.

        Raises:
            TokenizerError: As `render`; or the template builds a special token out of its input; or its output depends
                on the marks.
        """
        text, regions = self._render(messages, fields)
        backend, ids = self.tokenizer.backend, []
        try:
            for start, end, token in self._split(text, regions):
                if token is not None:
                    ids.append(token)
                elif start == 0:
                    ids += backend.encode([text[:end]], parse_special=False)[0]
                else:
                    ids += backend.encode_continuation(text[start:end])
        except TypeError:
            self.tokenizer.encode(text)  # raises with the position of the lone surrogate
            raise
        return ids

    def _render(self, messages: Sequence[Message], fields: Mapping[str, Any]) -> tuple[str, Regions]:
        """Return the text, and the regions where the template emitted parts of special tokens."""
        fields = dict(fields)
        now = fields.pop("now", None) or datetime.now()
        data = {"tools": None, "documents": None, "add_generation_prompt": False} | self._tokens
        data |= {name: _plain_copy(value, name) for name, value in fields.items()}
        data["messages"] = _plain_copy(messages, "messages")
        if not isinstance(data["messages"], list) or not all(isinstance(item, dict) for item in data["messages"]):
            raise TokenizerError("messages must be a list of objects, each with a role and its content")
        inputs = "\0".join(_strings([value for name, value in data.items() if name not in self._tokens]))
        text = self._run(self._plain, data, now)
        marks, code = self._marked
        if any(mark in inputs or mark in text for mark in marks):
            marks, code = self._marked = self._new_marks(inputs + text)
        unmarked, regions = _remove_marks(self._run(code, data, now, marks), marks, self._words)
        if unmarked != text:
            at = next(
                (i for i, (a, b) in enumerate(zip(unmarked, text, strict=False)) if a != b),
                min(len(unmarked), len(text)),
            )
            raise self._error(
                f"it processes its own special tokens like the text of a message, at {text[at : at + 40]!r}"
            )
        self._check_built(text, regions, inputs)
        return text, regions

    def _check_built(self, text: str, regions: Regions, inputs: str) -> None:
        """Raise for a special token that is not marked, unless a message contains it: then it is plain text."""
        inside = {at for start, end in regions for at in range(start, end)}
        for start, end, token in self._split(text):
            if token is None or inside.issuperset(range(start, end)):
                continue
            name = text[start:end].strip()
            if {start, end - 1} <= inside:
                raise self._error(f"it builds the special token {name!r} out of the text of a message")
            if name not in inputs:
                raise self._error(f"it builds the special token {name!r} in a way that is not supported")

    def _run(self, code: CodeType, data: Mapping[str, Any], now: datetime, marks: str = "") -> str:
        def trust(value: Any) -> Any:
            known = value in ROLES or value in self._tokens.values() if isinstance(value, str) else False
            return marks[0] + value + marks[1] if marks and known else value

        try:
            return render_template(code, data, now, trust)
        except jinja2.TemplateError as error:
            raise self._error(str(error.message or error), _line(error)) from error
        except RecursionError as error:
            raise self._error("stopped: infinite recursion") from error
        except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
            raise self._error(f"{type(error).__name__}: {error}", _line(error)) from error

    def _compile(self, marks: str | None) -> CodeType:
        names = list(self._special)

        def mark(literal: str) -> str:
            spans = list(_token_spans(literal, self._split, names))
            for start, end in reversed(spans):
                assert marks
                self._words.add(literal[start:end])
                literal = literal[:start] + marks[0] + literal[start:end] + marks[1] + literal[end:]
            return literal

        try:
            return compile_template(self.source, mark if marks else None)
        except jinja2.TemplateSyntaxError as error:
            raise self._error(str(error.message), error.lineno) from error
        except (RecursionError, jinja2.TemplateError, ValueError) as error:
            raise self._error(f"{type(error).__name__}: {error}") from error

    def _new_marks(self, inputs: str) -> tuple[str, CodeType]:
        """Return two private-use characters that the inputs do not contain, and the template compiled with them."""
        rng = random.SystemRandom()
        marks = ""
        while len(set(marks)) < 2 or any(mark in inputs or mark in self.source for mark in marks):
            marks = "".join(chr(rng.randrange(0x100000, 0x10FFFE)) for _ in range(2))
        return marks, self._compile(marks)

    def _error(self, problem: str, line: int | None = None) -> TokenizerError:
        where = "" if line is None else f", line {line}"
        return TokenizerError(f"chat template {self.name}{where}: {problem}")


def _token_spans(literal: str, split: SpecialTokenSplitter, names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the spans of special tokens in a template literal, including partial ones at its start and end."""
    spans = [(m.start(), m.end()) for m in split.pattern.finditer(literal) if m.end() > m.start()]
    first, last = (spans[0][0], spans[-1][1]) if spans else (len(literal), 0)
    head = max(
        (n for name in names for n in range(1, min(len(name), first + 1)) if literal[:n] == name[-n:]), default=0
    )
    rest = len(literal) - max(last, head)
    tail = max((n for name in names for n in range(1, min(len(name), rest + 1)) if literal[-n:] == name[:n]), default=0)
    if head:
        yield 0, head
    yield from spans
    if tail:
        yield len(literal) - tail, len(literal)


def _remove_marks(marked: str, marks: str, words: Container[str]) -> tuple[str, Regions]:
    """Return a text without its marks, and the regions between them; adjacent regions are merged.

    Marks that do not match, or that enclose anything but a literal of the template, are not removed. The result then
    differs from the unmarked text, and the caller rejects it.
    """
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
    """Yield all strings in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _plain_copy(value: Any, where: str) -> Any:
    """Return a copy in plain JSON types, the only types that a template receives."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str(key): _plain_copy(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain_copy(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TokenizerError(f"{where} must be a string, number, bool, null, list or object, got {type(value).__name__}")


def _line(error: BaseException) -> int | None:
    """Return the line of the template at which an error occurred."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
