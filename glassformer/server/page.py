"""The page at `/`: the built files, read once, or a line that says how to build them."""

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
FOREVER = "public, max-age=31536000, immutable"
SMALLEST = 512  # bytes; smaller ones are not worth packing
MISSING = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Glassformer</title>
<h1>The server runs; its page is not built</h1>
<p>This copy of Glassformer has no <code>glassformer/web_dist</code>. In the sources, <code>make page</code> builds it;
an installed wheel has it. All routes work without it: <a href="/openapi.json">/openapi.json</a> describes them.</p>
</html>
"""


@dataclass(frozen=True)
class File:
    """One file of the page, as it is sent."""

    data: bytes
    packed: bytes | None
    kind: str
    etag: str
    forever: bool

    @classmethod
    def of(cls, data: bytes, name: str) -> File:
        packed = gzip.compress(data, 9, mtime=0)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        text = kind.startswith("text/") or kind.endswith(("javascript", "json", "svg+xml"))
        return cls(
            data,
            packed if len(data) >= SMALLEST and len(packed) < 0.9 * len(data) else None,
            f"{kind}; charset=utf-8" if text else kind,
            f'"{hashlib.sha256(data).hexdigest()[:32]}"',
            name.startswith("assets/"),  # their names hold a hash of what is in them
        )

    def response(self, request: Request) -> Response:
        headers = {
            "etag": self.etag,
            "cache-control": FOREVER if self.forever else "no-cache",
            "content-security-policy": POLICY,
            "x-frame-options": "DENY",
            "vary": "accept-encoding",
        }
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(None, 304, headers)
        if self.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            return Response(self.packed, 200, headers | {"content-encoding": "gzip"}, self.kind)
        return Response(self.data, 200, headers, self.kind)


class BuiltPage:
    """The files of the page by their paths."""

    def __init__(self, folder: Path = DIST):
        self.built = (folder / "index.html").is_file()
        if self.built:
            names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            self.files = {f"/{name}": File.of((folder / name).read_bytes(), name) for name in names}
            self.files["/"] = self.files["/index.html"]
        else:
            self.files = {"/": File.of(MISSING.encode(), "index.html")}

    def has(self, path: str) -> bool:
        return path in self.files

    def install(self, app: FastAPI) -> None:
        """A route for each file; what is not one of them is not there."""

        async def page(request: Request) -> Response:
            return self.files[request.url.path].response(request)

        for path in self.files:
            app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)
