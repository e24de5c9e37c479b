"""Chat templates: messages -> token ids. No message can forge a special token.

    messages --template--> "<|user|>\\nHi <|end|> there<|end|>\\n" --> [user] "\\nHi <|end|> there" [end] "\\n"
                            ^^^^^^^^       ~~~~~~~     ^^^^^^^          ids of plain text between the special tokens

A child process renders the template, within limits of time and memory, and reports which characters the template wrote
(see `sandbox.py`, `render_worker.py`). The text of a special token becomes that token only if the template wrote all of
it. The text between two special tokens is encoded as plain text, in one call, so the ids equal those of `transformers`
if no message contains the text of a special token.

The template emits the BOS where it is needed; nothing is added to its output.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.text.chat.render_process import RENDERER, RenderedTemplate, RenderError
from glassformer.text.chat.render_worker import ROLES
from glassformer.text.special_tokens import TOKEN_NAMES, SpecialTokenSplitter, entry_text
from glassformer.text.tokenizer import Tokenizer

REASONING = ("reasoning_content", "thinking", "reasoning")  # one field under three names
Message = Mapping[str, Any]


class ChatTemplate:
    """A chat template of a tokenizer. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, name: str = "default", *, source: str | None = None):
        """Select the template. It is compiled when it is first rendered.

        Args:
            tokenizer: The tokenizer.
            name: The name of one of its templates. With "default", the template "tool_use", if there is one, renders
                conversations with `tools`.
            source: A Jinja template that is used instead.

        Raises:
            TokenizerError: There is no template of this name.
        """
        known = tokenizer.chat_templates if source is None else {name: source}
        if name not in known:
            has = f"has the chat templates {', '.join(known)}" if known else "has no chat template"
            raise TokenizerError(f"the tokenizer {has}, but {name[:100]!r} was requested")
        self.tokenizer, self.source, self.name = tokenizer, known[name], name
        self._tool_use = known.get("tool_use") if name == "default" else None
        backend = tokenizer.backend
        self._split = SpecialTokenSplitter(
            token for token in backend.added_tokens if token.text in backend.special_tokens
        )
        self._tokens = {
            key: text for key in TOKEN_NAMES if isinstance(text := entry_text(tokenizer.config.get(key)), str)
        }

    def render(self, messages: Sequence[Message], **fields: Any) -> str:
        """Return the rendered conversation.

        As in `transformers`, keys of a message whose value is None are left out, and `reasoning_content`, `thinking`
        and `reasoning` are one field.

        Args:
            messages: Each has a role and a content.
            fields: Variables of the template, such as `tools`, `documents` and `add_generation_prompt`; and `now`, a
                datetime for `strftime_now`.

        Raises:
            TokenizerError: The template is not valid Jinja, raises an error (the message gives the line), or needs too
                much time or memory.
        """
        return self._render(messages, fields).text

    def encode(self, messages: Sequence[Message], **fields: Any) -> list[int]:
        """Return the ids of the conversation.

        Raises:
            TokenizerError: As `render`; or an unknown role is part of a special token's text; or the template builds a
                special token by an operation that loses track of its own text.
        """
        rendered = self._render(messages, fields)
        self._check_built(rendered, messages, fields)
        return self.tokenizer.encode_parts(rendered.text, self._split(rendered.text, rendered.regions))

    def _render(self, messages: Sequence[Message], fields: Mapping[str, Any]) -> RenderedTemplate:
        fields = dict(fields)
        now = fields.pop("now", None) or datetime.now()
        data = {"tools": None, "documents": None, "add_generation_prompt": False} | fields
        try:
            data = {name: _plain_copy(value, name) for name, value in data.items()}
            plain = _plain_copy(messages, "messages")
        except RecursionError as error:
            raise TokenizerError("the messages or other fields are nested too deeply") from error
        if not isinstance(plain, list) or not all(isinstance(item, dict) for item in plain):
            raise TokenizerError("messages must be a list of objects, each with a role and its content")
        source = self._tool_use if self._tool_use is not None and data["tools"] is not None else self.source
        short = [{key: value for key, value in item.items() if value is not None} for item in plain]
        data["messages"] = list(map(_alias_reasoning, short))
        try:
            return RENDERER.render(source, data, self._tokens, now.isoformat())
        except RenderError as error:
            if short != plain:  # some templates compare a content with null
                data["messages"] = list(map(_alias_reasoning, plain))
                with suppress(RenderError):
                    return RENDERER.render(source, data, self._tokens, now.isoformat())
            raise self._error(error.problem, error.line) from error

    def _check_built(self, rendered: RenderedTemplate, messages: Sequence[Message], fields: Mapping[str, Any]) -> None:
        """Raise TokenizerError for a special token that only `transformers` would find, and no message contains."""
        unknown_roles = {str(message.get("role")) for message in messages} - ROLES
        if not unknown_roles and not rendered.untracked:
            return
        text, own = rendered.text, bytearray(len(rendered.text))
        for start, end in rendered.regions:
            own[start:end] = b"\1" * (end - start)
        inputs = "\0".join(_strings([*messages, fields]))
        for start, end, token in self._split(text):
            name = text[start:end].strip()
            start = text.index(name, start)  # behind the white space that the token absorbs
            outside = [at for at in range(start, start + len(name)) if not own[at]]
            if token is None or not outside:
                continue
            inner = text[outside[0] : outside[-1] + 1]
            if inner in unknown_roles and inner != name:
                known = ", ".join(sorted(ROLES))
                raise self._error(
                    f"the role {inner!r} would make the special token {name!r}; allowed roles are {known}"
                )
            if rendered.untracked and name not in inputs:
                operations = ", ".join(rendered.untracked)
                raise self._error(f"it builds the special token {name!r} with {operations}, which is not supported")

    def _error(self, problem: str, line: int | None = None) -> TokenizerError:
        where = "" if line is None else f", line {line}"
        return TokenizerError(f"chat template {self.name}{where}: {problem}")


def _alias_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with its reasoning under the names that templates read."""
    reasoning = next((message[key] for key in REASONING if message.get(key) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings in plain data, with the keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from map(str, value)
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, Sequence):
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
