"""Read training text from files, folders, globs, JSONL and standard input as a stream of documents.

At most about a megabyte of a plain text file, or one line of a JSONL file, is in memory. A long text is split between
words into chunks of about CHUNK characters, of which only the last has `Document.ends` True.

    DocumentFiles(["stories/", "more/*.jsonl", "-"])  ->  Document("Once ...", "stories/a.txt")
                                                    Document("Anna ...", "more/b.jsonl:1")

File types:
    .txt .md .text .markdown   one document, or several when `separator` is given (the separator and line breaks around
                               it are removed). A byte order mark is removed; CRLF becomes LF.
    .jsonl .ndjson             one document per line: the string under `text_field`, unchanged.
    .gz after any of these     the same, decompressed while it is read.
In a folder, files of other types and hidden names are skipped and counted. A file that is given by name or matched by a
glob is read as plain text if its type is unknown. Text is UTF-8.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from glassformer.errors import DataError

PLAIN, LINES = (".txt", ".md", ".text", ".markdown"), (".jsonl", ".ndjson")
CHUNK = 1 << 16  # characters; several chunks make a batch, so that one long document uses every core
BLOCK = 1 << 20  # bytes read at a time
EXAMPLES = 3
Item = TypeVar("Item")
_BEFORE_SPACE, _BEFORE_SIGN = re.compile(r"[^\W\d_](?= )"), re.compile(r"[^\W\d_](?=[\n.,!?;:。、，！？；：])")


@dataclass(frozen=True, slots=True)
class Document:
    """A document or a chunk of one: its text, its origin (file, file:line or file#number), and whether it ends here."""

    text: str
    origin: str
    ends: bool = True


@dataclass
class Skipped:
    """Counts of skipped items by reason, with the origin of the first few."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, origin: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES:
            shown.append(origin)

    def merge(self, other: Skipped) -> None:
        for reason, n in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + n
            shown = self.examples.setdefault(reason, [])
            shown += other.examples[reason][: EXAMPLES - len(shown)]

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def lines(self) -> list[str]:
        """Return one line per reason: "3 empty (a.txt, b.txt, c.jsonl:7)"."""
        return [
            f"{n:,} {reason} ({', '.join(self.examples[reason])}{', ...' if n > len(self.examples[reason]) else ''})"
            for reason, n in self.counts.items()
        ]

    def as_json(self) -> dict[str, dict]:
        return {reason: {"count": n, "examples": self.examples[reason]} for reason, n in self.counts.items()}


class Texts:
    """Documents in memory: an iterable of strings, or a function that returns one.

    A function or a list is repeatable; a generator can be iterated once.
    """

    def __init__(self, texts: Iterable[str] | Callable[[], Iterable[str]], name: str = "text"):
        self.texts, self.name = texts, name
        self.repeatable = callable(texts) or isinstance(texts, Sequence)

    def __iter__(self) -> Iterator[Document]:
        for number, text in enumerate(self.texts() if callable(self.texts) else self.texts, 1):
            if not isinstance(text, str):
                raise DataError(f"{self.name}#{number}: a document must be a string, got {type(text).__name__}")
            yield from split_document(text, f"{self.name}#{number}")


class FileStream(Generic[Item]):
    """Files, folders, globs and "-" (standard input) as a stream of items, which `_plain` and `_jsonl` yield.

    `skipped` is complete when the stream has been read. With strict=True a broken item raises DataError instead of
    being skipped; files of other types in a folder are skipped in any case.

    Raises DataError when a name or a glob matches nothing, and at the end of a stream without any item.
    """

    unit, kinds = "item", PLAIN + LINES  # the name of an item in messages; the file types read in a folder

    def __init__(self, sources: str | Path | Sequence[str | Path], *, strict: bool = False):
        self.given = [str(s) for s in ([sources] if isinstance(sources, str | Path) else sources)]
        if not self.given:
            raise DataError("there is no training data: give files, folders, globs or - for standard input")
        self.strict, self.skipped = strict, Skipped()
        self._unread = Skipped()  # files of other types, hidden files, and files named twice
        self.files = list(_find(self.given, self._unread, self.kinds))
        self.repeatable = "-" not in self.given
        self.total_bytes = sum(os.path.getsize(f) for f in self.files if f != "-") if self.repeatable else None
        self._base, self._raw = 0, None

    @property
    def bytes_read(self) -> int:
        """Bytes on disk read so far, of `total_bytes`."""
        return self._base + (self._raw.tell() if self._raw is not None and not self._raw.closed else 0)

    def __iter__(self) -> Iterator[Item]:
        self.skipped = Skipped()
        self.skipped.merge(self._unread)
        self._base, found = 0, False
        for name in self.files:
            try:
                for item in self._stdin() if name == "-" else self._file(name):
                    found = True
                    yield item
            except PermissionError as error:
                self._skip("not readable", f"{name}: {error.strerror}")
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                self._skip("broken gzip", f"{name}: {error}")
        if not found:
            why = "; ".join(self.skipped.lines()) or "there are no files"
            raise DataError(f"no {self.unit} could be read from {', '.join(self.given)}: {why}")

    def _skip(self, reason: str, origin: str) -> None:
        if self.strict:
            raise DataError(f"{origin}: {reason}")
        self.skipped.add(reason, origin)

    def _file(self, name: str) -> Iterator[Item]:
        stem, packed = (name[:-3], True) if name.lower().endswith(".gz") else (name, False)
        with open(name, "rb") as raw:
            self._raw = raw
            file = gzip.GzipFile(fileobj=raw) if packed else raw
            if stem.lower().endswith(LINES):
                yield from self._jsonl(file, name)
            else:
                yield from self._plain(file, name)
        self._base, self._raw = self._base + os.path.getsize(name), None

    def _stdin(self) -> Iterator[Item]:
        """Read JSONL if the first line is a JSON object, else plain text, from a copy that can be read twice."""
        first = sys.stdin.buffer.readline()
        try:
            lines = first.lstrip().startswith(b"{") and isinstance(json.loads(first), dict)
        except ValueError:
            lines = False
        if lines:
            yield from self._jsonl(itertools.chain([first], sys.stdin.buffer), "-")
            return
        with tempfile.TemporaryFile() as copy:
            try:
                copy.write(first)
                shutil.copyfileobj(sys.stdin.buffer, copy, BLOCK)
                copy.seek(0)
            except OSError as error:
                raise DataError(f"standard input could not be copied to {tempfile.gettempdir()}: {error}") from error
            yield from self._plain(copy, "-")

    def _plain(self, file: Any, name: str) -> Iterator[Item]: ...
    def _jsonl(self, lines: Iterable[bytes], name: str) -> Iterator[Item]: ...

    def _records(self, lines: Iterable[bytes], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the JSON objects of JSONL with their origin; skip other lines."""
        start = 0
        for number, line in enumerate(lines, 1):
            where, begin, start = f"{name}:{number}", start, start + len(line)
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode().removeprefix("\ufeff"))
            except UnicodeDecodeError as error:
                self._skip("not UTF-8", f"{where}: byte {begin + error.start:,}")
            except (ValueError, RecursionError) as error:
                self._skip("not JSON", f"{where}: {getattr(error, 'msg', error)}")
            else:
                if isinstance(record, dict):
                    yield where, record
                else:
                    self._skip("not a JSON object", f"{where}: {type(record).__name__}")

    def _string(self, record: dict[str, Any], name: str, where: str, empty: str = "empty") -> str | None:
        """Return the text of a field; where there is none, skip the record and return None."""
        text = record.get(name)
        if name not in record:
            return self._skip(f'no field "{name}"', f"{where}: it has {', '.join(list(record)[:5]) or 'none'}")
        if not isinstance(text, str):
            return self._skip(f'"{name}" is not a string', f"{where}: {type(text).__name__}")
        if not text.strip():
            return self._skip(empty, where)
        try:
            text.encode()
        except UnicodeEncodeError:
            return self._skip("unpaired surrogate (not a character)", where)
        return text


class DocumentFiles(FileStream[Document]):
    """A `FileStream` of documents. `crlf_files` counts the files in which CRLF was replaced by LF."""

    unit = "document"

    def __init__(
        self,
        sources: str | Path | Sequence[str | Path],
        *,
        text_field: str = "text",
        separator: str | None = None,
        strict: bool = False,
    ):
        if separator == "":
            raise DataError("separator must not be empty: leave it out to take each file as one document")
        super().__init__(sources, strict=strict)
        self.text_field, self.separator, self.crlf_files = text_field, separator, 0

    def __iter__(self) -> Iterator[Document]:
        self.crlf_files = 0
        return super().__iter__()

    def _plain(self, file: Any, name: str) -> Iterator[Document]:
        fault = _fault(file)
        if fault:
            return self._skip(fault[0], f"{name}: {fault[1]}" if fault[1] else name)
        file.seek(0)
        blocks = self._blocks(file)
        if self.separator is None:
            for text, ends in _cut(blocks, None):
                yield Document(text, name, ends)
            return
        number, at_start = 1, True
        for text, ends in _cut(blocks, self.separator):
            text = text.lstrip("\n") if at_start else text
            text = text.rstrip("\n") if ends else text
            if at_start and ends and not text.strip():
                continue  # empty between two separators, or after the last one
            yield Document(text, f"{name}#{number}", ends)
            number, at_start = number + ends, ends

    def _blocks(self, file: Any) -> Iterator[str]:
        """Yield the text of a file in blocks, without a byte order mark, and with LF for CRLF."""
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        rest, crlf = "", False
        while block := file.read(BLOCK):
            text = rest + decoder.decode(block)
            rest = "\r" if text.endswith("\r") else ""
            text = text[: len(text) - len(rest)]
            crlf = crlf or "\r\n" in text
            yield text.replace("\r\n", "\n")
        yield rest + decoder.decode(b"", final=True)
        self.crlf_files += crlf

    def _jsonl(self, lines: Iterable[bytes], name: str) -> Iterator[Document]:
        for where, record in self._records(lines, name):
            text = self._string(record, self.text_field, where)
            if text is not None:
                yield from split_document(text, where)


def split_document(text: str, origin: str) -> Iterator[Document]:
    """Yield a text in chunks of about CHUNK characters; most texts are one chunk."""
    if len(text) <= 2 * CHUNK:
        yield Document(text, origin)
    else:
        for part, ends in _cut([text], None):
            yield Document(part, origin, ends)


def _cut(blocks: Iterable[str], separator: str | None) -> Iterator[tuple[str, bool]]:
    """Yield chunks, and whether each ends its document: at a separator, or at the end of the blocks."""
    rest = ""
    for block in blocks:
        *complete, rest = (rest + block).split(separator) if separator else [rest + block]
        for text in complete:
            yield from _chunks(text)
        for text, ends in _chunks(rest):  # leaves at least a CHUNK, which may end with the start of a separator
            if ends:
                rest = text
            else:
                yield text, False
    yield from _chunks(rest)


def _chunks(text: str) -> Iterator[tuple[str, bool]]:
    """Yield chunks while more than 2 CHUNK characters are left, then the rest, marked True."""
    begin = 0
    while len(text) - begin > 2 * CHUNK:
        end = _split_point(text, begin + CHUNK)
        yield text[begin:end], False
        begin = end
    yield text[begin:], True


def _split_point(text: str, at: int) -> int:
    """Return the last position at or before `at` (within half a CHUNK) where every word-based tokenizer splits.

    It is between a letter and a space, else between a letter and a line break or punctuation, else `at` itself.
    """
    for pattern in (_BEFORE_SPACE, _BEFORE_SIGN):
        *_, last = (None, *pattern.finditer(text, at - CHUNK // 2, at))
        if last:
            return last.end()
    return at


def _fault(file: Any) -> tuple[str, str] | None:
    """Return the reason why a plain text file cannot be used, and the position; None where it can."""
    decoder, offset, empty = codecs.getincrementaldecoder("utf-8")(), 0, True
    while True:
        block = file.read(BLOCK)
        if not offset and block.startswith((b"\xff\xfe", b"\xfe\xff")):
            return "not UTF-8", "byte 0: it looks like UTF-16, save it as UTF-8"
        if (nul := block.find(b"\0")) >= 0:
            return "binary", f"NUL at byte {offset + nul:,}"
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            return "not UTF-8", f"byte {offset - pending + error.start:,}"
        empty = empty and not text.replace("\ufeff", "").strip()
        offset += len(block)
        if not block:
            return ("empty", "") if empty else None


def _find(names: Sequence[str], skipped: Skipped, kinds: tuple[str, ...]) -> Iterator[str]:
    """Yield the files of names, folders and globs once each, in the order given, inside a folder by name."""
    seen: set[str] = set()
    for name in names:
        if name == "-":
            found: Iterable[str] = ["-"]
        elif os.path.isdir(name):
            found = _walk(name, skipped, kinds)
        elif os.path.exists(name):
            found = [name]
        elif glob.has_magic(name):
            matches = sorted(glob.glob(os.path.expanduser(name), recursive=True))
            if not matches:
                raise DataError(f"{name}: no file matches this pattern (in {os.getcwd()})")
            found = itertools.chain.from_iterable(
                _walk(m, skipped, kinds) if os.path.isdir(m) else [m] for m in matches
            )
        else:
            raise DataError(f"{name}: there is no such file or folder (in {os.getcwd()})")
        empty = True
        for path in found:
            empty = False
            real = path if path == "-" else os.path.realpath(path)
            if real in seen:
                skipped.add("named twice", path)
            else:
                seen.add(real)
                yield path
        if empty:
            wanted = f"{' '.join(kinds)} (also .gz)"
            raise DataError(f"{name}: this folder and those inside it have no files of the types {wanted}")


def _walk(folder: str, skipped: Skipped, kinds: tuple[str, ...]) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        for name in [f for f in folders if f.startswith(".")]:
            skipped.add("hidden", os.path.join(parent, name))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            kind = name.lower().removesuffix(".gz")
            if name.startswith("."):
                skipped.add("hidden", os.path.join(parent, name))
            elif kind.endswith(kinds):
                yield os.path.join(parent, name)
            else:
                skipped.add("of another type", os.path.join(parent, name))
