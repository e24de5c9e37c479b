"""Server-sent events, and the watch over whether somebody still listens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from glassformer.server.errors import described, dump
from glassformer.server.queue import Job, Queue, Work

T = TypeVar("T")
log = logging.getLogger("glassformer.server")


@asynccontextmanager
async def watched(request: Request, job: Job) -> AsyncIterator[None]:
    """Cancel the job as soon as the client leaves, or when this ends for whatever reason."""
    watch = asyncio.create_task(_until_gone(request.receive, job))
    try:
        yield
    finally:
        watch.cancel()
        job.cancel()


async def _until_gone(receive: Receive, job: Job) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    log.info("a client left: its work stops")
    job.cancel()


async def all_of(request: Request, queue: Queue, work: Work[T], *, quick: bool = False) -> list[T]:
    """Everything that work yields."""
    job = queue.submit(work, quick=quick)
    async with watched(request, job):
        return [item async for item in job]


async def result_of(request: Request, queue: Queue, function: Callable[[], T], *, quick: bool = False) -> T:
    """What a function returns that is one step of work."""
    return (await all_of(request, queue, lambda _: iter([function()]), quick=quick))[0]


def event(value: Any, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + dump(value) + b"\n\n"


class Events(Response):
    """A stream of events, made of what a job yields. `of` makes an item's events, `end` the last ones.

    An error after the first item can no longer change the status: it is an event, and nothing comes after it.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        request: Request,
        job: Job,
        of: Callable[[Any], Iterable[bytes]],
        end: Callable[[], Iterable[bytes]],
        *,
        error: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        self.status_code, self.background = 200, None
        self.job, self.of, self.end, self.error = job, of, end, error
        self.watch = asyncio.create_task(_until_gone(request.receive, job))
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})

    async def begun(self) -> Events:
        """Wait for the job's first item: what is raised until then still has a status of its own."""
        try:
            await self.job.begun()
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
                    if data := b"".join(self.of(item)):
                        await write(data)
                await write(b"".join(self.end()))
            except Exception as error:
                await write(event(described(error)[1], self.error))
            await write(b"", more=False)
        finally:
            self._stop()
