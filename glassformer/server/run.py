"""Bind an address, run the server, and shut it down on Ctrl-C.

The socket is bound before the models are loaded, so that a port in use is reported at once; it listens afterwards. The
first Ctrl-C (or SIGTERM) stops accepting requests and gives running ones DRAIN_SECONDS; the second cancels them.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import logging
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from glassformer.errors import ConfigError
from glassformer.server.connection import MAX_CONNECTIONS, Connection

log = logging.getLogger("glassformer.server")

DRAIN_SECONDS = 20  # for running requests after the first Ctrl-C
CLOSE_SECONDS = 2.0  # for the current forward pass after cancellation
BACKLOG = 2048  # connections that are accepted at a time, before those that are too many are closed


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to this address, not listening yet. Raises ConfigError if the address is not available."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"port must be from 0 (any free port) to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"host {host!r} is not an address of this machine: {error}") from None
    sock = socket.socket(family, kind, protocol)  # with an explicit TCP protocol asyncio sets TCP_NODELAY: 40 ms less
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _unavailable(error, host, port) from None
    return sock


def is_free(host: str, port: int) -> bool:
    """Return whether an address is available."""
    try:
        bind(host, port).close()
    except ConfigError:
        return False
    return True


def _unavailable(error: OSError, host: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} of {host} is in use: choose another with --port, or any free port with --port 0"
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"port {port} of {host} needs administrator rights: choose a port of at least 1024")
    return ConfigError(f"{host}:{port} cannot be used: {error.strerror or error}")


def server_url(sock: socket.socket) -> str:
    """Return the URL for a browser on this machine."""
    host, port = sock.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        address = ipaddress.ip_address("::1" if address.version == 6 else "127.0.0.1")
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"


def is_loopback(sock: socket.socket) -> bool:
    """Return whether the socket is reachable from this machine only."""
    return ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback


def file_limit() -> int:
    """Return how many files and sockets this process may open."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 1 << 20
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if limit == resource.RLIM_INFINITY else limit


class Server(uvicorn.Server):
    """A uvicorn server that calls `ready` when it accepts requests, and shuts down in two stages."""

    def __init__(self, app: FastAPI, ready: Callable[[], None] = lambda: None, *, drain: float = DRAIN_SECONDS):
        self.app, self.ready, self.drain, self.cancelled = app, ready, drain, False
        limit = file_limit()
        connection = partial(Connection, waiting={}, max_connections=min(MAX_CONNECTIONS, limit // 2))
        config = uvicorn.Config(
            app, http=cast(Any, connection), backlog=min(BACKLOG, limit // 8), ws="none", loop="asyncio",
            lifespan="on", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, timeout_graceful_shutdown=int(drain + CLOSE_SECONDS) + 1,
        )  # fmt: skip
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state = self.app.state.queue.state
        if n := state["running"] + state["waiting"]:
            log.warning("shutting down: %d requests have %g s to finish; Ctrl-C again cancels them", n, self.drain)
        deadline = self.loop.call_later(self.drain, self._stop, f"{self.drain:g} s have passed")
        await super().shutdown(sockets)
        deadline.cancel()
        self.app.state.queue.close()
        await asyncio.to_thread(self.app.state.queue.join, CLOSE_SECONDS)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal: set flags only, and leave the rest to the event loop."""
        if self.should_exit:
            self.cancelled = True
            self.loop.call_soon_threadsafe(self._stop, "second signal")
        self.should_exit = True

    def _stop(self, why: str) -> None:
        """Cancel all jobs, and close all connections after CLOSE_SECONDS."""
        log.warning("cancelling requests: %s", why)
        self.app.state.queue.close()
        self.app.state.preparation.close()
        self.loop.call_later(CLOSE_SECONDS, setattr, self, "force_exit", True)


def serve(app: FastAPI, sock: socket.socket, ready: Callable[[], None]) -> bool:
    """Serve until a signal. Returns False if a second signal cancelled running requests."""
    server = Server(app, ready)
    gc.freeze()  # the garbage collector need not visit the models' objects while it handles a request
    try:
        sock.listen()
        server.run(sockets=[sock])
    except OSError as error:
        host, port = sock.getsockname()[:2]
        raise _unavailable(error, host, port) from None
    finally:
        app.state.queue.close()
        app.state.preparation.close()
        sock.close()
    return not server.cancelled
