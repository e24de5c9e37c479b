"""Who may ask: the first thing that a request meets, before any route.

    request -> Host -> Origin -> key -> size -> the app         each refuses with the reason; nothing is open by default

A server on loopback is reached by every page that the user's browser has open. Such a page cannot read answers (there
is no CORS), but it can send; so what a browser says comes from another origin is refused, whatever it asks for. It can
also give its own name this machine's address (DNS rebinding), and then is the same origin: so the name that is asked
for must be one of this server's, unless a key is needed anyway.
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

from glassformer.server.errors import refusal

log = logging.getLogger("glassformer.server")

MAX_BODY = 8 * 2**20  # bytes; a prompt of a million token ids fits
ALWAYS = {
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
}


class Guard:
    """ASGI middleware. `is_page` says which paths are the static page, open without a key so that it can ask for it."""

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
                for name, value in ALWAYS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        headers, taken = Headers(scope=scope), 0
        refused = self._refusal(scope["method"], scope["path"], headers)

        async def receiving() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.max_body:
                raise HTTPException(413, self._too_large(f"more than {taken - 1:,}"))
            return message

        try:
            if refused is not None:
                await refused(scope, receive, sending)
            else:
                await self.app(scope, receiving, sending)
        finally:
            took = 1000 * (time.monotonic() - begin)
            log.info("%s %s %s %.0f ms", scope["method"], _visible(scope["path"]), status or "left", took)

    def _refusal(self, method: str, path: str, headers: Headers) -> Response | None:
        """Why this request is refused, before its body is read."""
        page = method in ("GET", "HEAD") and self.is_page(path)
        host = headers.get("host", "")
        if self.key is None and not self._is_ours(host):
            return refusal(
                403,
                f"this server is not known by the name {_visible(host)!r}: ask it by its address or as localhost, or "
                "start it with --allow-host NAME, or with an API key",
                "Host",
                "host_not_allowed",
            )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or (site not in ("none", "same-origin") and not page):
            return refusal(
                403,
                f"a page of another origin ({_visible(origin or site)}) may not use this server",
                "Origin",
                "origin_not_allowed",
            )
        if not page and not self._has_key(headers):
            return refusal(
                401,
                "this server needs its API key: send the header 'Authorization: Bearer KEY'"
                + (", and the one that was sent is wrong" if "authorization" in headers else ""),
                www_authenticate="Bearer",
            )
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > self.max_body:
            return refusal(413, self._too_large(f"{int(length[:20]):,}"))
        return None

    def _too_large(self, size: str) -> str:
        return f"the body has {size} bytes, and at most {self.max_body:,} are read"

    def _has_key(self, headers: Headers) -> bool:
        if self.key is None:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        same = secrets.compare_digest(given.strip().encode(), self.key.encode())
        return kind.lower() == "bearer" and same

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.hosts or _is_address(name)


def _is_address(name: str) -> bool:
    """Whether this is an IP address and not a name, which another could have given to this machine."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _visible(text: str) -> str:
    """A client's text such that it can stand in a line: nothing that ends it, and not too long."""
    shown = "".join(c if c.isprintable() else "�" for c in text)
    return shown if len(shown) <= 200 else shown[:200] + "..."
