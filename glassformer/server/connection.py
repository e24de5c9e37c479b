"""One HTTP connection, with time limits for everything that a client may delay.

    connected -> head -> body -> the app computes -> response ...     a client that does not read its response
                 HEAD_SECONDS  BODY_SECONDS                           has WRITE_SECONDS

A response may end before its request, such as the rejection of a large body. The rest of the request is then read and
dropped, in the time of its phase: if the server closed at once, the connection would be reset and the response lost.

The number of connections is bounded. One too many closes the oldest on which no complete request has arrived, so that
idle connections cannot block the server. A shutdown closes these at once.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # from the connection, or the end of the last response, to the end of the head
BODY_SECONDS = 60.0  # from the end of the head to the end of the body
WRITE_SECONDS = 60.0  # without progress of a response that the client does not read
MAX_CONNECTIONS = 1024

TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class _DrainingTransport:
    """A connection's transport, whose `close` ends the sending side only while a part of the request is missing.

    draining: whether `close` did so. Data of the client is then dropped until the client closes the connection.
    """

    def __init__(self, transport: asyncio.Transport, conn: h11.Connection):
        self._transport, self._conn, self.draining = transport, conn, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.draining or self._transport.is_closing()

    def close(self) -> None:
        if self.draining or self._conn.their_state not in (h11.SEND_BODY, h11.ERROR):
            self._transport.close()
        elif not self._transport.is_closing():
            self.draining = True
            self._transport.write_eof()
            self._transport.resume_reading()


class Connection(H11Protocol):
    """A connection of a server.

    waiting: the server's connections on which a request has not arrived completely, the oldest first.
    """

    def __init__(self, *args: Any, waiting: dict[Connection, None], max_connections: int, **options: Any):
        super().__init__(*args, **options)
        self.waiting, self.max_connections = waiting, max_connections
        self._phase: tuple[Any, Any] | None = None  # the client's state in h11, and the request
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._socket_transport = transport
        super().connection_made(cast(asyncio.Transport, _DrainingTransport(transport, self.conn)))
        if len(self.connections) > self.max_connections:
            oldest = next(iter(self.waiting), None)
            if oldest is None:
                transport.write(TOO_MANY)
                transport.close()
                return
            oldest.transport.abort()
            del self.waiting[oldest]
        self._update_deadline()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._update_deadline()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._set_deadline(None)
        self.resume_writing()

    def shutdown(self) -> None:
        """Close the connection, or let its request end if that has arrived completely."""
        if self in self.waiting:
            self.transport.abort()
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_deadline = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def _update_deadline(self) -> None:
        """Begin the time of the phase that the client's bytes have reached."""
        state = self.conn.their_state
        if self.transport.is_closing() or (state, self.cycle) == self._phase:
            return
        self._phase = state, self.cycle
        self._set_deadline({h11.IDLE: HEAD_SECONDS, h11.SEND_BODY: BODY_SECONDS}.get(state))

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.waiting.pop(self, None)
        if seconds is not None:
            self.waiting[self] = None
            self._deadline = self.loop.call_later(seconds, self._time_out)

    def _time_out(self) -> None:
        partial_head = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        if partial_head or (self.conn.their_state is h11.SEND_BODY and not self.cycle.response_started):
            self.transport.write(TIMEOUT)
        self._socket_transport.close()
