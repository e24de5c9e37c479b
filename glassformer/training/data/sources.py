"""Where text comes from: files, folders, globs, JSONL and standard input, one document after another.

Nothing here holds more than about a megabyte of a plain text file, or one line of a JSONL file. A long text arrives in
pieces of about PIECE characters, cut between words: `Document.ends` is False for all of them but the last.

    Sources(["stories/", "more/*.jsonl", "-"])  ->  Document("Once ...", "stories/a.txt")
                                                    Document("Anna ...", "more/b.jsonl:1")

What each kind of file is:
    .txt .md .text .markdown   one document, or several when `separator` is given (the separator itself is dropped, and
                               so are line breaks around it). A byte order mark is dropped; CRLF becomes LF.
    .jsonl .ndjson             one document a line: the string under `text_field`, exactly as it stands there.
    .gz after any of these     the same, unpacked while it is read.
In a folder, other kinds are skipped and counted, and so are hidden names; a file that is named itself, or matched by a
glob, is read as plain text whatever its ending. Text is UTF-8.
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
CHUNK = 1 << 16  # characters: several pieces make a batch, so that one long document still keeps every core busy
BLOCK = 1 << 20  # bytes read at a time
EXAMPLES = 3
Item = TypeVar("Item")
_BEFORE_SPACE, _BEFORE_SIGN = re.compile(r"[^\W\d_](?= )"), re.compile(r"[^\W\d_](?=[\n.,!?;:。、，！？；：])")


@dataclass(frozen=True, slots=True)
class Document:
    """A document, or a piece of a long one: its text, where it stands (file, file:line or file#number), and whether
    it ends here."""

    text: str
    origin: str
    ends: bool = True


@dataclass
class Skipped:
    """What was left out and why: for each reason a count and the first few places."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES:
            shown.append(where)

    def merge(self, other: Skipped) -> None:
        for reason, n in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + n
            shown = self.examples.setdefault(reason, [])
            shown += other.examples[reason][: EXAMPLES - len(shown)]

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def lines(self) -> list[str]:
        """One line for each reason: "3 empty (a.txt, b.txt, c.jsonl:7)"."""
        return [
            f"{n:,} {reason} ({', '.join(self.examples[reason])}{', ...' if n > len(self.examples[reason]) else ''})"
            for reason, n in self.counts.items()
        ]

    def as_json(self) -> dict[str, dict]:
        return {reason: {"count": n, "examples": self.examples[reason]} for reason, n in self.counts.items()}


class Texts:
    """Documents that are already in memory, or made on demand: an iterable of strings, or a function that gives one.

    A function (or a list) can be gone through again, a generator only once.
    """

    def __init__(self, texts: Iterable[str] | Callable[[], Iterable[str]], name: str = "text"):
        self.texts, self.name = texts, name
        self.repeatable = callable(texts) or isinstance(texts, Sequence)

    def __iter__(self) -> Iterator[Document]:
        for number, text in enumerate(self.texts() if callable(self.texts) else self.texts, 1):
            if not isinstance(text, str):
                raise DataError(f"{self.name}#{number}: a text must be a string, got {type(text).__name__}")
            yield from split_document(text, f"{self.name}#{number}")


class FileStream(Generic[Item]):
    """Files, folders, globs and "-" (standard input) as a stream of items; a subclass's `_plain` and `_jsonl` say what
    a file holds.

    `skipped` fills up as the stream is read. With strict=True a broken item raises DataError instead of being skipped;
    files of other kinds (in a folder) are skipped all the same.

    Raises DataError at once when a name or a glob matches nothing, and at the end of the stream when not one item
    could be read.
    """

    unit, kinds = "item", PLAIN + LINES  # what an item is called in messages; the endings that count in a folder

    def __init__(self, sources: str | Path | Sequence[str | Path], *, strict: bool = False):
        self.given = [str(s) for s in ([sources] if isinstance(sources, str | Path) else sources)]
        if not self.given:
            raise DataError("no data was named: give files, folders, globs or - for standard input")
        self.strict, self.skipped = strict, Skipped()
        self._unread = Skipped()  # found while looking for files: not text, hidden, named twice
        self.files = list(_find(self.given, self._unread, self.kinds))
        self.repeatable = "-" not in self.given
        self.total_bytes = sum(os.path.getsize(f) for f in self.files if f != "-") if self.repeatable else None
        self._base, self._raw = 0, None

    @property
    def bytes_read(self) -> int:
        """Bytes of the files (as they lie on disk) that were read so far; `total_bytes` says of how many."""
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
            why = "; ".join(self.skipped.lines()) or "there is none"
            raise DataError(f"no {self.unit} could be read from {', '.join(self.given)}: {why}")

    def _skip(self, reason: str, where: str) -> None:
        if self.strict:
            raise DataError(f"{where}: {reason}")
        self.skipped.add(reason, where)

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
        """JSONL if its first line is a JSON object, else `_plain`, which may want to go over it twice: it goes to a
        temporary file first."""
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
                raise DataError(f"standard input could not be kept in {tempfile.gettempdir()}: {error}") from error
            yield from self._plain(copy, "-")

    def _plain(self, file: Any, name: str) -> Iterator[Item]: ...
    def _jsonl(self, lines: Iterable[bytes], name: str) -> Iterator[Item]: ...

    def _records(self, lines: Iterable[bytes], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The JSON objects of JSONL, and where each stands; what is none is skipped."""
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
        """The text in the field of that name; None, and skipped for the reason, where there is none to use."""
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
            return self._skip("half a surrogate pair (not a character)", where)
        return text


class DocumentFiles(FileStream[Document]):
    """`Files` of texts, as a stream of documents. See the top of this file.

    `crlf_files` counts the files whose line ends were changed. Raises DataError as `Files` does.
    """

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
        number, fresh = 1, True
        for text, ends in _cut(blocks, self.separator):
            text = text.lstrip("\n") if fresh else text
            text = text.rstrip("\n") if ends else text
            if fresh and ends and not text.strip():
                continue  # nothing between two separators, or after the last one: no document
            yield Document(text, f"{name}#{number}", ends)
            number, fresh = number + ends, ends

    def _blocks(self, file: Any) -> Iterator[str]:
        """The file's text in blocks, without a byte order mark, CRLF as LF."""
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        held, crlf = "", False
        while block := file.read(BLOCK):
            text = held + decoder.decode(block)
            held = "\r" if text.endswith("\r") else ""
            text = text[: len(text) - len(held)]
            crlf = crlf or "\r\n" in text
            yield text.replace("\r\n", "\n")
        yield held + decoder.decode(b"", final=True)
        self.crlf_files += crlf

    def _jsonl(self, lines: Iterable[bytes], name: str) -> Iterator[Document]:
        for where, record in self._records(lines, name):
            text = self._string(record, self.text_field, where)
            if text is not None:
                yield from split_document(text, where)


def split_document(text: str, where: str) -> Iterator[Document]:
    """A text in pieces of about PIECE characters; most texts are one."""
    if len(text) <= 2 * CHUNK:
        yield Document(text, where)
    else:
        for part, ends in _cut([text], None):
            yield Document(part, where, ends)


def _cut(blocks: Iterable[str], separator: str | None) -> Iterator[tuple[str, bool]]:
    """Pieces, and whether each ends its document: at a separator, or at the end of the blocks."""
    rest = ""
    for block in blocks:
        *whole, rest = (rest + block).split(separator) if separator else [rest + block]
        for text in whole:
            yield from _shorten(text)
        for text, ends in _shorten(rest):  # leaves at least a PIECE: the beginning of a separator may stand at its end
            if ends:
                rest = text
            else:
                yield text, False
    yield from _shorten(rest)


def _shorten(text: str) -> Iterator[tuple[str, bool]]:
    """Pieces off the front while more than 2 PIECE are there; then what is left, marked True."""
    begin = 0
    while len(text) - begin > 2 * CHUNK:
        end = _border(text, begin + CHUNK)
        yield text[begin:end], False
        begin = end
    yield text[begin:], True


def _border(text: str, at: int) -> int:
    """The last place at or before `at` (within half a PIECE) where a tokenizer that splits into words cuts in any case:
    between a letter and a space, else between a letter and a line break or punctuation; failing both, `at` itself."""
    for pattern in (_BEFORE_SPACE, _BEFORE_SIGN):
        *_, last = (None, *pattern.finditer(text, at - CHUNK // 2, at))
        if last:
            return last.end()
    return at


def _fault(file: Any) -> tuple[str, str] | None:
    """Why a plain text file cannot be used, and where: found in a first pass, so that nothing of it is used."""
    decoder, offset, empty = codecs.getincrementaldecoder("utf-8")(), 0, True
    while True:
        block = file.read(BLOCK)
        if not offset and block.startswith((b"\xff\xfe", b"\xfe\xff")):
            return "not UTF-8", "byte 0: it looks like UTF-16, save it as UTF-8"
        if (nul := block.find(b"\0")) >= 0:
            return "binary", f"NUL at byte {offset + nul:,}"
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            return "not UTF-8", f"byte {offset - held + error.start:,}"
        empty = empty and not text.replace("\ufeff", "").strip()
        offset += len(block)
        if not block:
            return ("empty", "") if empty else None


def _find(given: Sequence[str], skipped: Skipped, kinds: tuple[str, ...]) -> Iterator[str]:
    """The files behind names, folders and globs, in the order given; inside a folder by name. Each once."""
    seen: set[str] = set()
    for name in given:
        if name == "-":
            found: Iterable[str] = ["-"]
        elif os.path.isdir(name):
            found = _walk(name, skipped, kinds)
        elif os.path.exists(name):
            found = [name]
        elif glob.has_magic(name):
            matches = sorted(glob.glob(os.path.expanduser(name), recursive=True))
            if not matches:
                raise DataError(f"{name}: no file matches this pattern (looked in {os.getcwd()})")
            found = itertools.chain.from_iterable(
                _walk(m, skipped, kinds) if os.path.isdir(m) else [m] for m in matches
            )
        else:
            raise DataError(f"{name}: there is no such file or folder (looked in {os.getcwd()})")
        nothing = True
        for path in found:
            nothing = False
            real = path if path == "-" else os.path.realpath(path)
            if real in seen:
                skipped.add("named twice, read once", path)
            else:
                seen.add(real)
                yield path
        if nothing:
            wanted = f"{' '.join(kinds)} (also .gz)"
            raise DataError(f"{name}: no text in this folder: looked, inside it and below, for {wanted}")


def _walk(folder: str, skipped: Skipped, kinds: tuple[str, ...]) -> Iterator[str]:
    for where, folders, files in os.walk(folder):
        for name in [f for f in folders if f.startswith(".")]:
            skipped.add("hidden", os.path.join(where, name))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            kind = name.lower().removesuffix(".gz")
            if name.startswith("."):
                skipped.add("hidden", os.path.join(where, name))
            elif kind.endswith(kinds):
                yield os.path.join(where, name)
            else:
                skipped.add("of another kind", os.path.join(where, name))
