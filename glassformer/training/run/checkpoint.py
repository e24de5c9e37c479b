"""Checkpoints that are complete or absent, whenever the process is killed.

    RUN/checkpoints/.step-000500.<pid>.tmp/   being written; readers ignore names that start with a dot
                    |  fsync every file and the folder, rename once, fsync the parent
    RUN/checkpoints/step-000500/              model.safetensors config.json tokenizer.json ...  (a Hugging Face folder)
                                              optimizer.safetensors  state.json
    RUN/checkpoints/last, best                relative links, replaced by rename

The rename makes the checkpoint visible. The links and the removal of old checkpoints after it are derived from the
folders, and repeated at the next start.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from glassformer.atomic import sync
from glassformer.errors import CheckpointError
from glassformer.formats.reader import read_json

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
STEP_FOLDER = re.compile(r"step-(\d+)")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class TrainState:
    """The state of a run except weights and optimizer. `seconds` is training time so far.

    loader: the state of the data loader. rng: torch's generators by device, in base64. held_out_loss: nats per token at
    this step; None where it was not evaluated.
    """

    step: int
    tokens: int
    seconds: float
    loader: dict[str, Any]
    rng: dict[str, str]
    held_out_loss: float | None = None
    format: int = 1


def rng_state() -> dict[str, str]:
    """Return the state of torch's global generators as text."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: base64.b64encode(bytes(t.tolist())).decode() for name, t in states.items()}


def set_rng_state(rng: Mapping[str, str]) -> None:
    """Restore the state of torch's global generators."""
    states = {name: torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8) for name, text in rng.items()}
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


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

    def best(self) -> Path | None:
        """Return the checkpoint with the lowest held-out loss, the earliest of equals; without losses the last one."""
        losses = {path: read_state(path).held_out_loss for path in self.folders().values()}
        measured = {path: loss for path, loss in losses.items() if loss is not None}
        return min(measured, key=lambda path: measured[path]) if measured else self.last()

    def recover(self) -> None:
        """Remove incomplete checkpoints of a killed process, then update links and remove old checkpoints."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.update_links()

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
                (folder / STATE).write_text(json.dumps(asdict(state), indent=1) + "\n", "utf-8")
        self.update_links()
        return path

    def update_links(self) -> None:
        """Update the links `last` and `best`, and remove checkpoints that are neither recent nor the best."""
        last, best = self.last(), self.best()
        if last is None or best is None:
            return
        link(self.folder / "last", last.name)
        link(self.folder / "best", best.name)
        keep = {*list(self.folders().values())[-self.keep_last :], best}
        for path in self.folders().values():
            if path not in keep:
                removed = path.with_name(f".{path.name}.old.tmp")
                os.rename(path, removed)  # so that no partially removed folder has the name of a checkpoint
                shutil.rmtree(removed, ignore_errors=True)


def link(path: Path, target: str) -> None:
    """Make `path` a relative link to `target`, atomically."""
    if path.is_symlink() and os.readlink(path) == target:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target, target_is_directory=True)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path} could not be linked to {target}: {error.strerror or error}") from error


def read_state(folder: Path) -> TrainState:
    """Read state.json. Raises CheckpointError when it is missing, truncated, or of another version."""
    raw = read_json(folder / STATE)
    if raw.get("format") != 1:
        raise CheckpointError(f"{folder / STATE} has format version {raw.get('format')!r}, this Glassformer reads 1")
    names = {f.name for f in fields(TrainState)}
    if raw.keys() != names:
        differing = ", ".join(sorted(raw.keys() ^ names))
        raise CheckpointError(f"{folder / STATE} has missing or unknown keys: {differing}")
    return TrainState(**raw)


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
