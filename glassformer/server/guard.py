"""Check host, origin, API key and size of every request before any route runs.

    request -> Host -> Origin -> key -> size -> the app         each rejects with a reason

Every page that is open in the user's browser can reach a server on loopback. Such a page cannot read responses (there
is no CORS), but it can send requests, so a request that a browser marks as coming from another origin is rejected. A
page can also point its own host name to this machine (DNS rebinding) and then has the same origin, so the Host header
must name this server, unless an API key is required.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import time
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from fastapi import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glassformer.server.errors import error_response

log = logging.getLogger("glassformer.server")

MAX_BODY = 8 * 2**20  # bytes; a prompt of a million token ids fits
MAX_BRACKETS = 2**17  # [ and { in a body: the parser takes seconds for millions of lists, and holds Python's lock
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
}


class Guard:
    """ASGI middleware. Paths for which `is_page` is true need no key: the static page asks the user for it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        key: str | None,
        hosts: Collection[str],
        is_page: Callable[[str], bool],
        max_body: int = MAX_BODY,
    ):
        self.app, self.key, self.is_page, self.max_body = app, key, is_page, max_body
        self.hosts = {host.lower() for host in hosts} | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            raise AssertionError(f"only HTTP is served, not {scope['type']}")

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        headers, received, brackets = Headers(scope=scope), 0, 0
        rejection = self._rejection(scope["method"], scope["path"], headers)

        async def receiving() -> Message:
            nonlocal received, brackets
            message = await receive()
            body = message.get("body", b"")
            received, brackets = received + len(body), brackets + body.count(b"[") + body.count(b"{")
            if received > self.max_body:
                raise HTTPException(413, self._too_large(f"more than {received - 1:,}"))
            if brackets > MAX_BRACKETS:
                raise HTTPException(413, f"the body has more than {MAX_BRACKETS:,} brackets [ and {{; send fewer items")
            return message

        try:
            if rejection is not None:
                await rejection(scope, receive, sending)
            else:
                await self.app(scope, receiving, sending)
        finally:
            took = 1000 * (time.monotonic() - begin)
            log.info("%s %s %s %.0f ms", scope["method"], _printable(scope["path"]), status or "disconnected", took)

    def _rejection(self, method: str, path: str, headers: Headers) -> Response | None:
        """Return the response that rejects this request, or None. The body has not been read yet."""
        page = method in ("GET", "HEAD") and self.is_page(path)
        host = headers.get("host", "")
        if self.key is None and not self._is_allowed_host(host):
            return error_response(
                403,
                f"the host name {_printable(host)!r} is not allowed: use the server's address or localhost, or start "
                "the server with --allow-host NAME or with an API key",
                "Host",
                "host_not_allowed",
            )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        foreign = origin is not None and _netloc(origin) != host.lower()
        if foreign or (site not in ("none", "same-origin") and not page):
            return error_response(
                403,
                f"requests from another origin ({_printable(origin or site)}) are not allowed",
                "Origin",
                "origin_not_allowed",
            )
        if not page and not self._has_key(headers):
            return error_response(
                401,
                "the API key is "
                + ("wrong" if "authorization" in headers else "missing")
                + ": send the header 'Authorization: Bearer KEY'",
                www_authenticate="Bearer",
            )
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > self.max_body:
            return error_response(413, self._too_large(f"{int(length[:20]):,}"))
        return None

    def _too_large(self, size: str) -> str:
        return f"the body has {size} bytes; the limit is {self.max_body:,}"

    def _has_key(self, headers: Headers) -> bool:
        if self.key is None:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        same = secrets.compare_digest(given.strip().encode(), self.key.encode())
        return kind.lower() == "bearer" and same

    def _is_allowed_host(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.hosts or _is_address(name)


def _netloc(origin: str) -> str | None:
    """Return the host and port of an origin, or None if it is not a URL."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    """Return whether `name` is an IP address, which DNS rebinding cannot forge."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _printable(text: str) -> str:
    """Return a client's text without control characters, cut to 200 characters, for a log line."""
    shown = "".join(c if c.isprintable() else "�" for c in text)
    return shown if len(shown) <= 200 else shown[:200] + "..."
