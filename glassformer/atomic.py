"""Atomic file writes: other processes see the old file or the complete new file, never a partial one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from glassformer.errors import CheckpointError, GlassformerError


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

    If the block raises, the temporary file is removed and the file at `path` is unchanged.

    Raises:
        error_type: The file cannot be written, for example because the disk is full. The message names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        with contextlib.suppress(PermissionError):  # Windows cannot open folders
            sync(path.parent)
    except OSError as error:
        raise error_type(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path, data: bytes, *, error_type: type[GlassformerError] = CheckpointError) -> None:
    """Write a small file atomically. Raises as `replacing` does."""
    with replacing(path, error_type=error_type) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 text file atomically. Raises as `replacing` does."""
    write_bytes(path, text.encode())
