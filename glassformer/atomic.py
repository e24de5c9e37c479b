"""Atomic writes: other processes see the old file or folder, or the complete new one, never a partial one."""

from __future__ import annotations

import contextlib
import ctypes
import fnmatch
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from glassformer.errors import CheckpointError, GlassformerError

try:
    import fcntl
except ImportError:  # Windows, which does not remove open files
    fcntl = None

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2(2)


def sync(path: Path) -> None:
    """Flush a file or folder to disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path, *, error_type: type[GlassformerError] = CheckpointError) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success, fsync it and rename it to `path`.

    If the block raises, the temporary file is removed and the file at `path` is unchanged. Temporary files that killed
    processes left for `path` are removed.

    Raises:
        error_type: The file cannot be written, for example because the disk is full. The message names `path`.
    """
    try:
        with _locked_temporary(path, lambda name: name.touch(exist_ok=False)) as temporary:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            _sync_parent(path)
    except OSError as error:
        raise error_type(f"{path} could not be written: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing_folder(folder: Path, stale: Collection[str]) -> Iterator[Path]:
    """Yield a folder for new files; on success it takes the place of `folder` in one step.

    Readers, also after a kill, see all of the old folder or all of the new one. Other files and folders of the old
    folder are preserved, except those that match a pattern of `stale`. A folder that cannot be exchanged, because it is
    a mount point, contains the current folder, or its parent is not writable, is yielded itself.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    folder = Path(os.path.realpath(folder))
    if not _can_exchange(folder):
        yield folder
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked_temporary(folder, Path.mkdir) as new:
            try:
                yield new
            except GlassformerError as error:
                error.args = (str(error).replace(str(new), str(folder)),)
                raise
            if folder.is_dir():
                _link_missing(folder, new, stale)
                shutil.copymode(folder, new)
            sync(new)
            _exchange(new, folder)
            _sync_parent(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be written: {error.strerror or error}") from error


def _can_exchange(folder: Path) -> bool:
    parent = next(one for one in folder.parents if one.exists())
    here = Path.cwd()
    return not (os.path.ismount(folder) or folder in (here, *here.parents)) and os.access(parent, os.W_OK)


def _link_missing(old: Path, new: Path, stale: Collection[str]) -> None:
    """Give the new folder what only the old one has, as hard links, or copies where the file system has no links."""
    for path in old.iterdir():
        if (new / path.name).exists() or any(fnmatch.fnmatchcase(path.name, pattern) for pattern in stale):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True, copy_function=_link)
        else:
            _link(path, new / path.name)


def _link(old: str | Path, new: str | Path) -> None:
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:
        shutil.copy2(old, new, follow_symlinks=False)


def _exchange(new: Path, folder: Path) -> None:
    """Move `new` to `folder`, whose old content moves to `new`, atomically on Linux."""
    if not folder.exists() or not any(folder.iterdir()):
        os.replace(new, folder)
        return
    exchange = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if (
        exchange is not None
        and exchange(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(folder), RENAME_EXCHANGE) == 0
    ):
        return
    old = new.with_name(f"{new.name}.old")  # a kill between these renames leaves the old folder under this name
    os.rename(folder, old)
    os.rename(new, folder)
    os.rename(old, new)


@contextlib.contextmanager
def _locked_temporary(path: Path, create: Callable[[Path], object]) -> Iterator[Path]:
    """Create a file or folder beside `path`, locked while it exists; remove unlocked ones, whose process is dead.

    The lock, unlike a process id in the name, is valid between containers and hosts that share the folder.
    """
    for abandoned in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if (handle := _lock(abandoned)) is not None:
            _remove(abandoned)
            os.close(handle)
    while True:
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        create(temporary)
        handle = _lock(temporary)
        if handle is not None:
            break
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(handle)


def _lock(path: Path) -> int | None:
    """Return the handle of a lock on a file or folder; None if another process has it, or removed the file."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _sync_parent(path: Path) -> None:
    with contextlib.suppress(PermissionError):  # Windows cannot open folders
        sync(path.parent)


def write_bytes(path: Path, data: bytes, *, error_type: type[GlassformerError] = CheckpointError) -> None:
    """Write a small file atomically. Raises as `replacing` does."""
    with replacing(path, error_type=error_type) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 text file atomically. Raises as `replacing` does."""
    write_bytes(path, text.encode())
