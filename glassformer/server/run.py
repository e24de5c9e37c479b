"""From an address to a server that answers, and from Ctrl-C to one that has ended.

The socket is bound before the models are loaded, so that a port in use is told at once; it listens when they are there.
The first Ctrl-C (or SIGTERM) takes no more requests and lets those that run end, for DRAIN seconds at most; the second
ends at once.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from glassformer.errors import ConfigError

log = logging.getLogger("glassformer.server")

DRAIN = 20  # seconds that running requests are given at the end
LAST = 2.0  # seconds for the pass that runs when all is stopped


def bind(host: str, port: int) -> socket.socket:
    """A socket at this address, which does not listen yet. ConfigError where it cannot be had."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"port must be a whole number from 0 (any that is free) to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"host {host!r} is not an address of this machine: {error}") from None
    found = socket.socket(family, kind, protocol)  # where TCP is named, asyncio sends each write at once: 40 ms less
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise _unavailable(error, host, port) from None
    return found


def is_free(host: str, port: int) -> bool:
    """Whether an address can be had."""
    try:
        bind(host, port).close()
    except ConfigError:
        return False
    return True


def _unavailable(error: OSError, host: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} of {host} is in use: choose another with --port, or any free one with --port 0"
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"port {port} of {host} may not be used by this user: choose one from 1024")
    return ConfigError(f"{host}:{port} cannot be used: {error.strerror or error}")


def url_of(sock: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = sock.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        address = ipaddress.ip_address("::1" if address.version == 6 else "127.0.0.1")
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"


def is_loopback(sock: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback


class Server(uvicorn.Server):
    """uvicorn's, which says what it does when it is told to end, and calls `ready` when it answers."""

    def __init__(self, app: FastAPI, ready: Callable[[], None] = lambda: None, *, drain: float = DRAIN):
        self.app, self.ready, self.drain, self.hurried = app, ready, drain, False
        config = uvicorn.Config(
            app, http="h11", ws="none", loop="asyncio", lifespan="on", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, timeout_graceful_shutdown=int(drain + LAST) + 1,
        )  # fmt: skip
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state = self.app.state.queue.state
        if n := state["running"] + state["waiting"]:
            log.warning("ending: %d that run or wait are given %g s; Ctrl-C again ends them now", n, self.drain)
        deadline = self.loop.call_later(self.drain, self._stop, f"{self.drain:g} s are over")
        await super().shutdown(sockets)
        deadline.cancel()
        self.app.state.queue.close()
        await asyncio.to_thread(self.app.state.queue.join, LAST)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: in the middle of anything, so that all but a note is left to the loop."""
        if self.should_exit:
            self.hurried = True
            self.loop.call_soon_threadsafe(self._stop, "repeatable")
        self.should_exit = True

    def _stop(self, why: str) -> None:
        """End what runs with an error that says so, and after a moment all connections too."""
        log.warning("ending now: %s", why)
        self.app.state.queue.close()
        self.loop.call_later(LAST, setattr, self, "force_exit", True)


def serve(app: FastAPI, sock: socket.socket, ready: Callable[[], None]) -> bool:
    """Serve until told to end. Whether it ended in peace: all that ran was let end, or stopped after DRAIN seconds."""
    server = Server(app, ready)
    try:
        sock.listen(2048)
        server.run(sockets=[sock])
    except OSError as error:
        host, port = sock.getsockname()[:2]
        raise _unavailable(error, host, port) from None
    finally:
        app.state.queue.close()
        sock.close()
    return not server.hurried
