"""`glassformer chat`: a conversation with a model, by its chat template, or plain continuation where it has none."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from glassformer.cli.common import IgnoreKeys, Machine, err, open_model, out, say

if TYPE_CHECKING:
    from glassformer.models.language_model import LanguageModel
    from glassformer.text.chat.chat_template import ChatTemplate


def chat(
    model: str,
    *,
    system: str | None = None,
    max_tokens: int = 200,
    temperature: float = 0.7,
    top_p: float | None = None,
    seed: int | None = None,
    ignore_key: IgnoreKeys = (),
    machine: Machine = Machine(),
) -> None:
    """Talk with a model. An empty line begins anew, Ctrl-C stops an answer, Ctrl-D ends.

    Where the model has a chat template, each line is a message, and the conversation is kept. Where it has none, your
    text and the model's stand in one text, one after the other.

    Parameters
    ----------
    model
        A model folder, a run folder, or `stories`.
    system
        What the model is told before the conversation.
    max_tokens
        At most this many tokens an answer.
    temperature
        Below 1 surer, above 1 more varied; 0 always takes the likeliest token.
    top_p
        Draw from the smallest set of tokens whose probabilities reach p.
    seed
        The same seed and the same lines give the same text.
    """
    from glassformer.errors import RequestError

    lm = open_model(model, machine, ignore_key)
    talk = _talk(lm, system)
    if isinstance(talk, Text) and system is not None:
        raise RequestError("this model has no chat template: it cannot be told anything by --system", param="system")
    say(f"{talk.what}. An empty line begins anew; Ctrl-C stops an answer, Ctrl-D ends.")
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
            talk.begin()
            say(f"--- {talk.new}")
            continue
        room = min(max_tokens, lm.config.context_length - 1)
        ids = talk.ask(line, lm.config.context_length - room)
        talk.answered(_answer(lm, ids, room, options | {"seed": None if seed is None else seed + turn}))
        turn += 1


def _talk(lm: LanguageModel, system: str | None) -> Conversation | Text:
    from glassformer.text.chat.chat_template import ChatTemplate, chat_templates

    if lm.tokenizer is not None and chat_templates(lm.tokenizer):
        return Conversation(ChatTemplate(lm.tokenizer), system)
    return Text(lm)


class Conversation:
    """A conversation by a chat template. When it gets too long for the context, its oldest messages are left out."""

    what, new = "each line is a message", "a new conversation"

    def __init__(self, template: ChatTemplate, system: str | None):
        self.template = template
        self.first = [{"role": "system", "content": system}] if system is not None else []
        self.begin()

    def begin(self) -> None:
        self.messages: list[dict[str, str]] = []

    def ask(self, line: str, most: int) -> list[int]:
        """The ids of the conversation so far, at most so many. A message that is too long by itself is given whole."""
        self.messages.append({"role": "user", "content": line})
        ids, dropped = self._ids(), 0
        while len(ids) > most and len(self.messages) > 2:
            del self.messages[:2]  # a question and its answer
            ids, dropped = self._ids(), dropped + 2
        if dropped:
            say(f"--- the conversation is too long: its first {dropped} messages are left out")
        return ids

    def _ids(self) -> list[int]:
        return self.template.encode([*self.first, *self.messages], add_generation_prompt=True)

    def answered(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})


class Text:
    """One text, which the model and you continue in turn. Where it gets too long, its start is cut off."""

    what, new = "no chat template, so plain continuation: type the beginning of a text", "a new text"

    def __init__(self, lm: LanguageModel):
        self.lm = lm
        self.begin()

    def begin(self) -> None:
        self.text = ""

    def ask(self, line: str, most: int) -> list[int]:
        self.text += line if not self.text or self.text[-1].isspace() else " " + line
        ids = self.lm.encode(self.text)
        if len(ids) > most:
            say(f"--- the text has {len(ids)} tokens; only the last {most} fit beside an answer")
        return ids[-most:]

    def answered(self, text: str) -> None:
        self.text += text


def _answer(lm: LanguageModel, ids: list[int], room: int, options: dict[str, Any]) -> str:
    """Stream one answer; Ctrl-C ends it and keeps what was written."""
    begin, count, written = time.monotonic(), 0, ""
    try:
        for piece in lm.stream(ids, max_tokens=room, **options):
            written, count = written + piece.text, count + 1
            out.print(piece.text, end="", markup=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    out.print()
    say(f"{count} tokens, {count / max(time.monotonic() - begin, 1e-9):.0f} tokens/s")
    return written
