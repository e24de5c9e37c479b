"""One model in several GGUF files, as `llama-gguf-split` and the `gguf` package name them: "NAME-00001-of-00003.gguf".

The first says what the model is, and each which it is of how many (`split.no`, from 0, and `split.count`). A person may
point at any.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from glassformer.errors import CheckpointError

SHARD = re.compile(r"(?P<name>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf")
SHOWN = 20  # files that are missing


def first_of(path: Path) -> Path:
    """The first of the files that this one is named as one of; any other itself."""
    match = SHARD.fullmatch(path.name)
    return path if match is None else _named(path, match["name"], 1, int(match["count"]))


def model_of(name: str) -> str:
    """What a file's name calls the model."""
    match = SHARD.fullmatch(name)
    return name.removesuffix(".gguf") if match is None else match["name"]


def models_of(names: Iterable[str]) -> dict[str, list[str]]:
    """The files of each model among GGUF files, by the first of its files."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(first_of(Path(name)).name, []).append(name)
    return found


def shards_of(path: Path, count: int) -> list[Path]:
    """The files of which a file that says it is one of `count` is one. CheckpointError names those that are missing."""
    match = SHARD.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise CheckpointError(
            f"{path} is one of {count} files: they must be named {_named(path, 'NAME', 1, count).name}"
        )
    paths = [_named(path, match["name"], no, count) for no in range(1, count + 1)]
    missing = [one.name for one in paths if not one.is_file()]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        verb = "is" if len(missing) == 1 else "are"
        raise CheckpointError(
            f"{path} is one of {count} files, of which {', '.join(missing[:SHOWN])}{more} {verb} missing"
        )
    return paths


def _named(beside: Path, name: str, no: int, count: int) -> Path:
    return beside.with_name(f"{name}-{no:05}-of-{count:05}.gguf")
