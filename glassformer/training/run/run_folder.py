"""The folder of a run: one process trains in it at a time, and a run that never starts leaves nothing in it.

RUN/train.lock exists while a run trains. It has the process id and the host of its owner, and the kernel locks it
(flock) until the owner ends, however it ends: a lock file without an owner is stale and is taken over.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from glassformer.errors import ConfigError
from glassformer.training.run.run_file import RUN_FILE, has_run

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = "train.lock"
# Everything that a run writes into its folder.
RUN_NAMES = (
    RUN_FILE, "tokenizer", "data", "checkpoints", "metrics.jsonl", "loss.svg", "tensorboard",
    "wandb",
)  # fmt: skip


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run.

    Raises ConfigError where another process holds it, or where the folder cannot be written.
    """
    path = folder / LOCK_FILE
    try:
        handle = _acquire(path)
    except OSError as error:
        raise ConfigError(f"{path} could not be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _acquire(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o644)
        owner = os.read(handle, 300).decode("utf-8", "replace").strip()
        try:
            if _is_owned(handle, owner):
                process, _, host = owner.partition(" on ")
                raise ConfigError(
                    f"{path.parent} is being trained by process {process} on {host or 'this machine'}: wait until it "
                    f"ends, or stop it (if it has ended already, remove {path})"
                )
            if os.fstat(handle).st_ino == path.stat().st_ino:  # else its owner has just removed it
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                return handle
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_owned(handle: int, owner: str) -> bool:
    """Return whether another process holds the lock; by its process id where the file system has no locks."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        except OSError:
            pass
    process, _, host = owner.partition(" on ")
    if host != socket.gethostname() or not process.isdigit() or os.name == "nt":
        return bool(owner)
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return int(process) != os.getpid()


class RunFolder:
    """The folder of a run, created and locked by `open_run_folder`. `started`: a step of the run is done."""

    def __init__(self, folder: Path):
        self.folder, self.started = folder, False


@contextlib.contextmanager
def open_run_folder(folder: Path, *, resume: bool) -> Iterator[RunFolder]:
    """Create the folder of a new run, or open that of an existing one, and hold its lock.

    On an error before `started` is set, everything that a new run has written is removed.

    Raises:
        ConfigError: the folder cannot be created or written, another process trains in it, it holds no run to resume,
            or it holds a run, or files with the names that a run uses, where a new one is to be created.
    """
    run = RunFolder(folder)
    if resume:
        if not has_run(folder):
            raise ConfigError(f"{folder} holds no run to resume: it has no {RUN_FILE}")
        with run_lock(folder):
            yield run
        return
    check_new_folder(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be created: {error.strerror or error}") from None
        with run_lock(folder):
            check_new_folder(folder)  # again: another process may have been faster
            before = {path.name for path in folder.iterdir()}
            try:
                yield run
            except BaseException:
                if not run.started:
                    _remove(folder / name for name in RUN_NAMES if name not in before)
                raise
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()
        raise


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def check_new_folder(folder: Path) -> None:
    """Raise ConfigError where the folder of a new run holds a run, or files with the names that a run uses."""
    if has_run(folder):
        raise ConfigError(f"{folder} holds a run already: resume it, or name another folder")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: name another")
    for name in ("tokenizer", "data", "checkpoints"):
        path = folder / name
        if path.is_dir() and any(path.iterdir()):
            raise ConfigError(f"{path} exists and belongs to no run: name another folder")
