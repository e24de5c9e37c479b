"""A model to a Hugging Face folder, which other tools open as it is."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from glassformer.atomic import replacing, write_text
from glassformer.errors import CheckpointError
from glassformer.families import family_of, write_config
from glassformer.formats.load import AnyModel
from glassformer.formats.safetensors_file import save_tensors, write_tensors
from glassformer.formats.tensor_mapping import TensorMapping, entries

GgufKind = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0"]
SHARD = 5_000_000_000  # bytes of one file; above it there are several, and an index


def save_model(
    model: AnyModel,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    extra: dict[str, Any] | None = None,
    shard: int = SHARD,
) -> None:
    """Write `config.json` and `model.safetensors`; `extra` are more keys for config.json (`eos_token_id`).

    More than `shard` bytes become several files and an index, made one after the other. Each file is written under a
    temporary name, synced and renamed; where there are several all are written before the first is renamed, and while
    they are there is no index, so that never two models are mixed. What a checkpoint that stood there before had beside
    goes last, since readers would follow it. CheckpointError where the disk is full.
    """
    folder = Path(folder)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    found = entries(family_of(model.config), model.config, parameters)
    raw = write_config(model.config, [entry.theirs for entry in found])
    parts = _parts(found, parameters, dtype, shard)
    kind = dtype or parameters[found[0].ours[0]].dtype
    raw |= {"torch_dtype": str(kind).removeprefix("torch."), **(extra or {})}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be made: {error.strerror}") from error

    def tensors(part: list[TensorMapping]) -> dict[str, Tensor]:
        made = {entry: entry.join(parameters).cpu() for entry in part}
        return {entry.theirs: t.to(entry.dtype(dtype, t.dtype)) for entry, t in made.items()}

    index = folder / "model.safetensors.index.json"
    kept = {"model.safetensors"}
    if len(parts) == 1:
        save_tensors(tensors(parts[0]), folder / "model.safetensors")
    else:
        names = [f"model-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
        with contextlib.ExitStack() as stack:
            for name, part in zip(names, parts, strict=True):
                write_tensors(tensors(part), folder / name, stack.enter_context(replacing(folder / name)))
            index.unlink(missing_ok=True)
        total = sum(_nbytes(entry, parameters, dtype) for entry in found)
        where = {entry.theirs: name for name, part in zip(names, parts, strict=True) for entry in part}
        write_text(index, json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2) + "\n")
        kept = {index.name, *names}
    write_text(folder / "config.json", json.dumps(raw, indent=2) + "\n")
    for stale in (index, folder / "model.safetensors", *folder.glob("model-*-of-*.safetensors")):
        if stale.name not in kept:
            stale.unlink(missing_ok=True)


def _nbytes(entry: TensorMapping, parameters: dict[str, Tensor], dtype: torch.dtype | None) -> int:
    return sum(p.numel() * entry.dtype(dtype, p.dtype).itemsize for p in (parameters[name] for name in entry.ours))


def _parts(
    found: list[TensorMapping], parameters: dict[str, Tensor], dtype: torch.dtype | None, shard: int
) -> list[list[TensorMapping]]:
    """Entries in order, cut where a file would grow past `shard` bytes."""
    parts, room = [[]], shard
    for entry in found:
        nbytes = _nbytes(entry, parameters, dtype)
        if nbytes > room and parts[-1]:
            parts.append([])
            room = shard
        parts[-1].append(entry)
        room -= nbytes
    return parts
