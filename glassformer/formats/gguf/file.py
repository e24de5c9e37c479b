"""The tensors of GGUF files: mapped where they are floats, decoded a piece at a time where they are quantized."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.formats.gguf.header import read_header
from glassformer.formats.gguf.shards import shards_of
from glassformer.formats.reader import FLOATS, Scratch, TensorFile, read_rows


def _decodes(kind: GGMLQuantizationType) -> bool:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


DECODED = {kind.name for kind in GGMLQuantizationType if kind.name not in FLOATS and _decodes(kind)}

MOST_NUMBERS = 4096  # of a tensor that is part of the configuration
MOST_FILES = 65_535  # which the format has numbers for


class GgufFile(TensorFile):
    """One GGUF file. CheckpointError where it is damaged, cut short, or claims more than it has."""

    def __init__(self, path: Path):
        self.path = path
        header = read_header(path)
        self.metadata, self.names = header.metadata, header.tensors
        self.bytes = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.names[name].shape

    def kind(self, name: str) -> str:
        return self.names[name].kind

    def dtype(self, name: str) -> torch.dtype | None:
        kind = self.kind(name)
        return torch.float32 if kind in DECODED else FLOATS.get(kind)

    def readable(self) -> str:
        return ", ".join([*FLOATS, *sorted(DECODED)])

    def begin(self, name: str) -> int | None:
        return self.names[name].begin

    def __getitem__(self, name: str) -> Tensor:
        info = self.names[name]
        if info.kind in FLOATS:
            return self.bytes[info.begin : info.begin + info.nbytes].view(FLOATS[info.kind]).view(info.shape)
        value = torch.empty(info.shape)
        for first, piece in self.rows(name, Scratch()):
            value[first : first + len(piece)] = piece
        return value

    def rows(self, name: str, scratch: Scratch) -> Iterator[tuple[int, Tensor]]:
        info = self.names[name]
        n_rows = info.shape[0] if len(info.shape) > 1 else 1
        shape = info.shape[1:] if len(info.shape) > 1 else info.shape
        for first, piece in read_rows(self.path, info.begin, n_rows, info.nbytes // max(1, n_rows), scratch):
            if info.kind in FLOATS:
                rows = piece.view(FLOATS[info.kind])
            else:
                rows = self._decode(piece, info.kind)
            yield (first, rows.view(-1, *shape)) if len(info.shape) > 1 else (0, rows.view(shape))

    def numbers(self, name: str) -> list[float]:
        """A short vector, each number as the shortest decimal that it stands for."""
        shape = self.shape(name)
        if len(shape) != 1 or shape[0] > MOST_NUMBERS:
            raise CheckpointError(f"{self.path}: {name} must be at most {MOST_NUMBERS} numbers, got {list(shape)}")
        return [float(str(number)) for number in self[name].float().numpy()]

    def _decode(self, rows: Tensor, kind: str) -> Tensor:
        """Bytes [n, bytes of a row] as float32 [n, numbers of a row]."""
        if kind not in DECODED:
            raise CheckpointError(f"{self.path}: {kind} cannot be decoded, only {self.readable()}")
        with np.errstate(all="ignore"):  # scales of a damaged file may be anything
            return torch.from_numpy(dequantize(rows.numpy(), GGMLQuantizationType[kind]))


def open_gguf(path: Path) -> list[GgufFile]:
    """The file, or all those of which it is one, the first first. CheckpointError names what is missing or not so."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    file = GgufFile(path)
    count = file.metadata.get("split.count", 1)
    if not isinstance(count, int) or not 0 <= count <= MOST_FILES:
        raise CheckpointError(f"{path}: split.count must be a number up to {MOST_FILES}, got {count!r:.40}")
    if count < 2:
        return [file]
    files = [GgufFile(one) for one in shards_of(path, count)]
    for no, one in enumerate(files):
        said = (one.metadata.get("split.no"), one.metadata.get("split.count"))
        if said != (no, count):
            raise CheckpointError(f"{one.path} says that it is number {said[0]} of {said[1]}, not {no} of {count}")
    claimed, found = files[0].metadata.get("split.tensors.count"), sum(map(len, files))
    if claimed not in (None, found):
        raise CheckpointError(f"{files[0].path}: split.tensors.count is {claimed}, and its {count} files have {found}")
    return files


def check_claims(files: list[GgufFile], width: int) -> None:
    """CheckpointError where metadata claim blocks, heads or experts for which there are no tensors.

    A model is made before its tensors are looked at: what it is made of must be no more than the files have.
    """
    names, metadata = {name: info for file in files for name, info in file.names.items()}, files[0].metadata
    start = f"{metadata.get('general.architecture')}."

    def blocks(side: str) -> int:
        return len({name.removeprefix(side).split(".")[1] for name in names if name.startswith(f"{side}blk.")})

    routers = [info.shape[0] for name, info in names.items() if "ffn_gate_inp." in name and info.nbytes]
    most = {"attention.head_count": width, "expert_count": max(routers, default=0)}
    most |= {"block_count": blocks("") or blocks("enc."), "decoder_block_count": blocks("dec.")}
    for key, limit in most.items():
        claimed = metadata.get(start + key, 0)
        if isinstance(claimed, int) and claimed > limit:
            raise CheckpointError(f"{files[0].path}: {start}{key} is {claimed}, and there are tensors for {limit}")


def block_size(kind: str) -> int:
    """How many numbers of a row are quantized together."""
    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]
