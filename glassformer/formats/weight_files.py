"""The files that hold a folder's weights: safetensors or pickled, single or sharded."""

from __future__ import annotations

import re
from pathlib import Path

from glassformer.errors import CheckpointError
from glassformer.formats.pickled import PickledFile
from glassformer.formats.reader import TensorFile, read_json
from glassformer.formats.safetensors_file import SafetensorsFile

NAMES = ("model.safetensors", "pytorch_model.bin")  # in order of preference
PICKLED_SUFFIXES = (".bin", ".pt", ".pth")
FILE_NAME = re.compile(r"(?!\.+$)[^/\\\0]+")  # a name without a folder


def open_weights(path: Path) -> TensorFile:
    """Open one weights file. The suffix determines its format.

    Raises:
        CheckpointError: the suffix is unknown, or the file is damaged.
    """
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in PICKLED_SUFFIXES:
        return PickledFile(path)
    raise CheckpointError(f"{path} is not a weights file: known suffixes are .safetensors, .bin, .pt, .pth and .gguf")


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
    return [NAMES[0]]
