"""The work queue between requests and models: one thread runs one request at a time.

    request --submit(work)--> waiting ... --worker thread--> items --> request
                                 |  quick work (a view of a trace) runs between two steps of the current job
       client disconnect --> cancel(): removed from the queue, or stopped before the next forward pass

Work is a function that takes `check_cancelled` and returns an iterator. It calls `check_cancelled` before each forward
pass, which raises `ClientDisconnected` if the request was cancelled. Requests do not depend on what runs behind the
queue: one thread, or a batch of many sequences.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

from glassformer.server.errors import ApiError

T = TypeVar("T")
CheckCancelled = Callable[[], None]
Work = Callable[[CheckCancelled], Iterable[T]]

MAX_WAITING = 256  # requests; further ones are rejected


class ClientDisconnected(ApiError):
    """The request was cancelled by a client disconnect or by a shutdown. Only after a shutdown does a client see it."""

    def __init__(self):
        super().__init__(503, "stopped: the server is shutting down", code="shutting_down")


class Job(Generic[T]):
    """Submitted work. Iterating yields its items and raises its exception."""

    def __init__(self, queue: WorkQueue, work: Work[T], loop: asyncio.AbstractEventLoop):
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

    async def wait_started(self) -> None:
        """Wait for the first item, and raise the exception if there is none."""
        self._first = await self._next()
        if self._first[0] == "error":
            raise self._first[1]

    async def _next(self) -> tuple[str, Any]:
        if self._first is not None:
            found, self._first = self._first, None
            return found
        return await self._items.get()

    def cancel(self) -> None:
        """Cancel the work before its next forward pass; iteration raises `ClientDisconnected`."""
        if not self.cancelled:
            self.cancelled = True
            self._queue.remove(self)
            self._items.put_nowait(("error", ClientDisconnected()))

    # ---- in any thread

    def shut_down(self) -> None:
        """Cancel the work before its next forward pass, from any thread."""
        self.cancelled = True
        self._post("error", ClientDisconnected())

    # ---- in the worker thread

    def check_cancelled(self) -> None:
        """Raise `ClientDisconnected` if the job was cancelled."""
        if self.cancelled:
            raise ClientDisconnected

    def run_steps(self) -> Iterator[None]:
        """Run the work and post its items; yield between two items."""
        kind, value, items = "end", None, None
        try:
            self.check_cancelled()
            items = iter(self._work(self.check_cancelled))
            for item in items:
                self._post("item", item)
                yield
                self.check_cancelled()
        except BaseException as error:  # MemoryError too: it belongs to the request, not to the thread
            kind, value = "error", error
        if isinstance(items, Generator):
            items.close()
        self._post(kind, value)

    def _post(self, kind: str, value: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, (kind, value))
        except RuntimeError:  # the event loop is closed: the server has stopped
            self.cancelled = True


class WorkQueue:
    """Jobs in order of submission, run by one daemon thread until `close`."""

    def __init__(self):
        self._waiting: deque[Job] = deque()
        self._quick: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running: list[Job] = []  # the last one runs, between two steps of the others
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="glassformer-work", daemon=True)
        self._thread.start()

    @property
    def state(self) -> dict[str, int]:
        """Return the number of running and of waiting jobs."""
        with self._changed:
            return {"running": int(bool(self._running)), "waiting": len(self._waiting) + len(self._quick)}

    def submit(self, work: Work[T], *, quick: bool = False) -> Job[T]:
        """Add work to the queue. `quick` work takes milliseconds and runs between two steps of the current job.

        Raises ApiError 503 during shutdown, and 429 if MAX_WAITING jobs are waiting.
        """
        job = Job(self, work, asyncio.get_running_loop())
        with self._changed:
            if self._closed:
                raise ApiError(503, "the server is shutting down", code="shutting_down")
            if len(self._waiting) + len(self._quick) >= MAX_WAITING:
                raise ApiError(429, f"the queue is full ({MAX_WAITING} requests): try again later", code="queue_full")
            (self._quick if quick else self._waiting).append(job)
            self._changed.notify()
        return job

    def remove(self, job: Job) -> None:
        """Remove a job that has not started."""
        with self._changed:
            for jobs in (self._waiting, self._quick):
                if job in jobs:
                    jobs.remove(job)

    def close(self) -> None:
        """Cancel all jobs before their next forward pass, and accept no more."""
        with self._changed:
            self._closed = True
            for job in (*self._waiting, *self._quick, *self._running):
                job.shut_down()
            self._changed.notify()

    def join(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for the thread to end, after `close`."""
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._quick or self._waiting)
                if self._closed and not (self._quick or self._waiting):
                    return
                self._running.append((self._quick or self._waiting).popleft())
            self._run_last()

    def _run_last(self) -> None:
        """Run the last started job, and quick jobs between its steps, recursively."""
        for _ in self._running[-1].run_steps():
            while True:
                with self._changed:
                    if not self._quick:
                        break
                    self._running.append(self._quick.popleft())
                self._run_last()
        with self._changed:
            self._running.pop()
