"""Checkpoints that are there whole or not at all, whenever the process is killed.

    RUN/checkpoints/.step-000500.<pid>.tmp/   being written: no reader looks at names that begin with a dot
                    |  every file and the folder synced, then one rename, then the parent synced
    RUN/checkpoints/step-000500/              model.safetensors config.json tokenizer.json ...  (a Hugging Face folder)
                                              optimizer.safetensors  state.json
    RUN/checkpoints/last, best                relative links, replaced by rename

The rename is the only moment that counts. What comes after it (links, old checkpoints put away) is worked out from the
folders themselves and done again at the next start.
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
    """Where a run stood, beside its weights and optimizer. `seconds` is training time so far.

    loader: the row loader's own state. rng: torch's generators by device, base64. held_out_loss: nats per token,
    measured at this very step; None where it was not.
    """

    step: int
    tokens: int
    seconds: float
    loader: dict[str, Any]
    rng: dict[str, str]
    held_out_loss: float | None = None
    format: int = 1


def rng_state() -> dict[str, str]:
    """The state of torch's own generators, as text."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: base64.b64encode(bytes(t.tolist())).decode() for name, t in states.items()}


def set_rng_state(rng: Mapping[str, str]) -> None:
    """Puts torch's generators where `rng_state` found them."""
    states = {name: torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8) for name, text in rng.items()}
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def fsync_tree(folder: Path) -> None:
    """fsync of every file below a folder, then of the folders, innermost first."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(path) / name)
        sync(Path(path))


@contextmanager
def atomic_folder(path: Path, need: int) -> Iterator[Path]:
    """A folder to fill, which gets its name once it is whole; on any error nothing of it stays.

    `need` is how many bytes will be written about. Raises CheckpointError naming path and bytes when they do not fit.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    free = shutil.disk_usage(path.parent).free
    full = f"{path} could not be written: the disk is full; {need:,} bytes are needed, {free:,} were free"
    if free < need:
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
    """The `checkpoints` folder of a run: the last `keep_last`, and the best by held-out loss."""

    def __init__(self, folder: Path, keep_last: int):
        self.folder, self.keep_last = folder, keep_last

    def folders(self) -> dict[int, Path]:
        """Every whole checkpoint by its step, oldest first."""
        found = {}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            match = STEP_FOLDER.fullmatch(path.name)
            if match and path.is_dir():
                found[int(match[1])] = path
        return dict(sorted(found.items()))

    def last(self) -> Path | None:
        return next(reversed(self.folders().values()), None)

    def best(self) -> Path | None:
        """The checkpoint of the lowest held-out loss, the earlier of equals; the last one where none was measured."""
        losses = {path: read_state(path).held_out_loss for path in self.folders().values()}
        measured = {path: loss for path, loss in losses.items() if loss is not None}
        return min(measured, key=lambda path: measured[path]) if measured else self.last()

    def recover(self) -> None:
        """At a start: remove what a killed process left half written, then put links and old checkpoints right."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.update_links()

    def save(
        self, state: TrainState, write_model: Callable[[Path], None], optimizer: Mapping[str, Tensor], need: int
    ) -> Path:
        """Write one checkpoint; `write_model` fills the folder with the model. One that is there already stays.

        Raises CheckpointError (disk full, no permission); the checkpoints before it are then untouched.
        """
        path = self.folder / f"step-{state.step:06d}"
        if not path.exists():
            with atomic_folder(path, need) as folder:
                write_model(folder)
                save_file({name: t.detach().cpu().contiguous() for name, t in optimizer.items()}, folder / OPTIMIZER)
                (folder / STATE).write_text(json.dumps(asdict(state), indent=1) + "\n", "utf-8")
        self.update_links()
        return path

    def update_links(self) -> None:
        """Point `last` and `best` at what is there, and put away what need not be kept."""
        last, best = self.last(), self.best()
        if last is None or best is None:
            return
        link(self.folder / "last", last.name)
        link(self.folder / "best", best.name)
        keep = {*list(self.folders().values())[-self.keep_last :], best}
        for path in self.folders().values():
            if path not in keep:
                gone = path.with_name(f".{path.name}.old.tmp")
                os.rename(path, gone)  # so that no half removed folder bears a checkpoint's name
                shutil.rmtree(gone, ignore_errors=True)


def link(path: Path, target: str) -> None:
    """Make `path` a relative link to `target`, replacing the one before in one step."""
    if path.is_symlink() and os.readlink(path) == target:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target, target_is_directory=True)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path} could not be made a link to {target}: {error.strerror or error}") from error


def read_state(folder: Path) -> TrainState:
    """Raises CheckpointError naming the file when it is missing, cut short, or of another version."""
    raw = read_json(folder / STATE)
    if raw.get("format") != 1:
        raise CheckpointError(f"{folder / STATE} has format {raw.get('format')}, this Glassformer reads 1")
    names = {f.name for f in fields(TrainState)}
    if raw.keys() != names:
        differing = ", ".join(sorted(raw.keys() ^ names))
        raise CheckpointError(f"{folder / STATE} does not have the keys that it should: {differing}")
    return TrainState(**raw)


def read_optimizer(folder: Path) -> dict[str, Tensor]:
    """The optimizer's tensors. Raises CheckpointError naming the file when it is missing or cut short."""
    path = folder / OPTIMIZER
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
