"""Open the bytes of a data file, of standard input or of a pipe; decompress and decode them while they are read.

A pipe can be read only once, so it is first copied to a temporary file. Compression is recognised by the first bytes.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, BinaryIO, Protocol, cast

from glassformer.errors import DataError
from glassformer.training.data.encoding_hint import encoding_hint, utf16_or_32

BLOCK = 1 << 20  # bytes read at a time
ZSTD_INPUT = 1 << 8  # compressed bytes decoded at a time; each 3 or 4 can become 128 KiB
MAX_RECORD = 1 << 26  # bytes of a line, a JSON value or a table's field
HEAD = 512  # bytes
COMPRESSED = (".gz", ".zst")
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

Skip = Callable[[str, str], None]


class Unreadable(Exception):
    """A file, or the rest of a file, that cannot be used.

    reason: without names, so that files can be counted by it. where: the file and the position.
    """

    def __init__(self, reason: str, where: str):
        super().__init__(f"{where}: {reason}")
        self.reason, self.where = reason, where


class ReadableBytes(Protocol):
    """An open binary file."""

    def read(self, size: int = ..., /) -> bytes: ...
    def readline(self, size: int = ..., /) -> bytes: ...


class OpenFile:
    """An open data file.

    name: as shown. raw: its bytes on disk, seekable. encoding: of its text.
    """

    def __init__(self, raw: BinaryIO, name: str, encoding: str):
        self.raw, self.name, self.encoding = raw, name, encoding

    def bytes(self) -> ReadableBytes:
        """Return the decompressed bytes, from the start."""
        self.raw.seek(0)
        head = self.raw.read(len(ZSTD))
        self.raw.seek(0)
        if head.startswith(GZIP) or (head and self.name.lower().endswith(".gz")):
            return cast(ReadableBytes, gzip.GzipFile(fileobj=self.raw))
        if head == ZSTD or (head and self.name.lower().endswith(".zst")):
            return io.BufferedReader(_Zstd(self.raw, self.name), BLOCK)
        return self.raw

    def text(self) -> ReadableBytes:
        """Return the decompressed text in UTF-8, from the start. Raises Unreadable for UTF-16 read as UTF-8."""
        if self.encoding != "utf-8":
            return io.BufferedReader(_Utf8(self.bytes(), self.name, self.encoding), BLOCK)
        if found := utf16_or_32(self.bytes().read(HEAD)):
            raise Unreadable("not UTF-8", f"{self.name}: byte 0{encoding_hint(found)}")
        return self.bytes()

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of the text in UTF-8. A line longer than MAX_RECORD ends there, without a line end."""
        readline = self.text().readline
        while line := readline(MAX_RECORD):
            yield line

    def seekable(self) -> BinaryIO:
        """Return the decompressed bytes as a file with a descriptor."""
        file = self.bytes()
        if file is self.raw:
            return self.raw
        return copy_to_disk(file, self.name)


class _Decoded(io.RawIOBase):
    """A raw stream of the byte strings that `_next` returns; an empty one ends it."""

    _rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if not self._rest:
            self._rest = memoryview(self._next())
        n = min(len(buffer), len(self._rest))
        buffer[:n], self._rest = self._rest[:n], self._rest[n:]
        return n

    def _next(self) -> bytes:
        raise NotImplementedError


class _Zstd(_Decoded):
    """The decompressed bytes of a file of zstd frames. Raises Unreadable for a damaged or truncated frame."""

    def __init__(self, raw: BinaryIO, name: str):
        self.zstandard = optional_import("zstandard", name, "zstd files")
        self.raw, self.name = raw, name
        self.input, self.frame = b"", self.zstandard.ZstdDecompressor().decompressobj()
        self.inside = False  # a frame that has begun and not ended

    def _next(self) -> bytes:
        while True:
            data = self.input or self.raw.read(ZSTD_INPUT)
            self.input = b""
            if not data:
                if self.inside:
                    raise Unreadable("broken zstd", f"{self.name}: it ends inside a frame")
                return b""
            try:
                found = self.frame.decompress(data)
            except self.zstandard.ZstdError as error:
                raise Unreadable("broken zstd", f"{self.name}: {error}") from error
            self.inside = not self.frame.eof
            if self.frame.eof:
                self.input = self.frame.unused_data
                self.frame = self.zstandard.ZstdDecompressor().decompressobj()
            if found:
                return found


class _Utf8(_Decoded):
    """Text of another encoding as UTF-8. Raises Unreadable where it is not in that encoding."""

    def __init__(self, file: ReadableBytes, name: str, encoding: str):
        self.file, self.name, self.encoding = file, name, encoding
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.offset, self.ended = 0, False

    def _next(self) -> bytes:
        while not self.ended:
            block = self.file.read(BLOCK)
            self.ended = not block
            try:
                text = self.decoder.decode(block, final=not block).encode()
            except UnicodeError as error:
                raise Unreadable(
                    f"not {self.encoding}",
                    f"{self.name}: after byte {self.offset:,}: {getattr(error, 'reason', error)}",
                ) from error
            self.offset += len(block)
            if text:
                return text
        return b""


def open_pipe(name: str, shown: str) -> BinaryIO:
    """Return a temporary file with everything that standard input ("-") or the pipe `name` yields."""
    if name != "-":
        with open(name, "rb") as pipe:
            return copy_to_disk(pipe, shown)
    if sys.stdin is None:
        raise DataError("standard input is closed: name files, or pipe text into the command")
    return copy_to_disk(sys.stdin.buffer, "standard input")


def is_standard_input(status: os.stat_result) -> bool:
    """Return whether a file is standard input under another name, such as /dev/stdin, and not a regular file."""
    try:
        return not stat.S_ISREG(status.st_mode) and os.path.samestat(status, os.fstat(0))
    except OSError:
        return False


def copy_to_disk(file: ReadableBytes, name: str) -> BinaryIO:
    """Return a temporary file with the bytes of `file`. Raises DataError where the disk is full."""
    folder = "a temporary folder"
    block = file.read(BLOCK)
    try:
        folder = tempfile.gettempdir()
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        while block:
            copy.write(block)
            block = file.read(BLOCK)
        copy.flush()
        copy.seek(0)
    except OSError as error:
        raise DataError(f"{name} could not be copied to {folder} (TMPDIR): {error}") from error
    return cast(BinaryIO, copy)


def optional_import(module: str, name: str, what: str) -> Any:
    """Import a package of the extra `data`. Raises DataError that says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DataError(f"{name}: {what} need the package {package}: pip install 'glassformer[data]'") from error
