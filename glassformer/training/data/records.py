"""Read records (dictionaries of fields) from JSONL, JSON, CSV, TSV, Parquet and Arrow files, one or a few at a time.

    format    a record                                              its origin
    jsonl     an object per line                                    file:line
    json      an object of an array, or one object after another    file#number
    csv       a row below the header; fields may be quoted          file:line of its end
    tsv       the same, without quotes                              file:line
    parquet   a row                                                 file#number
    arrow     a row of an IPC file or an IPC stream                 file#number

Each reader gets the names of the fields that are needed, and a function that counts a record which cannot be used. It
raises Unreadable where the rest of the file cannot be used.
"""

from __future__ import annotations

import codecs
import csv
import json
import mmap
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from glassformer.training.data.byte_streams import BLOCK, MAX_RECORD, OpenFile, Skip, Unreadable, optional_import
from glassformer.training.data.encoding_hint import encoding_hint, likely_encoding

ROWS = 64  # rows of a table decoded at a time
LONG = f"longer than {MAX_RECORD >> 20} MiB"

Record = tuple[str, dict[str, Any]]  # the origin, and the fields


def read_jsonl(file: OpenFile, fields: Sequence[str], skip: Skip) -> Iterator[Record]:
    start, number, long, hinted = 0, 0, False, False
    for line in file.lines():
        continued, long = long, not line.endswith(b"\n") and len(line) >= MAX_RECORD
        begin, start = start, start + len(line)
        if continued:
            continue
        number += 1
        where = f"{file.name}:{number}"
        if long:
            skip(LONG, where)
        elif line.strip():
            try:
                record = json.loads(line.decode().removeprefix("\ufeff"))
            except UnicodeDecodeError as error:
                guess, hinted = "" if hinted else encoding_hint(likely_encoding(line)), True
                skip("not UTF-8", f"{where}: byte {begin + error.start:,}{guess}")
            except (ValueError, RecursionError) as error:
                skip("not JSON", f"{where}: {_reason(error)}")
            else:
                if isinstance(record, dict):
                    yield where, record
                else:
                    skip("not a JSON object", f"{where}: {type(record).__name__}")


def read_json(file: OpenFile, fields: Sequence[str], skip: Skip) -> Iterator[Record]:
    """Read an array of objects, or objects one after another; JSONL where the first line is an object."""
    if _is_object(file.text().readline(MAX_RECORD)):
        yield from read_jsonl(file, fields, skip)
        return
    values = _JsonValues(file)
    array = values.peek() == "["
    values.at += array
    closed = not array
    number = 0
    while (following := values.peek()) and not (array and following == "]"):
        number += 1
        where = f"{file.name}#{number}"
        record = values.value(where)
        if isinstance(record, dict):
            yield where, record
        else:
            skip("not a JSON object", f"{where}: {type(record).__name__}")
        if array and values.peek() == ",":
            values.at += 1
            if values.peek() == "]":
                raise Unreadable("not JSON", f"{where}: a comma before the end of the array")
        elif array and values.peek() not in ("]", ""):
            raise Unreadable("not JSON", f"{where}: no comma or ] after this value")
    if array and values.peek() == "]":
        values.at, closed = values.at + 1, True
    if not closed:
        raise Unreadable("not JSON", f"{file.name}: the array has no end")
    if values.peek():
        raise Unreadable("not JSON", f"{file.name}: text after the end of the array")


class _JsonValues:
    """The JSON values of a file. `text` from `at` on is read and unused."""

    def __init__(self, file: OpenFile):
        self.name, self.file = file.name, file.text()
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.offset, self.ended = "", 0, 0, False

    def more(self) -> bool:
        """Read at least as much text again as is unused. Return False at the end of the file."""
        if self.ended:
            return False
        block = self.file.read(max(BLOCK, len(self.text) - self.at))
        self.ended = not block
        try:
            self.text = self.text[self.at :] + self.decoder.decode(block, final=self.ended)
        except UnicodeDecodeError as error:
            raise Unreadable("not UTF-8", f"{self.name}: after byte {self.offset + error.start:,}") from error
        self.at, self.offset = 0, self.offset + len(block)
        return True

    def peek(self) -> str:
        """Return the next character that is not white space, without using it; "" at the end of the file."""
        while True:
            rest = len(self.text)
            while self.at < rest and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < rest:
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self, where: str) -> Any:
        """Return the next value. Raises Unreadable where there is none."""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:  # a syntax error, or the end of the text read so far
                if len(self.text) - self.at > MAX_RECORD or isinstance(error, RecursionError) or not self.more():
                    raise Unreadable("not JSON", f"{where}: {_reason(error)}") from error
                continue
            if end == len(self.text) and not isinstance(value, dict | list | str) and self.more():
                continue  # a number may continue
            self.at = end
            return value


def read_csv(file: OpenFile, fields: Sequence[str], skip: Skip) -> Iterator[Record]:
    yield from _delimited(file, fields, skip, ",;\t", csv.QUOTE_MINIMAL)


def read_tsv(file: OpenFile, fields: Sequence[str], skip: Skip) -> Iterator[Record]:
    yield from _delimited(file, fields, skip, "\t", csv.QUOTE_NONE)


def _delimited(file: OpenFile, fields: Sequence[str], skip: Skip, delimiters: str, quoting: int) -> Iterator[Record]:
    """Read rows below a header, with the first of the delimiters by which the header has the needed fields."""

    def decoded() -> Iterator[str]:
        for line in file.lines():
            if len(line) >= MAX_RECORD:
                raise Unreadable(LONG, f"{file.name}, the rest of the file is left out")
            yield line.decode("utf-8", "surrogateescape")

    lines = decoded()
    first = next(lines, "").removeprefix("\ufeff")
    csv.field_size_limit(MAX_RECORD)

    def rows(lines: Any, delimiter: str) -> Any:
        return csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)  # pyright: ignore[reportArgumentType]

    try:
        with_fields = (d for d in delimiters if set(fields) <= {*next(rows([first], d), [])})
        reader = rows(chain([first], lines), next(with_fields, delimiters[0]))
        header = next(reader, [])
        if not header or not _has_fields(header, fields, file.name, skip):
            return
        line = reader.line_num + 1
        for row in reader:
            where, line = f"{file.name}:{line}", reader.line_num + 1  # the first line of the row
            if len(row) == len(header):
                yield where, dict(zip(header, row, strict=True))
            elif row:
                skip("row of another length than the header", f"{where}: it has {len(row)} of {len(header)} fields")
    except csv.Error as error:
        raise Unreadable("not CSV", f"{file.name}: {error}, the rest of the file is left out") from error


def read_parquet(file: OpenFile, fields: Sequence[str], skip: Skip) -> Iterator[Record]:
    parquet = optional_import("pyarrow.parquet", file.name, "Parquet files")
    table = _checked(lambda: parquet.ParquetFile(file.seekable(), buffer_size=BLOCK, pre_buffer=False), file, "Parquet")
    if not _has_fields(_checked(lambda: table.schema_arrow.names, file, "Parquet"), fields, file.name, skip):
        return
    batches = table.iter_batches(batch_size=ROWS, columns=list(fields), use_threads=False)
    yield from _rows(_until_none(lambda: next(batches, None), file, "Parquet"), fields, file.name, skip)


def read_arrow(file: OpenFile, fields: Sequence[str], skip: Skip) -> Iterator[Record]:
    pyarrow = optional_import("pyarrow", file.name, "Arrow files")
    ipc = optional_import("pyarrow.ipc", file.name, "Arrow files")

    def open_batches() -> tuple[list[str], Iterator[Any]]:
        seekable = file.seekable()  # a temporary file is open until this function ends
        buffer = pyarrow.py_buffer(mmap.mmap(seekable.fileno(), 0, access=mmap.ACCESS_READ))
        is_file = buffer[:6].to_pybytes() == b"ARROW1"
        opened = ipc.open_file(buffer) if is_file else ipc.open_stream(buffer)
        names = opened.schema.names
        if is_file:
            return names, (opened.get_batch(i) for i in range(opened.num_record_batches))
        return names, iter(opened)

    def next_batch() -> Any:
        batch = next(batches, None)
        if batch is not None:
            batch = batch.select(list(fields))
            batch.validate(full=True)  # offsets of a damaged file can point anywhere
        return batch

    names, batches = _checked(open_batches, file, "Arrow")
    if not _has_fields(names, fields, file.name, skip):
        return
    found = _until_none(next_batch, file, "Arrow")
    slices = (batch.slice(start, ROWS) for batch in found for start in range(0, batch.num_rows, ROWS))
    yield from _rows(slices, fields, file.name, skip)


def _checked(read: Callable[[], Any], file: OpenFile, kind: str) -> Any:
    """Return `read()`. Raises Unreadable for any error of the library, which has many kinds for a damaged file."""
    try:
        return read()
    except Unreadable:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unreadable(f"broken {kind}", f"{file.name}: {reason[:200]}") from error


def _until_none(read: Callable[[], Any], file: OpenFile, kind: str) -> Iterator[Any]:
    while (batch := _checked(read, file, kind)) is not None:
        yield batch


def _rows(batches: Iterator[Any], fields: Sequence[str], name: str, skip: Skip) -> Iterator[Record]:
    number = 0
    for batch in batches:
        columns = [batch.column(field) for field in fields]
        for row in range(batch.num_rows):
            number += 1
            try:
                yield f"{name}#{number}", {f: column[row].as_py() for f, column in zip(fields, columns, strict=True)}
            except UnicodeDecodeError:
                skip("not UTF-8", f"{name}#{number}")


def _has_fields(names: Sequence[str], fields: Sequence[str], name: str, skip: Skip) -> bool:
    """Return whether a table has the needed columns; count it as skipped where one is missing."""
    for field in fields:
        if names.count(field) != 1:
            reason = f'no field "{field}"' if field not in names else f'two fields "{field}"'
            skip(reason, f"{name}: it has {', '.join(names[:5]) or 'none'}{hint(fields)}")
            return False
    return True


def hint(fields: Sequence[str]) -> str:
    """Return how to choose the field of the text, where it can be chosen."""
    return "; choose one with --text-field" if len(fields) == 1 else ""


def _is_object(line: bytes) -> bool:
    try:
        text = line.decode("utf-8-sig").lstrip()
        return text.startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _reason(error: Exception) -> str:
    return getattr(error, "msg", None) or (
        "it nests too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
    )


READERS: dict[str, Callable[[OpenFile, Sequence[str], Skip], Iterator[Record]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
    "arrow": read_arrow,
}


def recognise(file: OpenFile) -> str | None:
    """Return the format of a file of an unknown type by its content; None for plain text.

    JSONL begins with an object on a line of its own; a JSON array with an object.
    """
    head = file.bytes().read(8)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    try:
        line = file.text().readline(MAX_RECORD)
    except Unreadable:
        return None  # plain text says what is wrong
    if _is_object(line):
        return "jsonl"
    start = (line if b"{" in line else line + file.text().read(256)).decode("utf-8", "replace").removeprefix("\ufeff")
    return "json" if "".join(start[:256].split()).startswith('[{"') else None
