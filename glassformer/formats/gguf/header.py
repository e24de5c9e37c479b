"""Read the header of a GGUF file. Every claimed size is checked against the length of the file.

Format (ggml's `docs/gguf.md`), little-endian:

    "GGUF" | version: u32 | n_tensors: u64 | n_keys: u64
    n_keys x    key: string | type: u32 | value
    n_tensors x name: string | n_dims: u32 | dims: u64 x n_dims, innermost first | type: u32 | offset: u64
    padding to `general.alignment` (32), then the tensors' data, in the same order, each padded to the alignment

A string is its length (u64) and UTF-8; an array is a type (u32), a length (u64) and its elements.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from glassformer.errors import CheckpointError
from glassformer.json_file import check_pointer

SCALARS = dict(enumerate("<u1 <i1 <u2 <i2 <u4 <i4 <f4 ?".split())) | {10: "<u8", 11: "<i8", 12: "<f8"}
FLOAT32, BOOL, STRING, ARRAY = 6, 7, 8, 9
MAX_DIMS = 4  # ggml's
MIN_TENSOR_BYTES, MIN_KEY_BYTES = 24, 13  # of their entries in a header


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its type's name, its shape (outermost first), its byte offset in the file, and its size in bytes."""

    type: str
    shape: tuple[int, ...]
    byte_offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata by key, and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises:
        CheckpointError: the file is damaged, truncated, or claims more than it has.
    """
    check_pointer(path)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise CheckpointError(f"{path} is not a complete GGUF file: it is empty") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    with data:
        return _Parser(path, data).header()


class _Parser:
    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at, self.size = path, data, 0, len(data)

    def fail(self, reason: str) -> NoReturn:
        raise CheckpointError(f"{self.path} is not a complete GGUF file: {reason}")

    def take(self, n: int, what: str) -> bytes:
        """Return the next `n` bytes; `what` names them in the error."""
        if n > self.size - self.at:
            self.fail(f"{what} at byte {self.at} claims {n} bytes, but {self.size - self.at} are left")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, code: str, what: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]

    def string(self, what: str) -> str:
        text = self.take(self.number("Q", what), what)
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")

    def count(self, what: str, min_bytes: int) -> int:
        """Return the number of elements that follow, each of at least `min_bytes`."""
        n = self.number("Q", what)
        if n * min_bytes > self.size - self.at:
            self.fail(f"it claims {n} {what}, but {self.size - self.at} bytes are left")
        return n

    def header(self) -> GgufHeader:
        if self.take(4, "the magic number") != b"GGUF":
            self.fail("it does not begin with GGUF")
        version = self.number("I", "the version")
        if version not in (2, 3):
            self.fail(f"version {version} is not supported, only little-endian 2 and 3")
        n_tensors, n_keys = self.number("Q", "the number of tensors"), self.number("Q", "the number of keys")
        for n, what, min_bytes in ((n_tensors, "tensors", MIN_TENSOR_BYTES), (n_keys, "keys", MIN_KEY_BYTES)):
            if n * min_bytes > self.size:
                self.fail(f"it claims {n} {what}, but has only {self.size} bytes")
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self.string("a key")
            if key in metadata:
                self.fail(f"the key {key!r} appears twice")
            metadata[key] = self.value(self.number("I", key), key)
        return GgufHeader(metadata, self.tensors(n_tensors, metadata.get("general.alignment", 32)))

    def value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self.string(key)
        if kind == ARRAY:
            kind = self.number("I", key)
            if kind == STRING:
                return [self.string(key) for _ in range(self.count(f"elements of {key}", 8))]
            if kind not in SCALARS:
                self.fail(f"{key} is an array of type {kind}, which is not supported")
            n = self.count(f"elements of {key}", np.dtype(SCALARS[kind]).itemsize)
            return self.scalars(kind, n, key)
        if kind not in SCALARS:
            self.fail(f"{key} has the unknown type {kind}")
        return self.scalars(kind, 1, key)[0]

    def scalars(self, kind: int, n: int, key: str) -> list[Any]:
        dtype = np.dtype(SCALARS[kind])
        raw = self.take(n * dtype.itemsize, key)
        if kind == BOOL:
            return [byte != 0 for byte in raw]
        values = np.frombuffer(raw, dtype)
        if kind == FLOAT32 and n <= 4096:  # the shortest equal decimal: 1e-05, not 9.999999747378752e-06
            return [float(str(number)) for number in values]
        return values.tolist()

    def tensors(self, n: int, alignment: Any) -> dict[str, TensorInfo]:
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1) or alignment > 1 << 20:
            self.fail(f"general.alignment must be a power of two from 8 to {1 << 20}, got {alignment!r}")
        claimed: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        for _ in range(n):
            name = self.string("a tensor's name")
            if name in claimed:
                self.fail(f"the tensor {name!r} appears twice")
            n_dims = self.number("I", name)
            if n_dims > MAX_DIMS:
                self.fail(f"{name} has {n_dims} dimensions, at most {MAX_DIMS} are possible")
            shape = tuple(self.number("Q", name) for _ in range(n_dims))[::-1]
            kind, offset = self.number("I", name), self.number("Q", name)
            try:
                kind = GGMLQuantizationType(kind)
            except ValueError:
                self.fail(f"{name} has the unknown type {kind}")
            block, nbytes = GGML_QUANT_SIZES[kind]
            if (shape[-1] if shape else 1) % block:
                self.fail(f"{name} is {list(shape)} in {kind.name}, whose rows must be multiples of {block}")
            claimed[name] = kind.name, shape, offset, math.prod(shape) // block * nbytes
        start, end = -(-self.at // alignment) * alignment, 0
        infos: dict[str, TensorInfo] = {}
        for name, (kind, shape, offset, nbytes) in claimed.items():
            if offset != end:  # an overlap or a gap
                self.fail(f"{name} is at offset {offset}, expected {end}, the end of the tensor before it")
            if start + offset + nbytes > self.size:
                self.fail(f"{name} is {list(shape)} in {kind}: its {nbytes} bytes end after the end of the file")
            end = offset + -(-nbytes // alignment) * alignment
            infos[name] = TensorInfo(kind, shape, start + offset, nbytes)
        return infos
