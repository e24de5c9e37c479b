"""Save a model as a Hugging Face folder, which other tools open without conversion."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from glassformer.atomic import replacing, replacing_folder, write_text
from glassformer.errors import CheckpointError
from glassformer.families import family_of, write_config
from glassformer.formats.load import AnyModel
from glassformer.formats.safetensors_file import save_tensors, write_tensors
from glassformer.formats.tensor_mapping import TensorMapping, map_tensors
from glassformer.kernels.packed_linear import ModelWeights

GgufKind = Literal["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q4_0"]
SHARD = 5_000_000_000  # maximum bytes of one file
MODEL_FILES = (  # patterns of the files of a model folder, which another model replaces as a whole
    "config.json", "generation_config.json", "model*.safetensors", "*.index.json", "tokenizer*",
    "special_tokens_map.json", "added_tokens.json", "chat_template.*", "additional_chat_templates", "vocab.*",
    "*_vocab.json", "merges.txt", "encoder.json", "*.model", "*.spm", "*.tiktoken", "modules.json", "*sentence_*.json",
    "[0-9]_*",
)  # fmt: skip


def replacing_model(folder: str | Path) -> contextlib.AbstractContextManager[Path]:
    """Yield a folder in which to save a model with its tokenizer; it takes the place of `folder` in one step.

    See `replacing_folder`. Files of an older model are removed, others are preserved.
    """
    return replacing_folder(Path(folder), MODEL_FILES)


def save_model(
    model: AnyModel,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    extra: dict[str, Any] | None = None,
    shard: int = SHARD,
) -> None:
    """Write `config.json` and `model.safetensors`, or several shards and an index.

    Every file is written under a temporary name, synced and renamed. All shards are written before the first is
    renamed, and no index exists meanwhile, so that two models are never mixed. Files of an older checkpoint in the same
    folder are removed last.

    Args:
        dtype: the dtype of the stored tensors; None keeps the parameters' own.
        extra: more keys for config.json (`eos_token_id`).
        shard: the maximum bytes of one weights file.

    Raises:
        CheckpointError: the folder cannot be written, or the disk is full.
    """
    folder = Path(folder)
    weights = ModelWeights(model)
    parameters = weights.shapes
    mappings = map_tensors(family_of(model.config), model.config, parameters)
    raw = write_config(model.config, [mapping.tensor_name for mapping in mappings])
    shards = _split_shards(mappings, parameters, dtype, shard)
    main_dtype = dtype or parameters[mappings[0].parameter_names[0]].dtype
    raw |= {"torch_dtype": str(main_dtype).removeprefix("torch."), **(extra or {})}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be created: {error.strerror}") from error

    def tensors(shard: list[TensorMapping]) -> dict[str, Tensor]:
        joined = {mapping: mapping.join(weights).cpu() for mapping in shard}
        return {mapping.tensor_name: t.to(mapping.dtype(dtype, t.dtype)) for mapping, t in joined.items()}

    index = folder / "model.safetensors.index.json"
    current = {"model.safetensors"}
    if len(shards) == 1:
        save_tensors(tensors(shards[0]), folder / "model.safetensors")
    else:
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        with contextlib.ExitStack() as stack:
            for name, one in zip(names, shards, strict=True):
                write_tensors(tensors(one), folder / name, stack.enter_context(replacing(folder / name)))
            index.unlink(missing_ok=True)
        total = sum(_nbytes(mapping, parameters, dtype) for mapping in mappings)
        weight_map = {mapping.tensor_name: name for name, one in zip(names, shards, strict=True) for mapping in one}
        write_text(index, json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")
        current = {index.name, *names}
    write_text(folder / "config.json", json.dumps(raw, indent=2) + "\n")
    for stale in (index, folder / "model.safetensors", *folder.glob("model-*-of-*.safetensors")):
        if stale.name not in current:
            stale.unlink(missing_ok=True)


def _nbytes(mapping: TensorMapping, parameters: dict[str, Tensor], dtype: torch.dtype | None) -> int:
    values = (parameters[name] for name in mapping.parameter_names)
    return sum(p.numel() * mapping.dtype(dtype, p.dtype).itemsize for p in values)


def _split_shards(
    mappings: list[TensorMapping], parameters: dict[str, Tensor], dtype: torch.dtype | None, shard: int
) -> list[list[TensorMapping]]:
    """Split the mappings, in order, into shards of at most `shard` bytes. A larger tensor is a shard by itself."""
    shards, room = [[]], shard
    for mapping in mappings:
        nbytes = _nbytes(mapping, parameters, dtype)
        if nbytes > room and shards[-1]:
            shards.append([])
            room = shard
        shards[-1].append(mapping)
        room -= nbytes
    return shards
