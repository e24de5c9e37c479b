"""`glassformer chat`: a conversation with the model's chat template, or plain continuation without one."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from glassformer.cli.common import IgnoreKeys, Machine, err, open_model, out, say
from glassformer.counted import counted

if TYPE_CHECKING:
    from glassformer.models.language_model import LanguageModel
    from glassformer.text.chat.chat_template import ChatTemplate


def chat(
    model: str,
    *,
    system: str | None = None,
    chat_template: str = "default",
    max_tokens: int = 200,
    temperature: float = 0.7,
    top_p: float | None = None,
    seed: int | None = None,
    ignore_key: IgnoreKeys = (),
    machine: Machine = Machine(),
) -> None:
    """Chat with a model. An empty line starts over, Ctrl-C stops an answer, Ctrl-D exits.

    With a chat template each line is a message of one conversation. Without one, your lines and the model's
    continuations form one text.

    Parameters
    ----------
    model
        A decoder-only model: a model folder or file, a run folder, `stories`, `smollm2`, or a name on the hub.
    system
        The system message.
    chat_template
        The name of the chat template, for a model that has several.
    max_tokens
        The most tokens of an answer; at most half of the model's context.
    temperature
        Divides the logits: below 1 less random, above 1 more; 0 always takes the most likely token.
    top_p
        Sample from the smallest set of tokens whose probabilities sum to p or more.
    seed
        The same seed and lines give the same answers.
    """
    from glassformer.errors import RequestError
    from glassformer.models.language_model import LanguageModel

    if max_tokens < 1:
        raise RequestError(f"max_tokens must be a whole number from 1, got {max_tokens}", param="max_tokens")
    lm = open_model(LanguageModel, model, machine, ignore_key)
    chat = _open_chat(lm, system, chat_template)
    if isinstance(chat, PlainText) and system is not None:
        raise RequestError("--system needs a chat template, and this model has none", param="system")
    say(f"{chat.description}. An empty line starts over; Ctrl-C stops an answer, Ctrl-D ends.")
    options: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
    turn = 0
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            err.print()
            return
        except KeyboardInterrupt:
            err.print()
            say("Ctrl-D ends")
            continue
        if not line:
            chat.reset()
            say(f"--- {chat.new}")
            continue
        room = min(max_tokens, max(1, lm.config.context_length // 2))  # the other half is for the prompt
        ids = chat.prompt(line, lm.config.context_length - room)
        chat.add_answer(_answer(lm, ids, room, options | {"seed": None if seed is None else seed + turn}))
        turn += 1


def _open_chat(lm: LanguageModel, system: str | None, chat_template: str) -> Conversation | PlainText:
    from glassformer.text.chat.chat_template import ChatTemplate

    if lm.tokenizer is not None and (lm.tokenizer.chat_templates or chat_template != "default"):
        return Conversation(ChatTemplate(lm.tokenizer, chat_template), system)
    return PlainText(lm)


class Conversation:
    """A conversation in a chat template. If it outgrows the context, its oldest messages are dropped."""

    description, new = "each line is a message", "a new conversation"

    def __init__(self, template: ChatTemplate, system: str | None):
        self.template = template
        self.first = [{"role": "system", "content": system}] if system is not None else []
        self.reset()

    def reset(self) -> None:
        self.messages: list[dict[str, str]] = []

    def prompt(self, line: str, limit: int) -> list[int]:
        """Add a message; return the conversation's ids, at most `limit` unless this message alone is longer."""
        self.messages.append({"role": "user", "content": line})
        ids, dropped = self._ids(), 0
        while len(ids) > limit and len(self.messages) > 2:
            del self.messages[:2]  # a question and its answer
            ids, dropped = self._ids(), dropped + 2
        if dropped:
            say(f"--- the conversation is too long: its first {dropped} messages are dropped")
        return ids

    def _ids(self) -> list[int]:
        return self.template.encode([*self.first, *self.messages], add_generation_prompt=True)

    def add_answer(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})


class PlainText:
    """One text that the user and the model continue in turn. If it outgrows the context, its start is dropped."""

    description, new = "no chat template, so plain continuation: type the beginning of a text", "a new text"

    def __init__(self, lm: LanguageModel):
        self.lm = lm
        self.reset()

    def reset(self) -> None:
        self.text = ""

    def prompt(self, line: str, limit: int) -> list[int]:
        self.text += line if not self.text or self.text[-1].isspace() else " " + line
        ids = self.lm.encode(self.text)
        if len(ids) > limit:
            say(f"--- the text has {counted(len(ids), 'token')}; only the last {limit} fit with an answer")
        return ids[-limit:]

    def add_answer(self, text: str) -> None:
        self.text += text


def _answer(lm: LanguageModel, ids: list[int], room: int, options: dict[str, Any]) -> str:
    """Stream an answer and return its text; Ctrl-C ends it early."""
    begin, count, text = time.monotonic(), 0, ""
    try:
        for event in lm.stream(ids, max_tokens=room, **options):
            text, count = text + event.text, count + 1
            out.print(event.text, end="", markup=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    out.print()
    say(f"{counted(count, 'token')}, {count / max(time.monotonic() - begin, 1e-9):.0f} tokens/s")
    return text
