"""Find and open checkpoints without a config.json, in the formats of the programs that trained them.

`families/common/original.py` describes the formats.
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
from glassformer.formats.reader import ReadBuffer, TensorFile, read_json


def find_original(path: Path) -> OriginalFormat | None:
    """Return the original format of a folder, or of a file in it; None for a Hugging Face folder."""
    folder = path.parent if path.is_file() else path
    for layout in ORIGINALS:
        if path.is_file() and not path.match(layout.weights):
            continue
        if not any(folder.glob(layout.weights)):
            continue
        if layout.settings is None:
            if path.is_file() or not (folder / "config.json").exists():
                return layout
        elif (folder / layout.settings).is_file() and (
            layout.key is None or isinstance(read_json(folder / layout.settings).get(layout.key), dict)
        ):
            return layout
    return None


def self_contained_format(content: Any) -> OriginalFormat | None:
    """Return the format of a pickled file that holds its settings and its tensors."""
    for layout in ORIGINALS:
        if layout.settings is None and isinstance(content, Mapping) and {layout.key, layout.tensors} <= content.keys():
            return layout
    return None


def open_original(path: Path, layout: OriginalFormat) -> tuple[dict[str, Any], str, Sequence[TensorFile]]:
    """Return a checkpoint's settings, where they were found (for messages), and its tensor files."""
    folder = path.parent if path.is_file() else path
    sharded = layout.shard_axis is not OriginalFormat.shard_axis
    paths = sorted(folder.glob(layout.weights)) if path.is_dir() or sharded else [path]
    if layout.settings is None:
        content = read_pickle(paths[0])
        if self_contained_format(content) is not layout:
            raise CheckpointError(f"{paths[0]} must hold {layout.key} and {layout.tensors}, got {_shown(content)}")
        settings, source = content[layout.key], f"{paths[0]}: {layout.key}"
        files = [PickledFile(paths[0], _without_prefix(content[layout.tensors], layout.prefix))]
    else:
        content = read_json(folder / layout.settings)
        settings = content[layout.key] if layout.key else content
        source = str(folder / layout.settings)
        files = [PickledFile(shard) for shard in paths]
    if not isinstance(settings, dict):
        raise CheckpointError(f"{source} must be an object with settings, got {type(settings).__name__}")
    return settings, source, files if len(files) == 1 else [ShardedTensors(files, layout, settings)]


def _without_prefix(tensors: Any, prefix: str) -> Any:
    if isinstance(tensors, Mapping) and all(str(name).startswith(prefix) for name in tensors):
        return {str(name).removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _shown(content: Any) -> str:
    return ", ".join(sorted(map(str, content))[:10]) if isinstance(content, Mapping) else type(content).__name__


class ShardedTensors(TensorFile):
    """Tensors that are split over several files, each along one axis (None: every file holds all of it).

    Raises:
        CheckpointError: a file lacks a tensor, or has a part of another shape.
    """

    names: Mapping[str, int | None]

    def __init__(self, files: list[PickledFile], layout: OriginalFormat, settings: Mapping[str, Any]):
        self.path, self.files = files[0].path, files
        first, problems = files[0], []
        for file in files[1:]:
            problems += [f"{file.path.name} has no {name}" for name in first.names.keys() - file.names.keys()]
            problems += [f"only {file.path.name} has {name}" for name in file.names.keys() - first.names.keys()]
            problems += [
                f"{name} is {list(file.shape(name))} in {file.path.name}, but {list(shape)} in {self.path.name}"
                for name in first
                if name in file and (shape := first.shape(name)) != file.shape(name)
            ]
        if problems:
            shown = "\n  ".join(problems[:20])
            raise CheckpointError(f"{self.path.parent}: the shards do not fit each other:\n  {shown}")
        self.names = {name: layout.shard_axis(name, first.shape(name), settings) for name in first}

    def shape(self, name: str) -> tuple[int, ...]:
        shape, axis = self.files[0].shape(name), self.names[name]
        return tuple(n * len(self.files) if i == axis else n for i, n in enumerate(shape))

    def stored_type(self, name: str) -> str:
        return self.files[0].stored_type(name)

    def mapped(self, name: str) -> bool:
        return self.names[name] is None and self.files[0].mapped(name)

    def __getitem__(self, name: str) -> Tensor:
        axis = self.names[name]
        return self.files[0][name] if axis is None else torch.cat([file[name] for file in self.files], axis)

    def rows(self, name: str, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
        axis = self.names[name]
        if axis == 1:
            for chunks in zip(*(file.rows(name, buffer) for file in self.files), strict=True):
                yield chunks[0][0], torch.cat([rows for _, rows in chunks], 1)
            return
        for number, file in enumerate(self.files if axis == 0 else self.files[:1]):
            for first, rows in file.rows(name, buffer):
                yield number * len(file.names[name]) + first, rows
