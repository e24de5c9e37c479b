"""Child processes for work that files from others define, so that it cannot block this process or fill its memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.text.child_worker import HEAD, decode_json, too_large, too_slow

WALL_SECONDS = 20.0  # time of one request beyond its processor time, also where the latter is not limited (Windows)


class ChildEndedError(Exception):
    """A child process ended before it replied.

    problem: why, for a message
    notes: what it wrote to stderr
    """

    def __init__(self, problem: str, notes: bytes):
        super().__init__(problem)
        self.problem, self.notes = problem, notes


class ChildProcess:
    """A child process that runs `main(*args)` of a module over the frames of `child_worker`.

    memory_bytes: its address space, which `main` limits
    """

    def __init__(self, module: str, *args: float, task: str, memory_bytes: int, env: Mapping[str, str] | None = None):
        """Start it. Raises TokenizerError, which names the `task`, if the operating system cannot."""
        self.memory_bytes = memory_bytes
        code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main(*{args!r})"
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=env,
            )
        except OSError as error:
            raise TokenizerError(f"the process that {task} cannot be started: {error}") from error

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def exchange(self, request: bytes, cpu_seconds: float) -> dict[str, Any]:
        """Send a request, which the child limits to `cpu_seconds`; return the reply.

        Raises:
            ChildEndedError: The child ended, or it was ended after WALL_SECONDS more.
        """
        stdin, stdout = self._child.stdin, self._child.stdout
        assert stdin is not None
        assert stdout is not None
        wall_seconds, expired = WALL_SECONDS + cpu_seconds, threading.Event()
        deadline = threading.Timer(wall_seconds, lambda: (expired.set(), self._child.kill()))
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
        raise self._ended(cpu_seconds, wall_seconds if expired.is_set() else None)

    def _ended(self, cpu_seconds: float, wall_seconds: float | None) -> ChildEndedError:
        """Return why the child ended."""
        assert self._child.stderr is not None
        notes = self._child.stderr.read()
        status = self._child.wait()
        last = notes.decode("utf-8", "replace").strip().rpartition("\n")[2]
        problem = f"stopped: its process ended with status {status}. {last}".strip()
        if b"MemoryError" in notes or last.startswith("memory allocation of"):
            problem = too_large(self.memory_bytes)
        elif wall_seconds is not None:
            problem = f"stopped: it takes more than {wall_seconds:g} s"
        elif status == -getattr(signal, "SIGPROF", 0) or last.endswith("TimeLimitError"):
            problem = too_slow(cpu_seconds)
        return ChildEndedError(problem, notes)

    def close(self) -> None:
        """End the child. Waits until it ended."""
        self._child.kill()
        with suppress(BrokenPipeError):
            self._child.communicate()


class ChildPool:
    """Child processes that are started when needed, then reused. Thread-safe. Subclasses define `_start`."""

    def __init__(self, max_processes: int):
        """Create the pool. Of requests at the same time, those beyond `max_processes` wait."""
        self._free = threading.BoundedSemaphore(max_processes)
        self._idle: list[ChildProcess] = []
        self._owner = 0  # the process whose children these are: a fork does not inherit them

    def _start(self) -> ChildProcess:
        """Return a new child process."""
        raise NotImplementedError

    def exchange(self, request: bytes, cpu_seconds: float) -> dict[str, Any]:
        """Send a request to a child, which limits it to `cpu_seconds`; return the reply.

        Raises:
            ChildEndedError: The child ended before it replied.
            TokenizerError: No child process can be started.
        """
        with self._free:
            process = self._take()
            try:
                reply = process.exchange(request, cpu_seconds)
            except BaseException:  # also KeyboardInterrupt: the child's answer would reach the next request
                process.close()
                raise
            if reply.get("ended"):
                process.close()
            else:
                self._idle.append(process)
        return reply

    def _take(self) -> ChildProcess:
        if self._owner != os.getpid():
            self._idle, self._owner = [], os.getpid()
            weakref.finalize(self, _close_all, self._idle, self._owner)  # also at exit
        with suppress(IndexError):
            while True:
                process = self._idle.pop()
                if process.running:
                    return process
                process.close()
        return self._start()

    def close(self) -> None:
        """End all idle children."""
        _close_all(self._idle, self._owner)


def _close_all(children: list[ChildProcess], owner: int) -> None:
    with suppress(IndexError):
        while owner == os.getpid():
            children.pop().close()
