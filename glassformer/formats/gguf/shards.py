"""Names of GGUF shards, as `llama-gguf-split` and the `gguf` package write them: "NAME-00001-of-00003.gguf".

The first shard holds the model's metadata; every shard holds its number (`split.no`, from 0) and `split.count`. A model
can be opened by any of its shards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from glassformer.errors import CheckpointError, shortened

SHARD = re.compile(r"(?P<name>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


def is_gguf(path: Path) -> bool:
    """Return whether a file is a GGUF file, by its suffix or its first bytes: Ollama names files by their hash."""
    if path.suffix.lower() == ".gguf":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def first_shard(path: Path) -> Path:
    """Return the path of the first shard; the path itself if its name is not a shard's."""
    match = SHARD.fullmatch(path.name)
    return path if match is None else _shard_path(path, match["name"], 1, int(match["count"]))


def model_name(name: str) -> str:
    """Return a file's name without the suffix and the shard number."""
    match = SHARD.fullmatch(name)
    return re.sub(r"(?i)\.gguf$", "", name) if match is None else match["name"]


def group_shards(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the names of GGUF files by model, under the name of the first shard."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        models.setdefault(first_shard(Path(name)).name, []).append(name)
    return models


def shard_paths(path: Path, count: int) -> list[Path]:
    """Return the paths of all `count` shards of which `path` is one.

    Raises:
        CheckpointError: the file's name is not a shard's, or shards are missing.
    """
    match = SHARD.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        expected = _shard_path(path, "NAME", 1, count).name
        raise CheckpointError(f"{path} is one of {count} shards: their names must be {expected} and so on")
    paths = [_shard_path(path, match["name"], no, count) for no in range(1, count + 1)]
    missing = [shard.name for shard in paths if not shard.is_file()]
    if missing:
        raise CheckpointError(f"{path} is one of {count} shards; missing: {shortened(missing)}")
    return paths


def _shard_path(sibling: Path, name: str, no: int, count: int) -> Path:
    return sibling.with_name(f"{name}-{no:05}-of-{count:05}.gguf")
