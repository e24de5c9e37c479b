"""Serve the built page at `/`, or a note that says how to build it."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request, Response

DIST = Path(__file__).parent.parent / "web_dist"
POLICY = "; ".join((
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data: blob:",
    "font-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
))  # fmt: skip
CACHE_FOREVER = "public, max-age=31536000, immutable"
MIN_GZIP_BYTES = 512  # smaller files are not compressed
MISSING = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Glassformer</title>
<h1>The server is running, but its page is not built</h1>
<p>This installation has no <code>glassformer/web_dist</code>. In a source checkout, <code>make page</code> builds it; a
wheel contains it. The HTTP API works without it: see <a href="/openapi.json">/openapi.json</a>.</p>
</html>
"""


@dataclass(frozen=True)
class PageFile:
    """One file of the page, ready to be sent."""

    data: bytes
    gzipped: bytes | None
    kind: str
    etag: str
    immutable: bool

    @classmethod
    def make(cls, data: bytes, name: str) -> PageFile:
        """Compress a file and choose its content type."""
        packed = gzip.compress(data, 9, mtime=0)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        text = kind.startswith("text/") or kind.endswith(("javascript", "json", "svg+xml"))
        return cls(
            data,
            packed if len(data) >= MIN_GZIP_BYTES and len(packed) < 0.9 * len(data) else None,
            f"{kind}; charset=utf-8" if text else kind,
            f'"{hashlib.sha256(data).hexdigest()[:32]}"',
            name.startswith("assets/"),  # their names contain a hash of their content
        )

    def response(self, request: Request) -> Response:
        headers = {
            "etag": self.etag,
            "cache-control": CACHE_FOREVER if self.immutable else "no-cache",
            "content-security-policy": POLICY,
            "x-frame-options": "DENY",
            "vary": "accept-encoding",
        }
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(None, 304, headers)
        if self.gzipped is not None and "gzip" in request.headers.get("accept-encoding", ""):
            return Response(self.gzipped, 200, headers | {"content-encoding": "gzip"}, self.kind)
        return Response(self.data, 200, headers, self.kind)


class BuiltPage:
    """The files of the page by URL path."""

    def __init__(self, folder: Path = DIST):
        self.built = (folder / "index.html").is_file()
        if self.built:
            names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            self.files = {f"/{name}": PageFile.make((folder / name).read_bytes(), name) for name in names}
            self.files["/"] = self.files["/index.html"]
        else:
            self.files = {"/": PageFile.make(MISSING.encode(), "index.html")}

    def has(self, path: str) -> bool:
        return path in self.files

    def install(self, app: FastAPI) -> None:
        """Add a route for each file."""

        async def page(request: Request) -> Response:
            return self.files[request.url.path].response(request)

        for path in self.files:
            app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)
