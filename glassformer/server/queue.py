"""The seam between requests and the model: one computes at a time, in one thread; the others wait their turn.

    request --submit(work)--> waiting ... --worker thread--> items --> request, as they come
                                 |  quick work (a look at a trace) goes in between two steps of what runs,
                                 |  also of a look that comes row by row
       its client leaves --> cancel(): taken out of the queue, or stopped before the next pass

Work is a function that is given `check` and returns an iterator. It calls `check` before each pass of the model, which
raises `Left` when nobody waits for the result any more. What comes behind this seam may be one thread or many rows in a
batch: those who submit do not know.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

from glassformer.server.errors import ApiError

T = TypeVar("T")
Check = Callable[[], None]
Work = Callable[[Check], Iterable[T]]

MOST_WAITING = 256  # requests; more are refused, not kept


class ClientDisconnected(ApiError):
    """Work that was stopped: its client has left, or the server ends. Only in the second case does anybody read it."""

    def __init__(self):
        super().__init__(503, "stopped: the server is shutting down", code="shutting_down")


class Job(Generic[T]):
    """One piece of work. Iterate over it for what it yields; what it raises is raised there."""

    def __init__(self, queue: Queue, work: Work[T], loop: asyncio.AbstractEventLoop):
        self._queue, self._work, self._loop = queue, work, loop
        self._items: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._first: tuple[str, Any] | None = None
        self.cancelled = False

    # ---- on the event loop

    async def __aiter__(self) -> AsyncIterator[T]:
        while True:
            kind, value = await self._next()
            if kind == "item":
                yield value
            elif kind == "end":
                return
            else:
                raise value

    async def begun(self) -> None:
        """Wait for the first item, and raise here what would be raised instead of it."""
        self._first = await self._next()
        if self._first[0] == "error":
            raise self._first[1]

    async def _next(self) -> tuple[str, Any]:
        if self._first is not None:
            found, self._first = self._first, None
            return found
        return await self._items.get()

    def cancel(self) -> None:
        """Stop the work before its next pass; whoever iterates gets `Left`. Nothing happens where it has ended."""
        if not self.cancelled:
            self.cancelled = True
            self._queue.forget(self)
            self._items.put_nowait(("error", ClientDisconnected()))

    # ---- in any thread

    def stop(self) -> None:
        """Stop the work before its next pass, and tell whoever iterates at once."""
        self.cancelled = True
        self._post("error", ClientDisconnected())

    # ---- in the worker thread

    def check(self) -> None:
        """Raise `Left` where nobody waits any more."""
        if self.cancelled:
            raise ClientDisconnected

    def steps(self) -> Iterator[None]:
        """Do the work, and hand on what it yields."""
        kind, value, items = "end", None, None
        try:
            self.check()
            items = iter(self._work(self.check))
            for item in items:
                self._post("item", item)
                yield
                self.check()
        except BaseException as error:  # also MemoryError: it is the request's, not the thread's
            kind, value = "error", error
        if isinstance(items, Generator):
            items.close()
        self._post(kind, value)

    def _post(self, kind: str, value: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, (kind, value))
        except RuntimeError:  # the loop has closed: the server is gone
            self.cancelled = True


class Queue:
    """Jobs in the order in which they came, run by one thread that ends with the process, or with `close`."""

    def __init__(self):
        self._waiting: deque[Job] = deque()
        self._quick: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running: list[Job] = []  # the last one computes, between two steps of those before it
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="glassformer-work", daemon=True)
        self._thread.start()

    @property
    def state(self) -> dict[str, int]:
        """How much runs and waits."""
        with self._changed:
            return {"running": int(bool(self._running)), "waiting": len(self._waiting) + len(self._quick)}

    def submit(self, work: Work[T], *, quick: bool = False) -> Job[T]:
        """Queue work. `quick` work, which takes milliseconds, does not wait for the end of what runs."""
        job = Job(self, work, asyncio.get_running_loop())
        with self._changed:
            if self._closed:
                raise ApiError(503, "the server is shutting down", code="shutting_down")
            if len(self._waiting) + len(self._quick) >= MOST_WAITING:
                raise ApiError(429, f"{MOST_WAITING} requests are waiting already: try again later", code="queue_full")
            (self._quick if quick else self._waiting).append(job)
            self._changed.notify()
        return job

    def forget(self, job: Job) -> None:
        """Take a job out, if it has not begun."""
        with self._changed:
            for jobs in (self._waiting, self._quick):
                if job in jobs:
                    jobs.remove(job)

    def close(self) -> None:
        """Stop what runs before its next pass, and take no more."""
        with self._changed:
            self._closed = True
            for job in (*self._waiting, *self._quick, *self._running):
                job.stop()
            self._changed.notify()

    def join(self, timeout: float) -> None:
        """Wait for the thread to end, after `close`."""
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._quick or self._waiting)
                if self._closed and not (self._quick or self._waiting):
                    return
                self._running.append((self._quick or self._waiting).popleft())
            self._finish_last()

    def _finish_last(self) -> None:
        """Do what has just begun; and between its steps all quick work that has come, also when it is quick itself."""
        for _ in self._running[-1].steps():
            while True:
                with self._changed:
                    if not self._quick:
                        break
                    self._running.append(self._quick.popleft())
                self._finish_last()
        with self._changed:
            self._running.pop()
