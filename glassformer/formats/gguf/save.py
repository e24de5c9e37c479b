"""A model to one GGUF file, which llama.cpp and its kin run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import gguf
import numpy as np
import torch
from torch import Tensor

from glassformer.atomic import replacing
from glassformer.errors import CheckpointError, ConfigError
from glassformer.families import family_of
from glassformer.formats.gguf.metadata import in_gguf, write_metadata
from glassformer.formats.save import GgufKind
from glassformer.formats.tensor_mapping import TensorMapping, entries
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.model import Decoder, EncoderDecoder

KINDS: tuple[GgufKind, ...] = get_args(GgufKind)
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2}  # as llama.cpp numbers them
EXACT = ("_norm.", "position_embd.", "ffn_gate_inp.", "token_types.", "attn_rel_b.")
HEADS = ("pooler", "next_sentence", "head")
PIECE = 1 << 20  # numbers quantized at a time


def save_gguf(
    model: Decoder | EncoderDecoder | TextEncoder,
    path: str | Path,
    kind: GgufKind = "F16",
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a GGUF file: matrices as `kind`, all else in float32. `extra` are more metadata: the tokenizer's.

    Of an encoder it holds what makes the states: `left_out` names what it does not.

    Rows that quantization's blocks of 32 do not fit are written as F16. The file is there whole or not at all.
    ConfigError where the format cannot say what the config says, CheckpointError where the disk is full.
    """
    path = Path(path)
    if kind not in KINDS:
        raise ConfigError(f"GGUF files are written as {', '.join(KINDS)}, got {kind!r}")
    architecture, metadata, numbers = write_metadata(model.config)
    metadata |= {"general.file_type": FILE_TYPES[kind], "general.quantization_version": 2}
    parameters = _written(model)
    found = entries(in_gguf(family_of(model.config)), model.config, parameters)
    kinds = [_kind(entry, parameters, kind) for entry in found]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path.parent} could not be made: {error.strerror}") from error
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            for key, value in (metadata | dict(extra or {})).items():
                _add(writer, key, value)
            for name, values in numbers.items():
                size = 4 * len(values)
                writer.add_tensor_info(name, (len(values),), np.dtype(np.float32), size, gguf.GGMLQuantizationType.F32)
            for entry, one in zip(found, kinds, strict=True):
                shape = entry.shape(parameters)
                nbytes = gguf.quants.quant_shape_to_byte_shape(shape, one)
                writer.add_tensor_info(entry.theirs, shape, np.dtype(np.float32), int(np.prod(nbytes)), one)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for values in numbers.values():
                writer.write_tensor_data(np.array(values, np.float32))
            for entry, one in zip(found, kinds, strict=True):
                writer.write_tensor_data(_encoded(entry.join(parameters), one))
        finally:
            writer.close()


def left_out(model: Decoder | EncoderDecoder | TextEncoder) -> list[str]:
    """The parts of a model that a GGUF file has no place for: of an encoder its pooler and its heads."""
    parts = HEADS if isinstance(model, TextEncoder) else ()
    return [part for part in parts if getattr(model, part) is not None]


def _written(model: Decoder | EncoderDecoder | TextEncoder) -> dict[str, Tensor]:
    """The parameters that are written, positions from the first one on."""
    gone = tuple(f"{part}." for part in left_out(model))
    found: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if not name.startswith(gone)}
    if "positions.weight" in found:
        found["positions.weight"] = found["positions.weight"][model.config.position_offset :]
    return found


def _kind(entry: TensorMapping, parameters: dict[str, Tensor], kind: str) -> gguf.GGMLQuantizationType:
    """The type to write a tensor as: norms, biases, routers and tables of positions are small, and stay exact."""
    shape, name = entry.shape(parameters), entry.theirs
    if len(shape) == 1 or not name.endswith(".weight") or any(part in name for part in EXACT):
        return gguf.GGMLQuantizationType.F32
    fits = shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0] == 0
    return gguf.GGMLQuantizationType[kind if fits else "F16"]


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if key == "general.architecture":
        return  # the writer has said it
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def _encoded(tensor: Tensor, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """A tensor as a type's bytes, a piece at a time."""
    tensor = tensor.cpu()
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(kind.name)
    if plain is not None:
        return tensor.to(plain).view(torch.uint8).numpy()
    rows = tensor.view(-1, tensor.shape[-1])
    pieces = rows.split(max(1, PIECE // rows.shape[1]))
    return np.concatenate([gguf.quants.quantize(piece.float().numpy(), kind) for piece in pieces])
