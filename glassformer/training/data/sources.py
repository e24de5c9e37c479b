"""Read training text from files, folders, globs, pipes and standard input as a stream of documents.

At most about a megabyte of a plain text file, or one record of a structured file, is in memory. A long text is split
between words into chunks of about CHUNK characters, of which only the last has `Document.ends` True.

    DocumentFiles(["stories/", "more/*.jsonl", "-"])  ->  Document("Once ...", "stories/a.txt")
                                                    Document("Anna ...", "more/b.jsonl:1")

File types:
    .txt .md .text .markdown   one document, or several when `separator` is given (the separator and line breaks around
                               it are removed). A byte order mark is removed; CRLF becomes LF.
    .jsonl .ndjson .json .csv .tsv .parquet .arrow .feather
                               one document per record: the string under `text_field`, unchanged. See `records.py`.
    .gz .zst after any of these   the same, decompressed while it is read.
In a folder, files of other types and hidden names are skipped and counted. A file of an unknown type that is given by
name or matched by a glob, like standard input and pipes, is read by its content: Parquet, Arrow, JSONL, a JSON array of
objects, else plain text. Markup (.html, .xml, ...) is plain text only where `ext` names its type.
"""

from __future__ import annotations

import codecs
import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Generic, TypeVar

from glassformer.counted import counted
from glassformer.errors import DataError
from glassformer.training.data.byte_streams import BLOCK, COMPRESSED, OpenFile, Unreadable, open_pipe
from glassformer.training.data.encoding_hint import encoding_hint, likely_encoding
from glassformer.training.data.find_files import FoundFile, find_files, printable
from glassformer.training.data.read_options import DEFAULT_READ, ReadOptions
from glassformer.training.data.records import READERS, hint, recognise

STRUCTURED = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
MARKUP = (".html", ".htm", ".xhtml", ".xml", ".svg", ".yaml", ".yml", ".toml", ".ipynb", ".rtf", ".tex", ".rss")
CHUNK = 1 << 16  # characters; several chunks make a batch, so that one long document uses every core
EXAMPLES = 3
END_OF_TEXT = "<|endoftext|>"  # the usual separator of published files
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
        reason, origin = printable(reason), printable(origin)
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
        texts = self.texts() if callable(self.texts) else self.texts
        if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
            raise DataError(f"{self.name}: documents must be an iterable of texts, got {type(texts).__name__}")
        for number, text in enumerate(texts, 1):
            if not isinstance(text, str):
                raise DataError(f"{self.name}#{number}: a document must be a string, got {type(text).__name__}")
            yield from split_document(text, f"{self.name}#{number}")


class FileStream(Generic[Item]):
    """Files, folders, globs, pipes and "-" (standard input) as a stream of items.

    A subclass says how a plain file (`_plain`) and a record of a structured file (`_record`) become items. The stream
    can be iterated again: pipes are copied to temporary files, which `announce` reports. `skipped` is complete when the
    stream has been read. With strict=True a broken item raises DataError instead of being skipped; files of other types
    in a folder are skipped in any case.

    Raises DataError when a name or a glob matches nothing, and at the end of a stream without any item.
    """

    unit: ClassVar[str] = "item"  # the name of an item in messages
    formats: ClassVar[Mapping[str, str]] = {}  # file type -> "plain" or a key of READERS; these are read in a folder
    repeatable = True

    def __init__(
        self,
        sources: str | Path | Sequence[str | Path],
        read: ReadOptions = DEFAULT_READ,
        *,
        strict: bool = False,
        announce: Callable[[str], None] | None = None,
    ):
        given = [sources] if isinstance(sources, str | Path) else list(sources)
        for name in given:
            if not isinstance(name, str | Path):
                raise DataError(f"a name of a file must be a string or a Path, got {type(name).__name__}")
        self.given = [str(name) for name in given]
        if not self.given:
            raise DataError("there is no training data: give files, folders, globs or - for standard input")
        self.fields = self.fields_of(read)
        self.read, self.strict, self.skipped, self.announce = read, strict, Skipped(), announce
        self._unread = Skipped()  # files of other types, hidden files, and files named twice
        self.files = list(find_files(self.given, read.ext or tuple(self.formats), self._unread.add))
        self._copies: dict[str, BinaryIO] = {}
        self._base, self._raw = 0, None

    @classmethod
    def fields_of(cls, read: ReadOptions) -> tuple[str, ...]:
        """Return the fields of a record that an item is made of. ConfigError: an option has no meaning for it."""
        raise NotImplementedError

    @property
    def total_bytes(self) -> int:
        """Bytes on disk of all files."""
        return sum(os.fstat(self._copy(f).fileno()).st_size if f.is_pipe else f.size for f in self.files)

    @property
    def bytes_read(self) -> int:
        """Bytes on disk read so far, of `total_bytes`."""
        return self._base + (self._raw.tell() if self._raw is not None and not self._raw.closed else 0)

    @property
    def notes(self) -> list[str]:
        """What was found in the files that is no reason to skip them, in sentences; complete as `skipped` is."""
        return []

    def __iter__(self) -> Iterator[Item]:
        self.skipped = Skipped()
        self.skipped.merge(self._unread)
        self._base, items = 0, 0
        for file in self.files:
            before = items, self.skipped.total
            try:
                for item in self._file(file):
                    items += 1
                    yield item
                if before == (items, self.skipped.total):
                    self._skip("empty", file.shown)
            except Unreadable as error:
                self._skip(error.reason, error.where)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                self._skip("broken gzip", f"{file.shown}: {error}")
            except OSError as error:
                self._skip("not readable", f"{file.shown}: {error.strerror or error}")
        if not items:
            why = "; ".join(self.skipped.lines()) or "there are no files"
            names = printable(", ".join("standard input" if name == "-" else name for name in self.given))
            raise DataError(f"no {self.unit} could be read from {names}: {why}")

    def _skip(self, reason: str, origin: str) -> None:
        if self.strict:
            raise DataError(printable(f"{origin}: {reason}"))
        self.skipped.add(reason, origin)

    def _copy(self, file: FoundFile) -> BinaryIO:
        """Return the temporary file with the content of a pipe."""
        if file.name not in self._copies:
            if self.announce is not None:
                self.announce("reading standard input" if file.name == "-" else f"reading the pipe {file.shown}")
            self._copies[file.name] = open_pipe(file.name, file.shown)
        return self._copies[file.name]

    def _file(self, file: FoundFile) -> Iterator[Item]:
        raw = self._copy(file) if file.is_pipe else open(file.name, "rb")  # noqa: SIM115
        try:
            self._raw = raw
            size = os.fstat(raw.fileno()).st_size
            if size:
                yield from self._open_file(OpenFile(raw, file.shown, self.read.encoding), file)
            self._base += size
        finally:
            self._raw = None
            if not file.is_pipe:
                raw.close()

    def _open_file(self, file: OpenFile, found: FoundFile) -> Iterator[Item]:
        form = None if found.is_pipe else self._format(found)
        if form is None:
            form = recognise(file) or "plain"
        if form == "plain":
            yield from self._plain(file)
            return
        for where, record in READERS[form](file, self.fields, self._skip):
            yield from self._record(record, where)

    def _format(self, file: FoundFile) -> str | None:
        """Return the format by the name of a file; None where its type is unknown."""
        stem = file.name.lower()
        for ending in COMPRESSED:
            stem = stem.removesuffix(ending)
        for ending, form in self.formats.items():
            if stem.endswith(ending):
                return form
        if stem.endswith(MARKUP) and not stem.endswith(self.read.ext):
            raise Unreadable("markup, not text (name its type with --ext to read it as text)", file.shown)
        return None

    def _plain(self, file: OpenFile) -> Iterator[Item]:
        raise NotImplementedError

    def _record(self, record: dict[str, Any], where: str) -> Iterator[Item]:
        raise NotImplementedError

    def _string(self, record: dict[str, Any], name: str, where: str, empty: str = "empty") -> str | None:
        """Return the text of a field; where there is none, skip the record and return None."""
        text = record.get(name)
        if name not in record:
            has, reason = ", ".join(list(record)[:5])[:200] or "none", f'no field "{name}"'
            choose = "" if reason in self.skipped.counts else hint(self.fields)
            return self._skip(reason, f"{where}: it has {has}{choose}")
        if not isinstance(text, str):
            return self._skip(f'"{name}" is not a string', f"{where}: {type(text).__name__}")
        if not text.strip():
            return self._skip(empty, where)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if "\udc80" <= text[error.start] <= "\udcff":  # an undecoded byte, or as bad: the second half of a pair
                return self._skip("not UTF-8", where)
            return self._skip("unpaired surrogate (not a character)", where)
        return text


class DocumentFiles(FileStream[Document]):
    """A `FileStream` of documents. `crlf_files` counts the files in which CRLF was replaced by LF."""

    unit = "document"
    formats = dict.fromkeys((".txt", ".md", ".text", ".markdown"), "plain") | STRUCTURED
    crlf_files = plain_files = separators = end_of_texts = 0

    @classmethod
    def fields_of(cls, read: ReadOptions) -> tuple[str, ...]:
        return (read.text_field,)

    def __iter__(self) -> Iterator[Document]:
        self.crlf_files, self.plain_files, self.separators, self.end_of_texts = 0, 0, 0, 0
        return super().__iter__()

    @property
    def notes(self) -> list[str]:
        found = []
        if self.crlf_files:
            found.append(f"CRLF was replaced by LF in {counted(self.crlf_files, 'file')}")
        if self.read.separator and self.plain_files and not self.separators:
            found.append(f"the separator {self.read.separator!r} occurs in none of the plain text files")
        if self.end_of_texts and self.read.separator is None:
            found.append(
                f"{END_OF_TEXT} occurs {counted(self.end_of_texts, 'time')} and is ordinary text: give --separator "
                f"'{END_OF_TEXT}' to split documents at it"
            )
        return found

    def _plain(self, file: OpenFile) -> Iterator[Document]:
        _check_plain(file)
        self.plain_files += 1
        blocks = self._blocks(file)
        if self.read.separator is None:
            for text, ends in _cut(blocks, None):
                self.end_of_texts += text.count(END_OF_TEXT)
                yield Document(text, file.name, ends)
            return
        number, at_start, parts = 1, True, 0
        for text, ends in _cut(blocks, self.read.separator):
            parts += ends
            text = text.lstrip("\n") if at_start else text
            text = text.rstrip("\n") if ends else text
            if at_start and ends and not text.strip():
                continue  # empty between two separators, or after the last one
            yield Document(text, f"{file.name}#{number}", ends)
            number, at_start = number + ends, ends
        self.separators += parts - 1

    def _blocks(self, file: OpenFile) -> Iterator[str]:
        """Yield the text of a file in blocks, without a byte order mark, and with LF for CRLF."""
        decoder, text = codecs.getincrementaldecoder("utf-8-sig")(), file.text()
        rest, crlf = "", False
        while block := text.read(BLOCK):
            part = rest + decoder.decode(block)
            rest = "\r" if part.endswith("\r") else ""
            part = part[: len(part) - len(rest)]
            crlf = crlf or "\r\n" in part
            yield part.replace("\r\n", "\n")
        yield rest + decoder.decode(b"", final=True)
        self.crlf_files += crlf

    def _record(self, record: dict[str, Any], where: str) -> Iterator[Document]:
        text = self._string(record, self.read.text_field, where)
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


def _check_plain(file: OpenFile) -> None:
    """Read a plain text file. Raises Unreadable where it cannot be used."""
    text, decoder, offset, empty = file.text(), codecs.getincrementaldecoder("utf-8")(), 0, True
    while True:
        block = text.read(BLOCK)
        if (nul := block.find(b"\0")) >= 0:
            raise Unreadable("binary", f"{file.name}: NUL at byte {offset + nul:,}")
        pending = len(decoder.getstate()[0])
        try:
            characters = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            guess = likely_encoding(block[max(0, error.start - pending - 1000) :] or error.object)
            where = f"{file.name}: byte {offset - pending + error.start:,}{encoding_hint(guess)}"
            raise Unreadable("not UTF-8", where) from error
        empty = empty and not characters.replace("\ufeff", "").strip()
        offset += len(block)
        if not block:
            if empty:
                raise Unreadable("empty", file.name)
            return
