"""The reader of every JSON file that comes from outside: bounded size, UTF-8, bounded nesting, one declared schema."""

from __future__ import annotations

import json
import re
import stat
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from annotated_types import Interval

from glassformer.errors import CheckpointError, GlassformerError, shortened

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MAX_BYTES = 128 << 20  # the largest published tokenizer.json is 40 MB
MAX_DEPTH = 100  # published files nest 10 deep

Count = Annotated[int, Interval(ge=0, lt=1 << 60)]
"""The schema of a number of things: a whole number that fits a 64-bit integer, with room for sums."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")

T = TypeVar("T")


def read_file(path: Path, *, error_type: type[GlassformerError] = CheckpointError, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file of at most `max_bytes`.

    Raises:
        error_type: The file is missing, unreadable, not a regular file (a folder, a FIFO), or larger.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise error_type(f"{path} is not a regular file")
        if status.st_size > max_bytes:
            raise error_type(f"{path} has {status.st_size:,} bytes; at most {max_bytes:,} are allowed")
        check_pointer(path, error_type=error_type)
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise error_type(f"{path} could not be read: {getattr(error, 'strerror', None) or error}") from error


def check_pointer(path: Path, *, error_type: type[GlassformerError] = CheckpointError) -> None:
    """Raise `error_type` if a file is Git LFS's pointer, which stands for a file that has not been downloaded."""
    try:
        with path.open("rb") as file:
            start = file.read(200)
    except OSError:
        return  # reported where the file is opened
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        size = re.search(rb"^size (\d+)$", start, re.MULTILINE)
        missing = f" of {int(size[1]):,} bytes" if size else ""
        raise error_type(f"{path} is a Git LFS pointer to a file{missing}: run `git lfs pull`, or download the file")


def parse_json(
    data: bytes | str,
    source: object,
    schema: type[T] | Any = Any,
    *,
    error_type: type[GlassformerError] = CheckpointError,
) -> T | Any:
    """Parse JSON text and check it against `schema`.

    Args:
        data: UTF-8 text, with or without a byte order mark.
        source: What error messages call the text, usually its path.
        schema: A type that pydantic can check (`dict[str, int]`, a BaseModel, a TypedDict of typing_extensions), in
            strict mode: a string is no number. `Any` checks nothing. Unknown keys are the schema's own decision.

    Raises:
        error_type: Invalid UTF-8 or JSON, nesting beyond `MAX_DEPTH`, or a value that does not fit the schema; the
            message names `source` and the path of the field.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data.removeprefix("\ufeff")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise error_type(f"{source} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from error
    except RecursionError as error:
        raise error_type(f"{source} nests more than {MAX_DEPTH} levels deep") from error
    except ValueError as error:
        raise error_type(f"{source} is not valid JSON: {error}") from error
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            number = ord(error.object[error.start])
            raise error_type(f"{source} has a lone surrogate, \\u{number:04x}, which is not text") from error
    if _nests_deeper(value, MAX_DEPTH):
        raise error_type(f"{source} nests more than {MAX_DEPTH} levels deep")
    return value if schema is Any else check_schema(value, source, schema, error_type=error_type)


def read_json(
    path: Path,
    schema: type[T] | Any = Any,
    *,
    error_type: type[GlassformerError] = CheckpointError,
    max_bytes: int = MAX_BYTES,
) -> T | Any:
    """Read a JSON file and check it against `schema`. Raises as `read_file` and `parse_json` do."""
    return parse_json(read_file(path, error_type=error_type, max_bytes=max_bytes), path, schema, error_type=error_type)


def check_schema(
    value: object, source: object, schema: type[T] | Any, *, error_type: type[GlassformerError] = CheckpointError
) -> T | Any:
    """Return `value` checked against `schema` in strict mode.

    Raises:
        error_type: Up to three fields that do not fit, each by its path in the file: "merges[3]: ...".
    """
    from pydantic import ValidationError  # slow to import

    try:
        return _adapter(schema).validate_python(value, strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        messages = [f"{_field(p['loc'])}{p['msg'][:1].lower()}{p['msg'][1:]}" for p in problems]
        raise error_type(f"{source}: {shortened(messages, '; ', 3)}") from error


@cache
def _adapter(schema: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def _field(location: tuple[int | str, ...]) -> str:
    """Return "a.b[3]: ", or nothing for the file itself."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return f"{path.removeprefix('.')}: " if path else ""


def _nests_deeper(value: object, limit: int) -> bool:
    """Return whether lists and objects nest more than `limit` levels, found without recursion."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            child
            for item in level
            if isinstance(item, (list, dict))
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, (list, dict))
        ]
        if not level:
            return False
    return True
