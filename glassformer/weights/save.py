"""A model to a Hugging Face folder, which other tools open as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.families import family_of, write_config
from glassformer.nn.model import Decoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder
from glassformer.weights.atomic import replacing, write_text
from glassformer.weights.rules import entries


def state_as_theirs(model: Decoder | RecurrentEncoderDecoder) -> dict[str, Tensor]:
    """The model's tensors under the names, and in the layout, of its family's checkpoints."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    found = entries(family_of(model.config), model.config, parameters)
    return {entry.theirs: entry.join(parameters).cpu() for entry in found}


def save_model(
    model: Decoder | RecurrentEncoderDecoder,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write `config.json` and `model.safetensors`; `extra` are more keys for config.json (`eos_token_id`).

    Each file is written under a temporary name, synced and renamed; the index and shards of a checkpoint that stood
    there before go last, since readers would follow them. CheckpointError where the disk is full.
    """
    folder = Path(folder)
    raw = write_config(model.config)
    tensors = {name: t.to(dtype or t.dtype) for name, t in state_as_theirs(model).items()}
    raw |= {"torch_dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."), **(extra or {})}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be made: {error.strerror}") from error
    save_tensors(tensors, folder / "model.safetensors")
    write_text(folder / "config.json", json.dumps(raw, indent=2) + "\n")
    for stale in (folder / "model.safetensors.index.json", *folder.glob("model-*-of-*.safetensors")):
        stale.unlink(missing_ok=True)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write one safetensors file atomically."""
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except Exception as error:  # safetensors has an error type of its own for a full disk
            need = sum(t.nbytes for t in tensors.values())
            raise CheckpointError(f"{path} could not be written ({need / 1e6:.1f} MB are needed): {error}") from error
