"""Checkpoints that are complete or absent, whenever the process is killed.

    RUN/checkpoints/.step-000500.<pid>.tmp/   being written; readers ignore names that start with a dot
                    |  fsync every file and the folder, rename once, fsync the parent
    RUN/checkpoints/step-000500/              model.safetensors config.json tokenizer.json ...  (a Hugging Face folder)
                                              optimizer.safetensors  state.json
    RUN/checkpoints/last, best                relative links, replaced by rename; where the file system has no links,
                                              text files with the name of the folder
    RUN/checkpoints/damaged-step-000500/      a checkpoint that a resumed run could not read

The rename makes the checkpoint visible. The links and the removal of old checkpoints after it are derived from the
folders, and repeated at the next start.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NotRequired

import torch
from pydantic import ConfigDict, FiniteFloat
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from glassformer.atomic import sync
from glassformer.errors import CheckpointError
from glassformer.formats.find import follow_link
from glassformer.json_file import Count, check_schema, read_json

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
LINKS = ("last", "best")
STEP_FOLDER = re.compile(r"step-(\d+)")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class TrainState:
    """The state of a run except weights and optimizer. `seconds` is training time so far.

    loader: the state of the data loader. rng: torch's generators by device, in base64. held_out_loss: nats per token at
    this step; None where it was not evaluated. sha256: of the other files of the checkpoint, by name.
    """

    step: int
    tokens: int
    seconds: float
    loader: dict[str, Any]
    rng: dict[str, str]
    held_out_loss: float | None = None
    format: int = 1
    sha256: dict[str, str] = field(default_factory=dict)


class StateFile(TypedDict):
    """state.json: a `TrainState`."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore[reportGeneralTypeIssues]
    step: Count
    tokens: Count
    seconds: FiniteFloat
    loader: dict[str, Any]
    rng: dict[str, str]
    held_out_loss: FiniteFloat | None
    format: int
    sha256: NotRequired[dict[str, str]]


def rng_state() -> dict[str, str]:
    """Return the state of torch's global generators as text."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: base64.b64encode(bytes(t.tolist())).decode() for name, t in states.items()}


def set_rng_state(rng: Mapping[str, str]) -> None:
    """Restore the state of torch's global generators. Raises CheckpointError where it is no state of a generator."""
    try:
        states = {name: torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8) for name, text in rng.items()}
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the recorded state of the random generators is damaged: {error!r}") from error


def fsync_tree(folder: Path) -> None:
    """fsync every file below a folder, then the folders, innermost first."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(path) / name)
        sync(Path(path))


@contextmanager
def atomic_folder(path: Path, n_bytes: int) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` when it is complete, and removed on any error.

    Raises CheckpointError when about `n_bytes` do not fit on the disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    free = shutil.disk_usage(path.parent).free
    full = f"{path} could not be written: the disk is full; {n_bytes:,} bytes are required, {free:,} are free"
    if free < n_bytes:
        raise CheckpointError(full)
    try:
        temporary.mkdir()
        yield temporary
        fsync_tree(temporary)
        os.rename(temporary, path)
        sync(path.parent)
    except OSError as error:
        message = full if error.errno in FULL else f"{path} could not be written: {error.strerror or error}"
        raise CheckpointError(message) from error
    except (CheckpointError, SafetensorError) as error:
        if "No space left" in str(error) or "os error 28" in str(error):
            raise CheckpointError(full) from error
        raise CheckpointError(f"{path} could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class Checkpoints:
    """The `checkpoints` folder of a run, with the last `keep_last` and the best by held-out loss."""

    def __init__(self, folder: Path, keep_last: int):
        self.folder, self.keep_last = folder, keep_last

    def folders(self) -> dict[int, Path]:
        """Return every complete checkpoint by its step, oldest first."""
        found = {}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            match = STEP_FOLDER.fullmatch(path.name)
            if match and path.is_dir():
                found[int(match[1])] = path
        return dict(sorted(found.items()))

    def last(self) -> Path | None:
        """Return the latest checkpoint; None where there is none."""
        return next(reversed(self.folders().values()), None)

    def latest_complete(self) -> tuple[Path | None, dict[Path, str]]:
        """Return the latest checkpoint whose files are complete, and what is wrong with each later one.

        Raises CheckpointError where there are checkpoints, and all are damaged.
        """
        damaged: dict[Path, str] = {}
        for path in reversed(self.folders().values()):
            try:
                verify(path)
                return path, damaged
            except CheckpointError as error:
                damaged[path] = str(error)
        if damaged:
            raise CheckpointError(f"no checkpoint of this run can be read: {'; '.join(damaged.values())}")
        return None, damaged

    def set_aside(self, path: Path) -> Path:
        """Rename a damaged checkpoint so that it is none any more, and return its new path."""
        aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
        return aside

    def best(self) -> Path | None:
        """Return the checkpoint with the lowest held-out loss, the earliest of equals; without losses the last one.

        A checkpoint with a damaged state.json has no loss.
        """
        losses: dict[Path, float | None] = {}
        for path in self.folders().values():
            with contextlib.suppress(CheckpointError):
                losses[path] = read_state(path).held_out_loss
        measured = {path: loss for path, loss in losses.items() if loss is not None}
        return min(measured, key=lambda path: measured[path]) if measured else self.last()

    def recover(self) -> None:
        """Remove incomplete checkpoints of a killed process, then update links and remove old checkpoints."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path in (self.folder / name for name in LINKS):
            if path.is_dir() and not path.is_symlink():  # copied with its contents, as by `cp -rL` or zip
                self._restore_link(path)
        self.update_links()

    def _restore_link(self, path: Path) -> None:
        """Remove a folder in the place of a link; where it is the only copy of a checkpoint, rename it to its step."""
        try:
            step = self.folder / f"step-{read_state(path).step:06d}"
        except CheckpointError:
            self.set_aside(path)
            return
        if step.exists():
            shutil.rmtree(path)
        else:
            os.rename(path, step)

    def save(
        self, state: TrainState, write_model: Callable[[Path], None], optimizer: Mapping[str, Tensor], n_bytes: int
    ) -> Path:
        """Write the checkpoint of a step unless it exists; `write_model` writes the model into its folder.

        Raises CheckpointError (disk full, no permission), and then leaves earlier checkpoints unchanged.
        """
        path = self.folder / f"step-{state.step:06d}"
        if not path.exists():
            with atomic_folder(path, n_bytes) as folder:
                write_model(folder)
                save_file({name: t.detach().cpu().contiguous() for name, t in optimizer.items()}, folder / OPTIMIZER)
                files = sorted(path for path in folder.iterdir() if path.is_file())
                values = asdict(state) | {"sha256": {path.name: sha256(path) for path in files}}
                (folder / STATE).write_text(json.dumps(values, indent=1) + "\n", "utf-8")
        self.update_links()
        return path

    def update_links(self) -> None:
        """Update the links `last` and `best`, and remove checkpoints that are neither recent nor the best."""
        last, best = self.last(), self.best()
        if last is None or best is None:
            return
        for name, path in zip(LINKS, (last, best), strict=True):
            link(self.folder / name, path.name)
        keep = {*list(self.folders().values())[-self.keep_last :], best}
        for path in self.folders().values():
            if path not in keep:
                removed = path.with_name(f".{path.name}.old.tmp")
                os.rename(path, removed)  # so that no partially removed folder has the name of a checkpoint
                shutil.rmtree(removed, ignore_errors=True)


def link(path: Path, target: str) -> None:
    """Make `path` a relative link to `target`, atomically; a text file where the file system has no links."""
    if path.name == target or follow_link(path) == path.with_name(target).resolve():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(target, target_is_directory=True)
        except OSError:
            temporary.write_text(f"{target}\n", "utf-8")
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path} could not be linked to {target}: {error.strerror or error}") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal. Raises CheckpointError when it cannot be read."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, or is not a file")
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise CheckpointError(f"{path} could not be read: {getattr(error, 'strerror', None) or error}") from error


def verify(folder: Path) -> None:
    """Raise CheckpointError where a file of a checkpoint is missing, truncated, or has another SHA-256."""
    for name, recorded in read_state(folder).sha256.items():
        if sha256(folder / name) != recorded:
            raise CheckpointError(f"{folder / name} is damaged: its SHA-256 differs from that in {STATE}")
    for path in sorted({folder / OPTIMIZER, *folder.glob("*.safetensors")}):
        check_safetensors(path)


def read_state(folder: Path) -> TrainState:
    """Read state.json. Raises CheckpointError when it is missing, truncated, or has other values or another version."""
    path = folder / STATE
    raw = read_json(path, dict[str, Any])
    if raw.get("format") != 1:
        raise CheckpointError(f"{path} has format version {raw.get('format')!r}, this Glassformer reads 1")
    values: dict[str, Any] = check_schema(raw, path, StateFile)  # pyright: ignore[reportAssignmentType]
    return TrainState(**values)


def check_safetensors(path: Path) -> None:
    """Raise CheckpointError when the file is missing or not a complete safetensors file."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from None


def read_optimizer(folder: Path) -> dict[str, Tensor]:
    """Read the optimizer's tensors. Raises CheckpointError when the file is missing or truncated."""
    path = folder / OPTIMIZER
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from None
