"""Render chat templates in child processes, so that no template can block this process or fill its memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from glassformer.text.child_process import ChildEndedError, ChildPool, ChildProcess
from glassformer.text.child_worker import encode_json

CPU_SECONDS = 1.0  # processor time of one rendering
MEMORY_BYTES = 256 << 20  # address space of a child process
MAX_PROCESSES = 4  # renderings at the same time; others wait

_FAULT_LINE = re.compile(rb'File "<template>", line (\d+) in ')  # the last call first
_TRACEBACK_LINE = re.compile(rb'File "<template>", line (\d+), in ')  # the last call last


@dataclass(frozen=True)
class RenderedTemplate:
    """The output of a template.

    regions: ranges of the characters that the template wrote; all others come from messages and other data
    untracked: operations after which the origin of some characters is unknown; they count as those of messages
    """

    text: str
    regions: list[tuple[int, int]]
    untracked: list[str]


class RenderError(Exception):
    """A rendering failed. `line` is the line of the template, or None."""

    def __init__(self, problem: str, line: int | None = None):
        super().__init__(problem)
        self.problem, self.line = problem, line


class TemplateRenderer(ChildPool):
    """Renders templates in up to `MAX_PROCESSES` child processes, which are started when needed. Thread-safe."""

    def __init__(self, cpu_seconds: float = CPU_SECONDS, memory_bytes: int = MEMORY_BYTES):
        super().__init__(MAX_PROCESSES)
        self.cpu_seconds, self.memory_bytes = cpu_seconds, memory_bytes

    def _start(self) -> ChildProcess:
        module, limits = "glassformer.text.chat.render_worker", (self.cpu_seconds, self.memory_bytes)
        return ChildProcess(module, *limits, task="renders chat templates", memory_bytes=self.memory_bytes)

    def render(self, source: str, data: dict[str, Any], tokens: dict[str, str], now: str) -> RenderedTemplate:
        """Render a template.

        Args:
            source: The Jinja template.
            data: The variables of the template, in JSON types. Their text is the text of messages.
            tokens: Variables whose text counts as the template's own.
            now: The time for `strftime_now`, in ISO format.

        Raises:
            RenderError: The template is not valid, raises an error, or exceeds a limit.
            TokenizerError: No child process can be started.
        """
        try:
            request = encode_json({"source": source, "data": data, "tokens": tokens, "now": now})
        except (RecursionError, ValueError) as error:
            raise RenderError(f"the messages cannot be sent to it: {error}") from error
        try:
            reply = self.exchange(request, self.cpu_seconds)
        except ChildEndedError as error:
            raise RenderError(error.problem, _fault_line(error.notes)) from error
        if "error" in reply:
            raise RenderError(reply["error"], reply["line"])
        return RenderedTemplate(reply["text"], [(start, end) for start, end in reply["regions"]], reply["untracked"])


def _fault_line(notes: bytes) -> int | None:
    """Return the line of the template that a child executed when it ended, or None."""
    line = next(map(int, _FAULT_LINE.findall(notes)), None)
    if line is None and (lines := _TRACEBACK_LINE.findall(notes)):
        line = int(lines[-1])
    return line


RENDERER = TemplateRenderer()
"""The renderer of this process: all templates share its child processes."""
