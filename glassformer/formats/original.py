"""Weights without a config.json, as the programs that trained them keep them: found, and opened as any other.

`families/original.py` says what there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.families.common.original import ORIGINALS, OriginalFormat
from glassformer.formats.pickled import PickledFile, read_pickle
from glassformer.formats.reader import Scratch, TensorFile, read_json


def original_of(path: Path) -> OriginalFormat | None:
    """The layout of a folder, or of a file of one; None where it is a layout with a config.json."""
    folder = path.parent if path.is_file() else path
    for one in ORIGINALS:
        if path.is_file() and not path.match(one.weights):
            continue
        if not any(folder.glob(one.weights)):
            continue
        if one.settings is None:
            if path.is_file() or not (folder / "config.json").exists():
                return one
        elif (folder / one.settings).is_file() and (
            one.key is None or isinstance(read_json(folder / one.settings).get(one.key), dict)
        ):
            return one
    return None


def holds_settings(found: Any) -> OriginalFormat | None:
    """The layout of a file that has its settings in itself."""
    for one in ORIGINALS:
        if one.settings is None and isinstance(found, Mapping) and {one.key, one.tensors} <= found.keys():
            return one
    return None


def open_original(path: Path, one: OriginalFormat) -> tuple[dict[str, Any], str, Sequence[TensorFile]]:
    """A layout's settings, where they stand, and its files of tensors."""
    folder = path.parent if path.is_file() else path
    paths = sorted(folder.glob(one.weights)) if path.is_dir() or one.axis is not OriginalFormat.axis else [path]
    if one.settings is None:
        held = read_pickle(paths[0])
        if holds_settings(held) is not one:
            raise CheckpointError(f"{paths[0]} must hold {one.key} and {one.tensors}, got {_shown(held)}")
        settings, where = held[one.key], f"{paths[0]}: {one.key}"
        files = [PickledFile(paths[0], _unwrapped(held[one.tensors], one.wrapped))]
    else:
        found = read_json(folder / one.settings)
        settings = found[one.key] if one.key else found
        where = str(folder / one.settings)
        files = [PickledFile(each) for each in paths]
    if not isinstance(settings, dict):
        raise CheckpointError(f"{where} must be settings by name, got {type(settings).__name__}")
    return settings, where, files if len(files) == 1 else [Parted(files, one, settings)]


def _unwrapped(tensors: Any, prefix: str) -> Any:
    if isinstance(tensors, Mapping) and all(str(name).startswith(prefix) for name in tensors):
        return {str(name).removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _shown(held: Any) -> str:
    return ", ".join(sorted(map(str, held))[:10]) if isinstance(held, Mapping) else type(held).__name__


class Parted(TensorFile):
    """Tensors of which each file has a part, one behind the other along an axis.

    CheckpointError where a file lacks one of them, or has a part of another shape.
    """

    def __init__(self, files: list[PickledFile], one: OriginalFormat, settings: Mapping[str, Any]):
        self.path, self.files = files[0].path, files
        wrong = []
        for file in files[1:]:
            wrong += [f"{file.path.name} has no {name}" for name in self.files[0].names.keys() - file.names.keys()]
            wrong += [f"only {file.path.name} has {name}" for name in file.names.keys() - self.files[0].names.keys()]
            wrong += [
                f"{name} is {list(file.shape(name))} in {file.path.name}, and {list(shape)} in {self.path.name}"
                for name in self.files[0]
                if name in file and (shape := self.files[0].shape(name)) != file.shape(name)
            ]
        if wrong:
            raise CheckpointError(f"{self.path.parent}: the parts do not fit each other:\n  " + "\n  ".join(wrong[:20]))
        self.names: Mapping[str, int | None] = {
            name: one.axis(name, self.files[0].shape(name), settings) for name in self.files[0]
        }

    def shape(self, name: str) -> tuple[int, ...]:
        shape, axis = self.files[0].shape(name), self.names[name]
        return tuple(n * len(self.files) if i == axis else n for i, n in enumerate(shape))

    def kind(self, name: str) -> str:
        return self.files[0].kind(name)

    def mapped(self, name: str) -> bool:
        return self.names[name] is None and self.files[0].mapped(name)

    def begin(self, name: str) -> int | None:
        return None

    def __getitem__(self, name: str) -> Tensor:
        axis = self.names[name]
        return self.files[0][name] if axis is None else torch.cat([file[name] for file in self.files], axis)

    def rows(self, name: str, scratch: Scratch) -> Iterator[tuple[int, Tensor]]:
        axis = self.names[name]
        if axis == 1:
            for pieces in zip(*(file.rows(name, scratch) for file in self.files), strict=True):
                yield pieces[0][0], torch.cat([rows for _, rows in pieces], 1)
            return
        for number, file in enumerate(self.files if axis == 0 else self.files[:1]):
            for first, rows in file.rows(name, scratch):
                yield number * len(file.names[name]) + first, rows
