"""What the child processes of this package share: frames of JSON, limits of time and memory.

    parent -> child   a frame: 4-byte length, JSON
    child -> parent   a frame: JSON; {"ended": true} if the process is to be replaced

The operating system bounds each request: a signal ends the process after a given processor time, whatever it does,
and its address space is limited. macOS does not limit the address space, and Windows limits neither:
there, only the parent's time limit applies. The child ends when its input ends, so it does not outlive the parent.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

HEAD = struct.Struct("<I")


class TimeLimitError(BaseException):
    """The time limit is near. Not an Exception, because Jinja handles exceptions in some places."""


def encode_json(value: Any) -> bytes:
    """Return a value as JSON. Lone surrogates are preserved."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def decode_json(data: bytes) -> Any:
    """Return the value of JSON that `encode_json` made."""
    return json.loads(data.decode("utf-8", "surrogatepass"))


def too_slow(cpu_seconds: float) -> str:
    """Return the message about a request that exceeds the time limit."""
    return f"stopped: it takes more than {cpu_seconds:g} s of processor time"


def too_large(memory_bytes: int) -> str:
    """Return the message about a request that exceeds the memory limit."""
    return f"stopped: it needs more than {memory_bytes >> 20} MB of memory"


def set_timers(seconds: float) -> None:
    """Raise TimeLimitError after 0.8 of this processor time, and end the process after all of it; 0: no limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.8 * seconds)
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _raise_time_limit(*_: Any) -> None:
    faulthandler.dump_traceback(all_threads=False)  # for the parent, if the process ends before it replies
    raise TimeLimitError


def _limit_process(memory_bytes: int) -> None:
    """Let the operating system bound the memory and handle the time limit; leave other signals to the parent."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGVTALRM, _raise_time_limit)
        faulthandler.register(signal.SIGPROF, all_threads=False, chain=True)  # writes the lines, then the default: end
    faulthandler.enable(all_threads=False)  # of a stack overflow, too
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def serve(answer: Callable[[bytes], bytes], memory_bytes: int) -> None:
    """Answer requests until the input ends, within this address space."""
    _limit_process(memory_bytes)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while len(head := source.read(HEAD.size)) == HEAD.size:
        reply = answer(source.read(HEAD.unpack(head)[0]))
        target.write(HEAD.pack(len(reply)) + reply)
        target.flush()
    os._exit(0)
