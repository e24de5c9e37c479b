"""Find a model by path or name, and its tokenizer and end tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glassformer.errors import CheckpointError
from glassformer.formats.gguf.shards import first_shard, group_shards, is_gguf
from glassformer.formats.hub import fetch, is_hub_name
from glassformer.formats.original import find_original
from glassformer.formats.packaged import PACKAGED, find_packaged
from glassformer.formats.reader import read_json
from glassformer.text.files.find import find_tokenizer
from glassformer.text.files.load import load_tokenizer
from glassformer.text.tokenizer import Tokenizer

WEIGHT_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".pth")


def follow_link(path: Path) -> Path:
    """Return where a link leads: a symbolic link, or a text file with the name of a folder beside it."""
    with contextlib.suppress(OSError, ValueError):
        if path.is_file() and path.stat().st_size <= 255:
            target = path.with_name(path.read_text("utf-8").strip())
            return target.resolve() if target.is_dir() else path.resolve()
    return path.resolve()


def find_model(path: str | Path, *, offline: bool = False) -> Path:
    """Return the folder or file of a model: an existing path, a packaged model, or a model on the hub, in this order.

    A run folder means its best checkpoint. A folder whose only weights are one GGUF model means its first shard.

    Raises:
        CheckpointError: no model is found, or it cannot be read.
    """
    if not str(path):
        raise CheckpointError("the model is empty text: give a model folder or file, or a name")
    try:
        return _find(path, offline)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def _find(path: str | Path, offline: bool) -> Path:
    folder = Path(path)
    if (folder.is_file() and is_gguf(folder)) or (
        folder.suffix.lower() in WEIGHT_SUFFIXES and (folder.is_file() or first_shard(folder).is_file())
    ):
        return folder if folder.is_file() else first_shard(folder)
    ggufs = group_shards(file.name for file in folder.glob("*.[gG][gG][uU][fF]")) if folder.is_dir() else {}
    weights = any(any(folder.glob(f"*{kind}")) for kind in WEIGHT_SUFFIXES[1:])
    links = (folder, folder / "checkpoints" / "best", folder / "checkpoints" / "last")
    for one in (follow_link(link) if link.is_file() else link for link in links):
        if len(ggufs) == 1 and one is folder and not weights:
            break
        if (one / "config.json").exists() or (one / "modules.json").exists():
            return one.resolve() if one is not folder else folder
    if folder.is_dir() and find_original(folder) is not None:
        return folder
    if len(ggufs) == 1:
        ((first, names),) = ggufs.items()
        return folder / (first if first in names else names[0])
    if not folder.exists() and str(path) in PACKAGED:
        return find_packaged(str(path))
    if not folder.exists() and is_hub_name(str(path)):
        return find_model(fetch(str(path), offline=offline))
    if ggufs:
        raise CheckpointError(f"{path} has several GGUF files: give the path of one of {', '.join(ggufs)}")
    kinds = ", ".join(WEIGHT_SUFFIXES)
    why = "has no config.json" if folder.is_dir() else f"is not a folder or a weights file ({kinds})"
    known = ", ".join(PACKAGED)
    raise CheckpointError(
        f"{path} {why}: give a model folder or file, a run folder, a packaged model ({known}), or owner/name on the hub"
    )


def gguf_metadata(found: Path) -> Mapping[str, Any]:
    """Return the metadata of a GGUF file; empty for anything else."""
    if not found.is_file() or not is_gguf(found):
        return {}
    from glassformer.formats.gguf.header import read_header

    metadata = read_header(found).metadata
    return read_header(first_shard(found)).metadata if metadata.get("split.no") else metadata


def tokenizer_of(found: Path, metadata: Mapping[str, Any] | None = None) -> Tokenizer | None:
    """Load the tokenizer of a model that `find_model` found; None if it has none.

    Args:
        metadata: a GGUF file's metadata, if it has been read already.
    """
    metadata = gguf_metadata(found) if metadata is None else metadata
    if metadata:
        from glassformer.formats.gguf.tokenizer_read import tokenizer_from_gguf

        no_tokenizer = metadata.get("tokenizer.ggml.model") in (None, "none", "no_vocab")
        return None if no_tokenizer else tokenizer_from_gguf(metadata)
    folder = found.parent if found.is_file() else found
    return load_tokenizer(folder) if find_tokenizer(folder) else None


def end_token_ids(found: Path, metadata: Mapping[str, Any] | None = None) -> list[int]:
    """Return the ids of the tokens that end a text.

    Their source is generation_config.json, or else config.json; for GGUF files and original formats, their metadata.
    """
    metadata = gguf_metadata(found) if metadata is None else metadata
    if metadata:
        named = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
        return [index for index in named if isinstance(index, int)]
    folder = found.parent if found.is_file() else found
    if (layout := find_original(found)) is not None:
        return layout.end_token_ids(read_json(folder / layout.settings)) if layout.settings else []
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists():
            ends = read_json(folder / name).get("eos_token_id")
            if ends is not None:
                ends = ends if isinstance(ends, list) else [ends]
                if not all(type(index) is int and index >= 0 for index in ends):
                    raise CheckpointError(
                        f"{folder / name}: eos_token_id must be a token id or a list of token ids, got {ends}"
                    )
                return ends
    return []
