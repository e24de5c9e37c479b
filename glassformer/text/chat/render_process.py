"""Render chat templates in child processes, so that no template can block this process or fill its memory."""

from __future__ import annotations

import atexit
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.text.chat.render_worker import HEAD, decode_json, encode_json, too_large, too_slow

CPU_SECONDS = 1.0  # processor time of one rendering
MEMORY_BYTES = 256 << 20  # address space of a child process
MAX_PROCESSES = 4  # renderings at the same time; others wait
WALL_SECONDS = 20.0  # time of one rendering, also where processor time is not limited (Windows)

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


class _RenderProcess:
    """A child process that runs `render_worker` with these limits."""

    def __init__(self, cpu_seconds: float, memory_bytes: int):
        self.cpu_seconds, self.memory_bytes = cpu_seconds, memory_bytes
        code = f"import sys; sys.path[:] = {sys.path!r}; from glassformer.text.chat.render_worker import main; "
        code += f"main({cpu_seconds!r}, {memory_bytes!r})"
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise TokenizerError(f"the process that renders chat templates cannot be started: {error}") from error

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def exchange(self, request: bytes) -> dict[str, Any]:
        """Send a request and return the reply. Raises RenderError if the child ends."""
        stdin, stdout = self._child.stdin, self._child.stdout
        assert stdin is not None
        assert stdout is not None
        deadline = threading.Timer(WALL_SECONDS, self._child.kill)
        deadline.daemon = True
        deadline.start()
        try:
            stdin.write(HEAD.pack(len(request)) + request)
            stdin.flush()
            head = stdout.read(HEAD.size)
            if len(head) == HEAD.size and len(reply := stdout.read(size := HEAD.unpack(head)[0])) == size:
                return decode_json(reply)
        except BrokenPipeError:
            pass
        finally:
            deadline.cancel()
        raise self._ended()

    def _ended(self) -> RenderError:
        """Return why the child ended."""
        assert self._child.stderr is not None
        notes = self._child.stderr.read()
        status = self._child.wait()
        line = next(map(int, _FAULT_LINE.findall(notes)), None)
        if line is None and (lines := _TRACEBACK_LINE.findall(notes)):
            line = int(lines[-1])
        if b"MemoryError" in notes:
            return RenderError(too_large(self.memory_bytes), line)
        if status == -getattr(signal, "SIGPROF", 0):
            return RenderError(too_slow(self.cpu_seconds), line)
        last = notes.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return RenderError(f"stopped: the process that renders it ended with status {status}. {last}".strip(), line)

    def close(self) -> None:
        """End the child. Waits until it ended."""
        self._child.kill()
        with suppress(BrokenPipeError):
            self._child.communicate()


class TemplateRenderer:
    """Renders templates in up to `MAX_PROCESSES` child processes, which are started when needed. Thread-safe."""

    def __init__(self, cpu_seconds: float = CPU_SECONDS, memory_bytes: int = MEMORY_BYTES):
        self.cpu_seconds, self.memory_bytes = cpu_seconds, memory_bytes
        self._free = threading.BoundedSemaphore(MAX_PROCESSES)
        self._idle: list[_RenderProcess] = []
        self._owner = 0  # the process whose children these are: a fork does not inherit them

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
        with self._free:
            process = self._take()
            try:
                reply = process.exchange(request)
            except BaseException:  # also KeyboardInterrupt: the child's answer would reach the next request
                process.close()
                raise
            if reply.get("ended"):
                process.close()
            else:
                self._idle.append(process)
        if "error" in reply:
            raise RenderError(reply["error"], reply["line"])
        return RenderedTemplate(reply["text"], [(start, end) for start, end in reply["regions"]], reply["untracked"])

    def _take(self) -> _RenderProcess:
        if self._owner != os.getpid():
            self._idle, self._owner = [], os.getpid()
            atexit.register(self.close)
        with suppress(IndexError):
            while True:
                process = self._idle.pop()
                if process.running:
                    return process
                process.close()
        return _RenderProcess(self.cpu_seconds, self.memory_bytes)

    def close(self) -> None:
        """End all idle children."""
        with suppress(IndexError):
            while self._owner == os.getpid():
                self._idle.pop().close()


RENDERER = TemplateRenderer()
"""The renderer of this process: all templates share its child processes."""
