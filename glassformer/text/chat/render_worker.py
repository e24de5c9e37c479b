"""The child process that renders chat templates. Of the large packages it imports jinja2 only.

    parent -> child   a frame: JSON {"source", "data", "tokens", "now"}
    child -> parent   a frame: JSON {"text", "regions", "untracked"}, or {"error", "line", "ended"}

`child_worker.py` has the limits.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime
from typing import Any

import jinja2

from glassformer.text.chat.sandbox import FILE_NAME, Sandbox
from glassformer.text.chat.tracked_text import TrackedText, template_text
from glassformer.text.child_worker import (
    TimeLimitError,
    decode_json,
    encode_json,
    serve,
    set_timers,
    too_large,
    too_slow,
)

MAX_TEMPLATES = 8  # compiled templates that are cached
MAX_OUTPUT = 1_000_000  # characters of output beyond four times the request, which bounds the work of the tokenizer

ROLES = frozenset(
    "system user assistant tool developer function model ipython observation environment tool_response".split()
)
"""Roles that count as the template's own text, so that a template can make special tokens out of them."""


class Worker:
    """Renders templates; caches those that were used last.

    cpu_seconds: processor time of one rendering
    memory_bytes: address space of the process
    """

    def __init__(self, cpu_seconds: float, memory_bytes: int):
        self.cpu_seconds, self.memory_bytes = cpu_seconds, memory_bytes
        self._sandboxes: OrderedDict[str, Sandbox] = OrderedDict()

    def answer(self, frame: bytes) -> bytes:
        """Render the template of a request within the limits; return the reply."""
        try:
            set_timers(self.cpu_seconds)
            return self._answer(frame)
        except TimeLimitError as error:
            set_timers(0)  # freeing the memory at the end of this block also takes time
            problem, line = too_slow(self.cpu_seconds), _line(error)
        except MemoryError as error:
            problem, line = too_large(self.memory_bytes), _line(error)
        finally:
            set_timers(0)
        return encode_json({"error": problem, "line": line, "ended": True})

    def _answer(self, frame: bytes) -> bytes:
        try:
            return self._render(MAX_OUTPUT + 4 * len(frame), **decode_json(frame))
        except MemoryError:
            raise
        except RecursionError as error:
            problem, line = "stopped: it is nested too deeply, or calls itself without end", _line(error)
        except jinja2.TemplateSyntaxError as error:
            problem, line = str(error.message), error.lineno
        except jinja2.TemplateError as error:
            problem, line = str(error.message or error), _line(error)
        except Exception as error:
            problem, line = f"{type(error).__name__}: {error}", _line(error)
        problem = problem[:2000].replace(TrackedText.__name__, "str")
        return encode_json({"error": problem, "line": line, "ended": False})

    def _render(self, max_output: int, source: str, data: dict[str, Any], tokens: dict[str, str], now: str) -> bytes:
        sandbox = self._sandboxes.pop(source, None) or Sandbox(source)
        self._sandboxes[source] = sandbox
        if len(self._sandboxes) > MAX_TEMPLATES:
            self._sandboxes.popitem(last=False)
        for message in data["messages"]:
            role = message.get("role")
            if isinstance(role, str) and role in ROLES:
                message["role"] = template_text(role)
        trusted = {name: template_text(text) for name, text in tokens.items()}
        text = sandbox.render(trusted | data, datetime.fromisoformat(now))
        if len(text) > max_output:
            raise jinja2.TemplateError(
                f"stopped: its output has {len(text)} characters, at most {max_output} are allowed"
            )
        regions = text.regions() if isinstance(text, TrackedText) else []
        return encode_json({"text": text, "regions": regions, "untracked": sorted(sandbox.untracked)})


def _line(error: BaseException) -> int | None:
    """Return the line of the template at which an error occurred."""
    line, trace = None, error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename == FILE_NAME:  # an instruction without a line has that of the one before
            line = [number for start, _, number in code.co_lines() if start <= trace.tb_lasti and number][-1]
        trace = trace.tb_next
    return line


def main(cpu_seconds: float, memory_bytes: int) -> None:
    """Answer requests until the input ends."""
    serve(Worker(cpu_seconds, memory_bytes).answer, memory_bytes)
