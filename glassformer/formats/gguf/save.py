"""Save a model as one GGUF file, which llama.cpp and programs built on it run."""

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
from glassformer.formats.gguf.metadata import gguf_family, write_metadata
from glassformer.formats.save import GgufKind
from glassformer.formats.tensor_mapping import TensorMapping, map_tensors
from glassformer.kernels.packed_linear import ModelWeights
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.model import Decoder, EncoderDecoder

KINDS: tuple[GgufKind, ...] = get_args(GgufKind)
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2}  # as llama.cpp numbers them
FLOAT32_TENSORS = ("_norm.", "position_embd.", "ffn_gate_inp.", "token_types.", "attn_rel_b.")
HEADS = ("pooler", "next_sentence", "head")
CHUNK = 1 << 20  # numbers quantized at a time


def save_gguf(
    model: Decoder | EncoderDecoder | TextEncoder,
    path: str | Path,
    kind: GgufKind = "F16",
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a GGUF file atomically.

    Matrices are stored as `kind`, or as F16 if their row length is not a multiple of its block size; other tensors are
    stored as float32. An encoder is stored without its pooler and heads: see `left_out`.

    Args:
        kind: the type of the stored matrices.
        extra: more metadata, such as the tokenizer's.

    Raises:
        ConfigError: the format cannot describe the model.
        CheckpointError: the file cannot be written, or the disk is full.
    """
    path = Path(path)
    if kind not in KINDS:
        raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    architecture, metadata, vectors = write_metadata(model.config)
    metadata |= {"general.file_type": FILE_TYPES[kind], "general.quantization_version": 2}
    weights = ModelWeights(model)
    parameters = _stored_parameters(model, weights)
    mappings = map_tensors(gguf_family(family_of(model.config)), model.config, parameters)
    kinds = [_stored_type(mapping, parameters, kind) for mapping in mappings]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path.parent} could not be created: {error.strerror}") from error
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            for key, value in (metadata | dict(extra or {})).items():
                _add(writer, key, value)
            for name, values in vectors.items():
                size = 4 * len(values)
                writer.add_tensor_info(name, (len(values),), np.dtype(np.float32), size, gguf.GGMLQuantizationType.F32)
            for mapping, stored in zip(mappings, kinds, strict=True):
                shape = mapping.shape(parameters)
                nbytes = gguf.quants.quant_shape_to_byte_shape(shape, stored)
                writer.add_tensor_info(mapping.tensor_name, shape, np.dtype(np.float32), int(np.prod(nbytes)), stored)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for values in vectors.values():
                writer.write_tensor_data(np.array(values, np.float32))
            for mapping, stored in zip(mappings, kinds, strict=True):
                values = {name: parameters[name] for name in mapping.parameter_names}
                values |= {name: weights[name] for name, value in values.items() if value.is_meta}
                writer.write_tensor_data(_encode(mapping.join(values), stored))
        finally:
            writer.close()


def left_out(model: Decoder | EncoderDecoder | TextEncoder) -> list[str]:
    """Return the parts of a model that a GGUF file cannot hold: an encoder's pooler and heads."""
    parts = HEADS if isinstance(model, TextEncoder) else ()
    return [part for part in parts if getattr(model, part) is not None]


def _stored_parameters(model: Decoder | EncoderDecoder | TextEncoder, weights: ModelWeights) -> dict[str, Tensor]:
    """Return the parameters that are stored, packed ones without their numbers (meta).

    Of the position table these are the rows from the first position on.
    """
    omitted = tuple(f"{part}." for part in left_out(model))
    parameters = {name: p for name, p in weights.shapes.items() if not name.startswith(omitted)}
    if "positions.weight" in parameters:
        parameters["positions.weight"] = parameters["positions.weight"][model.config.position_offset :]
    return parameters


def _stored_type(mapping: TensorMapping, parameters: dict[str, Tensor], kind: str) -> gguf.GGMLQuantizationType:
    """Return the type of a stored tensor. Norms, biases, routers and position tables are small and stay float32."""
    shape, name = mapping.shape(parameters), mapping.tensor_name
    if len(shape) == 1 or not name.endswith(".weight") or any(part in name for part in FLOAT32_TENSORS):
        return gguf.GGMLQuantizationType.F32
    fits = shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0] == 0
    return gguf.GGMLQuantizationType[kind if fits else "F16"]


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if key == "general.architecture":
        return  # GGUFWriter adds it
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


def _encode(tensor: Tensor, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Return a tensor as the bytes of a GGUF type, quantized in chunks."""
    tensor = tensor.cpu()
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(kind.name)
    if dtype is not None:
        return tensor.to(dtype).view(torch.uint8).numpy()
    rows = tensor.view(-1, tensor.shape[-1])
    chunks = rows.split(max(1, CHUNK // rows.shape[1]))
    return np.concatenate([gguf.quants.quantize(chunk.float().numpy(), kind) for chunk in chunks])
