"""The files that hold a folder's weights: safetensors or pickled, single or sharded."""

from __future__ import annotations

import re
from pathlib import Path

from glassformer.errors import CheckpointError, shortened
from glassformer.formats.pickled import PickledFile
from glassformer.formats.reader import TensorFile, read_json
from glassformer.formats.safetensors_file import SafetensorsFile
from glassformer.json_file import check_pointer

NAMES = ("model.safetensors", "pytorch_model.bin")  # in order of preference
PICKLED_SUFFIXES = (".bin", ".pt", ".pth")
SHARD = re.compile(r"(?P<start>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.(safetensors|bin))")
MAX_SHARDS = 10_000
FILE_NAME = re.compile(r"(?!\.+$)[^/\\\0]+")  # a name without a folder


def open_weights(path: Path) -> TensorFile:
    """Open one weights file. The suffix determines its format.

    Raises:
        CheckpointError: the suffix is unknown, or the file is damaged.
    """
    check_pointer(path)
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in PICKLED_SUFFIXES:
        return PickledFile(path)
    raise CheckpointError(f"{path} is not a weights file: known suffixes are .safetensors, .bin, .pt, .pth and .gguf")


def shard_names(folder: Path, name: str) -> list[str]:
    """Return the names of all shards of which `name` is one; empty if it is not the name of a shard.

    Raises:
        CheckpointError: shards are missing.
    """
    match = SHARD.fullmatch(name)
    if match is None:
        return []
    start, count, suffix = match["start"], int(match["count"]), match["suffix"]
    names = [f"{start}-{i:05}-of-{count:05}{suffix}" for i in range(1, min(count, MAX_SHARDS) + 1)]
    if missing := [one for one in names if not (folder / one).exists()]:
        raise CheckpointError(f"{folder / name} is one of {count} shards; missing: {shortened(missing)}")
    return names


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that hold a folder's weights: the shards of an index, or one file.

    Safetensors files are preferred to pickled ones.

    Raises:
        CheckpointError: the index does not map tensor names to file names.
    """
    for name in NAMES:
        index = folder / f"{name}.index.json"
        if index.exists():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not all(
                isinstance(shard, str) and FILE_NAME.fullmatch(shard) for shard in shards.values()
            ):
                raise CheckpointError(f"{index}: weight_map must map each tensor name to a file name")
            return sorted(set(shards.values()))
        if (folder / name).exists():
            return [name]
        start, suffix = name.split(".")
        for shard in sorted(folder.glob(f"{start}-*-of-*.{suffix}")):  # shards without an index
            if names := shard_names(folder, shard.name):
                return names
    return [NAMES[0]]
