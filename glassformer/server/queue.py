"""The work queue between requests and models: one thread interleaves the steps of all jobs.

    submit(work)              -> waiting ... -> running, at most MAX_RUNNING --------------.
    submit(work, quick=True)  -> quick: up to QUICK_STEPS after each step of a running job -+--> items --> request
    client disconnect --> cancel(): the job ends before its next forward pass

Work is a function that takes `check_cancelled` and returns an iterator. A step runs until the next item; the item None
only lets other jobs run. Work calls `check_cancelled` before each forward pass, which raises `ClientDisconnected` if
the request was cancelled. All deques are first in, first out: a job waits for those before it, and no job waits for the
end of a long one. Requests do not depend on what runs behind the queue.
"""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

from glassformer.server.errors import ApiError

T = TypeVar("T")
CheckCancelled = Callable[[], None]
Work = Callable[[CheckCancelled], Iterable[T | None]]

MAX_WAITING = 256  # jobs that wait, and as many quick ones; further ones are rejected
MAX_RUNNING = 8  # jobs whose steps are interleaved
QUICK_STEPS = 8  # steps of quick jobs after each step of a running job
SMALL_BODY = 2**16  # bytes; larger requests are prepared by a thread of their own
MAX_UNREAD = 1024  # items that the client has not received: the job pauses


class ClientDisconnected(ApiError):
    """The request was cancelled by a client disconnect or by a shutdown. Only after a shutdown does a client see it."""

    def __init__(self):
        super().__init__(503, "stopped: the server is shutting down", code="shutting_down")


class Job(Generic[T]):
    """Submitted work. Iterating yields its items and raises its exception. memory: what it may use, in bytes."""

    def __init__(self, queue: WorkQueue, work: Work[T], loop: asyncio.AbstractEventLoop, memory: int):
        self.memory, self._queue, self._work, self._loop = memory, queue, work, loop
        self._items: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._first: tuple[str, Any] | None = None
        self._steps: Iterator[None] | None = None
        self._n_posted = self._n_received = 0
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
        found = await self._items.get()
        self._n_received += 1
        if self._n_posted - self._n_received == MAX_UNREAD // 2:
            self._queue.wake()
        return found

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

    @property
    def started(self) -> bool:
        return self._steps is not None

    @property
    def can_run(self) -> bool:
        """Whether the client has received enough items."""
        return self.cancelled or self._n_posted - self._n_received < MAX_UNREAD

    # ---- in the worker thread

    def check_cancelled(self) -> None:
        """Raise `ClientDisconnected` if the job was cancelled."""
        if self.cancelled:
            raise ClientDisconnected

    def start(self) -> Iterator[None]:
        """Return the steps of the work, the same at each call: each runs up to the next item and posts it."""
        if self._steps is None:
            self._steps = self._run_steps()
        return self._steps

    def _run_steps(self) -> Iterator[None]:
        items = None
        try:
            self.check_cancelled()
            items = iter(self._work(self.check_cancelled))
            for item in items:
                if item is not None:
                    self._post("item", item)
                yield
                self.check_cancelled()
        except BaseException as error:  # MemoryError too: it belongs to the request, not to the thread
            traceback.clear_frames(error.__traceback__)  # they refer to the cache
            self._post("error", error.with_traceback(None) if isinstance(error, ClientDisconnected) else error)
        else:
            self._post("end", None)
        finally:
            if isinstance(items, Generator):
                items.close()

    def _post(self, kind: str, value: Any) -> None:
        self._n_posted += 1
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, (kind, value))
        except RuntimeError:  # the event loop is closed: the server has stopped
            self.cancelled = True


class WorkQueue:
    """Jobs, run by one daemon thread until `close`. memory: what running jobs may use together, in bytes."""

    def __init__(self, memory: int = 1 << 62, max_running: int = MAX_RUNNING):
        self.memory, self.max_running = memory, max_running
        self._waiting: deque[Job] = deque()
        self._running: deque[Job] = deque()  # the first one has the next turn
        self._quick: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="glassformer-work", daemon=True)
        self._thread.start()

    @property
    def state(self) -> dict[str, int]:
        """Return the number of running and of waiting jobs, quick ones included."""
        with self._changed:
            n_started = sum(job.started for job in (*self._running, *self._quick))
            return {"running": n_started, "waiting": len(self._jobs) - n_started}

    @property
    def reserved(self) -> int:
        """The bytes that the running jobs may use."""
        with self._changed:
            return sum(job.memory for job in self._running)

    def submit(self, work: Work[T], *, quick: bool = False, memory: int = 0) -> Job[T]:
        """Add work to the queue.

        Args:
            quick: each step takes milliseconds, as of a view of a trace, and runs between the steps of jobs.
            memory: the bytes that the work may use. It waits until the running jobs leave as many.

        Raises ApiError 503 during shutdown, and 429 if MAX_WAITING jobs are waiting.
        """
        job = Job(self, work, asyncio.get_running_loop(), memory)
        with self._changed:
            if self._closed:
                raise ApiError(503, "the server is shutting down", code="shutting_down")
            jobs = self._quick if quick else self._waiting
            if len(jobs) >= MAX_WAITING:
                raise ApiError(429, f"the queue is full ({MAX_WAITING} requests): try again later", code="queue_full")
            jobs.append(job)
            self._start_waiting()
            self._changed.notify()
        return job

    def remove(self, job: Job) -> None:
        """Remove a cancelled job that has not started; one that has ends at its next turn."""
        with self._changed:
            for jobs in (self._waiting, self._running, self._quick):
                if job in jobs and not job.started:
                    jobs.remove(job)
            self._start_waiting()
            self._changed.notify()

    def wake(self) -> None:
        """Continue a paused job."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Cancel all jobs before their next forward pass, and accept no more."""
        with self._changed:
            self._closed = True
            for job in self._jobs:
                job.shut_down()
            self._changed.notify()

    def join(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for the thread to end, after `close`."""
        self._thread.join(timeout)

    @property
    def _jobs(self) -> list[Job]:
        return [*self._waiting, *self._running, *self._quick]

    def _run(self) -> None:
        while True:
            self._take_turn(self._running)
            for _ in range(QUICK_STEPS):
                if not self._take_turn(self._quick):
                    break
            with self._changed:
                self._changed.wait_for(self._has_turn)
                if self._closed and not self._jobs:
                    return

    def _has_turn(self) -> bool:
        return any(job.can_run for job in (*self._running, *self._quick)) or (self._closed and not self._jobs)

    def _take_turn(self, jobs: deque[Job]) -> bool:
        """Run one step of the first job that can run, and move it to the end; return whether there was one."""
        with self._changed:
            job = next((job for job in jobs if job.can_run), None)
            if job is None:
                return False
            steps = job.start()
        goes_on = next(steps, job) is not job
        with self._changed:
            jobs.remove(job)
            if goes_on:
                jobs.append(job)
            self._start_waiting()
        return True

    def _start_waiting(self) -> None:
        """Let waiting jobs run, in order of submission, as far as number and memory allow."""
        while self._waiting and len(self._running) < self.max_running:
            if self._running and self._waiting[0].memory > self.memory - sum(job.memory for job in self._running):
                return
            self._running.append(self._waiting.popleft())


class Preparation:
    """Two threads that validate, render and encode requests, so that small requests do not wait for large ones.

    Their jobs are computed in one step. A client disconnect removes a job that waits.
    """

    def __init__(self):
        self._small, self._large = WorkQueue(), WorkQueue()

    def queue_for(self, n_bytes: int) -> WorkQueue:
        """Return the queue for a request whose body has this size."""
        return self._small if n_bytes <= SMALL_BODY else self._large

    def close(self) -> None:
        """Cancel all jobs, and accept no more."""
        self._small.close()
        self._large.close()
