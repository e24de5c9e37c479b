"""Server-sent events, and cancellation on client disconnect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from glassformer.server.errors import dump, status_and_body
from glassformer.server.queue import Job, Preparation, Work, WorkQueue

T = TypeVar("T")
log = logging.getLogger("glassformer.server")


@asynccontextmanager
async def cancel_on_disconnect(request: Request, job: Job) -> AsyncIterator[None]:
    """Cancel the job when the client disconnects, and at the end of the context."""
    watch = asyncio.create_task(_wait_for_disconnect(request.receive, job))
    try:
        yield
    finally:
        watch.cancel()
        job.cancel()


async def _wait_for_disconnect(receive: Receive, job: Job) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    log.info("client disconnected: cancelling its request")
    job.cancel()


async def collect(
    request: Request, queue: WorkQueue, work: Work[T], *, quick: bool = False, memory: int = 0
) -> list[T]:
    """Run work in the queue and return all its items."""
    job = queue.submit(work, quick=quick, memory=memory)
    async with cancel_on_disconnect(request, job):
        return [item async for item in job]


async def compute(request: Request, queue: WorkQueue, function: Callable[[], T], *, quick: bool = False) -> T:
    """Run a function in the queue and return its result."""
    return (await collect(request, queue, lambda _: iter([function()]), quick=quick))[0]


async def prepare(request: Request, preparation: Preparation, function: Callable[[], T]) -> T:
    """Run a function that validates or encodes a request in a thread for requests of this size."""
    return await compute(request, preparation.queue_for(len(await request.body())), function)


def sse_event(value: Any, name: str | None = None) -> bytes:
    """Return one server-sent event as bytes."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + dump(value) + b"\n\n"


class EventStreamResponse(Response):
    """A stream of the events of a job. `encode` returns the events of an item, `final_events` the last ones.

    An error after the first item cannot change the HTTP status: it is sent as the last event, named `error_event`.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        request: Request,
        job: Job,
        encode: Callable[[Any], Iterable[bytes]],
        final_events: Callable[[], Iterable[bytes]],
        *,
        error_event: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        self.status_code, self.background = 200, None
        self.job, self.encode, self.final_events, self.error_event = job, encode, final_events, error_event
        self.watch = asyncio.create_task(_wait_for_disconnect(request.receive, job))
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})

    async def wait_started(self) -> EventStreamResponse:
        """Wait for the first item: an exception before it becomes an error response with its own status."""
        try:
            await self.job.wait_started()
        except BaseException:
            self._stop()
            raise
        return self

    def _stop(self) -> None:
        self.watch.cancel()
        self.job.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for item in self.job:
                    if data := b"".join(self.encode(item)):
                        await write(data)
                await write(b"".join(self.final_events()))
            except Exception as error:
                await write(sse_event(status_and_body(error)[1], self.error_event))
            await write(b"", more=False)
        finally:
            self._stop()
