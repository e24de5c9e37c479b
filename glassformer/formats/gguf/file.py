"""The tensors of GGUF files: memory-mapped if they are floats, decoded in chunks if they are quantized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.formats.gguf.blocks import PACKINGS
from glassformer.formats.gguf.header import TensorInfo, read_header
from glassformer.formats.gguf.shards import shard_paths
from glassformer.formats.reader import FLOAT_DTYPES, ReadBuffer, TensorFile, read_rows


def _can_decode(kind: GGMLQuantizationType) -> bool:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


DECODABLE = {kind.name for kind in GGMLQuantizationType if kind.name not in FLOAT_DTYPES and _can_decode(kind)}

MAX_VECTOR = 4096  # elements of a tensor that belongs to the configuration
MAX_FILES = 65_535  # the format's limit


class GgufFile(TensorFile):
    """One GGUF file.

    Raises:
        CheckpointError: the file is damaged, truncated, or claims more than it has.
    """

    names: Mapping[str, TensorInfo]

    def __init__(self, path: Path):
        self.path = path
        header = read_header(path)
        self.metadata, self.names = header.metadata, header.tensors
        self.bytes = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.names[name].shape

    def stored_type(self, name: str) -> str:
        return self.names[name].type

    def dtype(self, name: str) -> torch.dtype | None:
        kind = self.stored_type(name)
        return torch.float32 if kind in DECODABLE else FLOAT_DTYPES.get(kind)

    def supported_types(self) -> str:
        return ", ".join([*FLOAT_DTYPES, *sorted(DECODABLE)])

    def byte_offset(self, name: str) -> int | None:
        return self.names[name].byte_offset

    def __getitem__(self, name: str) -> Tensor:
        info = self.names[name]
        if info.type in FLOAT_DTYPES:
            data = self.bytes[info.byte_offset : info.byte_offset + info.nbytes]
            return data.view(FLOAT_DTYPES[info.type]).view(info.shape)
        value = torch.empty(info.shape)
        for first, rows in self.rows(name, ReadBuffer()):
            value[first : first + len(rows)] = rows
        return value

    def rows(self, name: str, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
        info = self.names[name]
        is_vector = len(info.shape) <= 1
        shape = info.shape if is_vector else info.shape[1:]
        for first, chunk in self._byte_rows(info, 1 if is_vector else info.shape[0], buffer):
            is_float = info.type in FLOAT_DTYPES
            rows = chunk.view(FLOAT_DTYPES[info.type]) if is_float else self._decode(chunk, info.type)
            yield (0, rows.view(shape)) if is_vector else (first, rows.view(-1, *shape))

    def quantized_bytes(self, name: str) -> int | None:
        info = self.names[name]
        return None if info.type in FLOAT_DTYPES else info.nbytes

    def block_type(self, name: str) -> str | None:
        info = self.names[name]
        return info.type if info.type in PACKINGS and len(info.shape) > 1 else None

    def block_rows(self, name: str, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
        info = self.names[name]
        row_bytes = info.shape[-1] // PACKINGS[info.type].size * PACKINGS[info.type].nbytes
        for first, chunk in self._byte_rows(info, info.shape[0], buffer):
            yield first, chunk.view(len(chunk), *info.shape[1:-1], row_bytes)

    def _byte_rows(self, info: TensorInfo, n_rows: int, buffer: ReadBuffer) -> Iterator[tuple[int, Tensor]]:
        row_bytes = info.nbytes // max(1, n_rows)
        return read_rows(self.path, info.byte_offset, n_rows, row_bytes, buffer)

    def vector(self, name: str) -> list[float]:
        """Return a short vector; each number is the shortest equal decimal."""
        shape = self.shape(name)
        if len(shape) != 1 or shape[0] > MAX_VECTOR:
            raise CheckpointError(
                f"{self.path}: {name} must be a vector of at most {MAX_VECTOR} numbers, got shape {list(shape)}"
            )
        return [float(str(number)) for number in self[name].float().numpy()]

    def _decode(self, rows: Tensor, kind: str) -> Tensor:
        """Decode bytes [n, bytes per row] to float32 [n, numbers per row]."""
        if kind not in DECODABLE:
            raise CheckpointError(f"{self.path}: {kind} cannot be decoded, only {self.supported_types()}")
        with np.errstate(all="ignore"):  # a damaged file can hold any scale
            return torch.from_numpy(dequantize(rows.numpy(), GGMLQuantizationType[kind]))


def open_gguf(path: Path) -> list[GgufFile]:
    """Open a GGUF file, or all shards of a model if the file is one of them, in order.

    Raises:
        CheckpointError: a shard is missing, or the shards' counts do not agree.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    file = GgufFile(path)
    count = file.metadata.get("split.count", 1)
    if not isinstance(count, int) or not 0 <= count <= MAX_FILES:
        raise CheckpointError(f"{path}: split.count must be a number from 0 to {MAX_FILES}, got {count!r:.40}")
    if count < 2:
        return [file]
    files = [GgufFile(shard) for shard in shard_paths(path, count)]
    for no, shard in enumerate(files):
        stated = (shard.metadata.get("split.no"), shard.metadata.get("split.count"))
        if stated != (no, count):
            raise CheckpointError(f"{shard.path} states number {stated[0]} of {stated[1]}, expected {no} of {count}")
    claimed, n_tensors = files[0].metadata.get("split.tensors.count"), sum(map(len, files))
    if claimed not in (None, n_tensors):
        raise CheckpointError(
            f"{files[0].path}: split.tensors.count is {claimed}, but its {count} files have {n_tensors} tensors"
        )
    return files


def check_claims(files: list[GgufFile], width: int) -> None:
    """Check that there are tensors for all layers, heads and experts that the metadata claims.

    The model is built before its tensors are read, so a false claim could fill the memory.

    Raises:
        CheckpointError: names the key, the claimed number, and the limit of the tensors.
    """
    infos, metadata = {name: info for file in files for name, info in file.names.items()}, files[0].metadata
    prefix = f"{metadata.get('general.architecture')}."

    def n_blocks(side: str) -> int:
        return len({name.removeprefix(side).split(".")[1] for name in infos if name.startswith(f"{side}blk.")})

    routers = [info.shape[0] for name, info in infos.items() if "ffn_gate_inp." in name and info.nbytes]
    limits = {"attention.head_count": width, "expert_count": max(routers, default=0)}
    limits |= {"block_count": n_blocks("") or n_blocks("enc."), "decoder_block_count": n_blocks("dec.")}
    for key, limit in limits.items():
        claimed = metadata.get(prefix + key, 0)
        if isinstance(claimed, int) and claimed > limit:
            raise CheckpointError(f"{files[0].path}: {prefix}{key} is {claimed}, but the tensors allow {limit}")
