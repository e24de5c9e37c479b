"""Find the data files that names of files, folders, globs and pipes stand for."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from glassformer.errors import DataError
from glassformer.training.data.byte_streams import COMPRESSED, is_standard_input


class FoundFile(NamedTuple):
    """A file, or "-" for standard input. size: bytes; 0 for a pipe."""

    name: str
    size: int
    is_pipe: bool

    @property
    def shown(self) -> str:
        return "standard input" if self.name == "-" else printable(self.name)


def printable(text: str) -> str:
    """Return a text in which control characters, and bytes of a file name that are not UTF-8, are escaped."""
    if text.isprintable():
        return text
    text = "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else ascii(c)[1:-1] for c in text)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


def find_files(names: Sequence[str], types: tuple[str, ...], skip: Callable[[str, str], None]) -> Iterator[FoundFile]:
    """Yield the files of names, folders and globs once each, in the order given, inside a folder by name.

    Args:
        types: the endings of the names that are read in a folder, also with .gz or .zst behind them.
        skip: called with the reason and the name of each file that is not read.

    Raises:
        DataError: a name is not a file, folder or pipe, or there is no file of these types in it.
    """
    seen: set[tuple[int, int]] = set()
    for name in names:
        reasons: list[str] = []

        def note(reason: str, origin: str, reasons: list[str] = reasons) -> None:
            reasons.append(f"{reason} ({printable(origin)})")
            skip(reason, origin)

        empty = True
        for file, identity in _expand(name, types, note):
            empty = False
            if identity in seen:
                skip("named twice", file.name)
            else:
                seen.add(identity)
                yield file
        if empty:
            endings = f"{' '.join(types)} (also {' '.join(COMPRESSED)})"
            why = f": {'; '.join(reasons[:3])}" if reasons else ""
            where = "this folder and those inside it" if os.path.isdir(name) else "the matches of this pattern"
            raise DataError(f"{printable(name)}: {where} have no files of the types {endings}{why}")


Found = tuple[FoundFile, tuple[int, int]]


def _expand(name: str, types: tuple[str, ...], skip: Callable[[str, str], None]) -> Iterable[Found]:
    """Return the files of one name, each with its identity on disk."""
    if name == "-":
        return [(FoundFile("-", 0, True), (-1, -1))]
    if not name:
        raise DataError("a name of DATA is empty: give files, folders, globs or - for standard input")
    try:
        status = os.stat(name)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, FileNotFoundError) and glob.has_magic(name):
            return _matches(name, types, skip)
        raise DataError(_missing(name, error)) from None
    return _given(name, status, types, skip)


def _missing(name: str, error: Exception) -> str:
    shown = printable(name)
    if os.path.islink(name) and isinstance(error, FileNotFoundError):
        return f"{shown} is a link to {printable(os.readlink(name))}, which does not exist"
    if isinstance(error, FileNotFoundError):
        return f"{shown}: there is no such file or folder (in {printable(os.getcwd())})"
    return f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}"


def _given(
    name: str, status: os.stat_result, types: tuple[str, ...], skip: Callable[[str, str], None]
) -> Iterable[Found]:
    identity = (status.st_dev, status.st_ino)
    if stat.S_ISDIR(status.st_mode):
        return _walk(name, types, skip)
    if stat.S_ISREG(status.st_mode):
        return [(FoundFile(name, status.st_size, False), identity)]
    if is_standard_input(status):
        return [(FoundFile("-", 0, True), (-1, -1))]
    if stat.S_ISFIFO(status.st_mode):
        return [(FoundFile(name, 0, True), identity)]
    raise DataError(f"{printable(name)} is a device or a socket: give files, folders, globs, pipes or -")


def _matches(pattern: str, types: tuple[str, ...], skip: Callable[[str, str], None]) -> Iterator[Found]:
    matches = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    if not matches:
        raise DataError(f"{printable(pattern)}: no file matches this pattern (in {printable(os.getcwd())})")
    for name in matches:
        if status := _status(name, skip):
            if stat.S_ISDIR(status.st_mode):
                yield from _walk(name, types, skip)
            elif stat.S_ISREG(status.st_mode):
                yield FoundFile(name, status.st_size, False), (status.st_dev, status.st_ino)
            else:
                skip("pipe or device, not a file", name)


def _walk(folder: str, types: tuple[str, ...], skip: Callable[[str, str], None]) -> Iterator[Found]:
    """Yield the files in a folder and those inside it; links to folders are not followed."""
    waiting = [folder]
    while waiting:
        parent, inside = waiting.pop(), []
        try:
            names = sorted(os.listdir(parent))
        except OSError as error:
            skip("folder not readable", f"{parent}: {error.strerror}")
            continue
        for name in names:
            path = os.path.join(parent, name)
            if name.startswith("."):
                skip("hidden", path)
            elif status := _status(path, skip):
                if stat.S_ISDIR(status.st_mode):
                    if os.path.islink(path):
                        skip("linked folder, not followed", path)
                    else:
                        inside.append(path)
                elif not _stem(name).endswith(types):
                    skip("of another type", path)
                elif stat.S_ISREG(status.st_mode):
                    yield FoundFile(path, status.st_size, False), (status.st_dev, status.st_ino)
                else:
                    skip("pipe or device, not a file", path)
        waiting += reversed(inside)


def _stem(name: str) -> str:
    stem = name.lower()
    for ending in COMPRESSED:
        if stem.endswith(ending):
            return stem.removesuffix(ending)
    return stem


def _status(name: str, skip: Callable[[str, str], None]) -> os.stat_result | None:
    """Return the status of a file in a folder or of a glob; count it as skipped and return None where it has none."""
    try:
        return os.stat(name)
    except FileNotFoundError:
        skip("link that leads nowhere" if os.path.islink(name) else "not there", name)
    except OSError as error:
        skip("not readable", f"{name}: {error.strerror}")
    return None
