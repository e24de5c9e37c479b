"""Save a model as one GGUF file, which llama.cpp and programs built on it run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from glassformer.atomic import replacing
from glassformer.errors import CheckpointError, ConfigError
from glassformer.families import family_of
from glassformer.formats.gguf.metadata import gguf_family, write_metadata
from glassformer.formats.gguf.quantize import CHUNK, quantize
from glassformer.formats.gguf.tensor_types import FILE_TYPES, tensor_types
from glassformer.formats.save import GgufKind
from glassformer.formats.tensor_mapping import TensorMapping, map_tensors
from glassformer.kernels.packed_linear import ModelWeights
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.model import Decoder, EncoderDecoder

KINDS: tuple[GgufKind, ...] = get_args(GgufKind)
HEADS = ("pooler", "next_sentence", "head")
Progress = Callable[[int, int], None]  # called with the numbers stored so far, and all of them


def save_gguf(
    model: Decoder | EncoderDecoder | TextEncoder,
    path: str | Path,
    kind: GgufKind = "F16",
    *,
    extra: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a GGUF file atomically. An encoder is stored without its pooler and heads: see `left_out`.

    Args:
        kind: the kind of file, which decides the type of each tensor: see `tensor_types.py`.
        extra: more metadata, such as the tokenizer's.
        progress: called after each chunk of weights.

    Raises:
        ConfigError: the format cannot describe the model.
        CheckpointError: the file cannot be written, the disk is full, or the type of a matrix cannot store its weights.
    """
    path = Path(path)
    if kind not in KINDS:
        raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    architecture, metadata, vectors = write_metadata(model.config)
    metadata |= {"general.file_type": FILE_TYPES[kind].number, "general.quantization_version": 2}
    weights = ModelWeights(model)
    parameters = _stored_parameters(model, weights)
    mappings = map_tensors(gguf_family(family_of(model.config)), model.config, parameters)
    shapes = {mapping.tensor_name: mapping.shape(parameters) for mapping in mappings}
    types = tensor_types(shapes, kind, metadata)
    done, total = 0, sum(map(math.prod, shapes.values()))

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, total)

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
                writer.add_tensor_info(name, (len(values),), np.dtype(np.float32), size, GGMLQuantizationType.F32)
            for name, shape in shapes.items():
                nbytes = math.prod(gguf.quants.quant_shape_to_byte_shape(shape, types[name]))
                writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, types[name])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for values in vectors.values():
                writer.write_tensor_data(np.array(values, np.float32))
            for mapping in mappings:
                values = {name: parameters[name] for name in mapping.parameter_names}
                values |= {name: weights[name] for name, value in values.items() if value.is_meta}
                writer.write_tensor_data(_encode(mapping, values, types[mapping.tensor_name], advance))
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


def _encode(
    mapping: TensorMapping, parameters: dict[str, Tensor], kind: GGMLQuantizationType, advance: Callable[[int], None]
) -> np.ndarray:
    """Return a tensor as the bytes of a GGUF type, in chunks. `advance` is called with the size of each chunk."""
    tensor = mapping.join(parameters).cpu()
    rows = tensor.view(-1, tensor.shape[-1])
    chunks = []
    for chunk in rows.split(max(1, CHUNK // max(1, rows.shape[1]))):
        try:
            chunks.append(quantize(chunk, kind))
        except ValueError as error:
            raise CheckpointError(f"{mapping.tensor_name} cannot be stored as {kind.name}: {error}") from None
        advance(chunk.numel())
    return torch.cat(chunks).numpy()
