"""The quantized blocks of GGUF files, repacked in the panels of `kernels/packed.py` without decoding them.

A row of a tensor is a sequence of blocks of 32 or 256 numbers. Layouts: `ggml-common.h`; b[i:j] are a block's bytes:

    Q4_0    d f16 | 16 bytes: byte i holds the numbers i (low half) and i + 16
    Q4_1    d f16 | m f16 | 16 bytes as Q4_0
    Q5_0    d f16 | u32: bit i is the high bit of number i | 16 bytes as Q4_0
    Q5_1    d f16 | m f16 | u32 | 16 bytes
    Q8_0    d f16 | 32 int8
    Q4_K    d f16 | dmin f16 | 12 bytes: 8 scales and 8 minima of 6 bits | 4 x 32 bytes: groups 2i (low) and 2i + 1
    Q5_K    as Q4_K, with 32 bytes before the last part: bit g of byte i is the high bit of number i of group g
    Q6_K    2 x 64 bytes: groups 4h, 4h + 1 (low), 4h + 2, 4h + 3 | 2 x 32 bytes: bits 2s of byte i are the high bits of
            number i of group 4h + s | 16 scales int8, of 16 numbers each | d f16
    IQ4_NL  as Q4_0; a number indexes a table
    IQ4_XS  d f16 | u16: bits 2g of scale g | 4 bytes: low bits of the scales | 8 x 16 bytes as Q4_0
    MXFP4   exponent u8 | 16 bytes as Q4_0

Two more types, which no GGUF file has, hold the rows of other checkpoints (`formats/integer_matrix.py`):

    Q4Z     d f32 | zero point u8 | 16 bytes as Q4_0
    Q8F     d f32 | 32 int8
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.kernels.packed import LOW, ONES, ROWS, TWOS, PackedMatrix, copied, empty_matrix, pack_rows

CHUNK_BYTES = 1 << 20  # bytes of blocks that are repacked at a time
MAX_EXPONENT = 252  # of MXFP4: 12 * 2^(e - 128) is infinite above, and 255 means NaN
Parts = tuple[Tensor, dict[str, Tensor]]  # quads [n, S, G, 8] and fields [n, S, G or 1]: see `pack_rows`


class Packing(NamedTuple):
    """How one GGUF type is packed: the format, the numbers and bytes of a block, and its parts."""

    format: str
    size: int
    nbytes: int
    parts: Callable[[Tensor], Parts]


def _f16(b: Tensor, at: int) -> Tensor:
    return copied(b[..., at : at + 2]).view(torch.float16)  # [n, S, 1]


def _f32(b: Tensor, at: int) -> Tensor:
    return copied(b[..., at : at + 4]).view(torch.float32)  # [n, S, 1]


def _words(b: Tensor, at: int, n: int) -> Int32[Tensor, "n S words"]:
    return copied(b[..., at : at + n]).view(torch.int32)


def _halves(words: Tensor) -> Tensor:
    """Return the quads of 16 bytes: the low halves, then the high ones."""
    return torch.cat([words & LOW, (words >> 4) & LOW], -1)


def _q4(b: Tensor, at: int) -> Tensor:
    return _halves(_words(b, at, 16)).unsqueeze(2)


def _q5(b: Tensor, at: int) -> Tensor:
    """Add the high bits, bit i of a word for number i. The product spreads 4 bits to the low bits of 4 bytes."""
    bits = _words(b, at, 4)
    high = torch.cat([((bits >> shift) & 0xF) * 0x00204081 & ONES for shift in range(0, 32, 4)], -1)
    return _q4(b, at + 4) | (high << 4).unsqueeze(2)


def _pairs(b: Tensor, at: int) -> Tensor:
    """Return the quads [n, S, 8, 8] of 4 x 32 bytes, each with two groups."""
    words = _words(b, at, 128).unflatten(-1, (4, 8))
    return torch.stack([words & LOW, (words >> 4) & LOW], -2).flatten(2, 3)


def _k_fields(b: Tensor) -> dict[str, Tensor]:
    """Return the fields of Q4_K and Q5_K: 6 bits each, of which those of groups 4 to 7 are in two places."""
    low, middle, high = b[..., 4:16].unflatten(-1, (3, 4)).unbind(-2)  # [n, S, 4]
    sc = torch.cat([low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)], -1)
    mn = torch.cat([middle & 0x3F, (high >> 4) | ((middle >> 2) & 0x30)], -1)
    return {"d": _f16(b, 0), "dmin": _f16(b, 2), "sc": sc, "mn": mn}


def _q5_k(b: Tensor) -> Parts:
    bits = _words(b, 16, 32)
    high = torch.stack([((bits >> g) & ONES) << 4 for g in range(8)], 2)
    return _pairs(b, 48) | high, _k_fields(b)


def _q6_k(b: Tensor) -> Parts:
    words, bits = _words(b, 0, 128).unflatten(-1, (2, 16)), _words(b, 128, 64).unflatten(-1, (2, 8))
    low = torch.cat([words & LOW, (words >> 4) & LOW], -1).unflatten(-1, (4, 8))  # [n, S, 2, 4, 8]
    high = torch.stack([((bits >> shift) & TWOS) << 4 for shift in range(0, 8, 2)], -2)
    sc = copied(b[..., 192:208]).view(torch.int8)
    return (low | high).flatten(2, 3), {"d": _f16(b, 208), "sc0": sc[..., 0::2], "sc1": sc[..., 1::2]}


def _iq4_xs(b: Tensor) -> Parts:
    low = torch.stack([b[..., 4:8] & 0x0F, b[..., 4:8] >> 4], -1).flatten(-2)
    high = torch.cat([(b[..., 2 + g // 4 : 3 + g // 4] >> (2 * (g % 4))) & 3 for g in range(8)], -1)
    sc = (low | (high << 4)).to(torch.int8) - 32
    return _halves(_words(b, 8, 128).unflatten(-1, (8, 4))), {"d": _f16(b, 0), "sc": sc}


PACKINGS = {
    "Q4_0": Packing("q4", 32, 18, lambda b: (_q4(b, 2), {"d": _f16(b, 0)})),
    "Q4_1": Packing("q4m", 32, 20, lambda b: (_q4(b, 4), {"d": _f16(b, 0), "m": _f16(b, 2)})),
    "Q5_0": Packing("q5", 32, 22, lambda b: (_q5(b, 2), {"d": _f16(b, 0)})),
    "Q5_1": Packing("q5m", 32, 24, lambda b: (_q5(b, 4), {"d": _f16(b, 0), "m": _f16(b, 2)})),
    "Q8_0": Packing("q8", 32, 34, lambda b: (_words(b, 2, 32).unsqueeze(2), {"d": _f16(b, 0)})),
    "Q4_K": Packing("q4k", 256, 144, lambda b: (_pairs(b, 16), _k_fields(b))),
    "Q5_K": Packing("q5k", 256, 176, _q5_k),
    "Q6_K": Packing("q6k", 256, 210, _q6_k),
    "IQ4_NL": Packing("iq4nl", 32, 18, lambda b: (_q4(b, 2), {"d": _f16(b, 0)})),
    "IQ4_XS": Packing("iq4xs", 256, 136, _iq4_xs),
    "Q4Z": Packing("q4z", 32, 21, lambda b: (_q4(b, 5), {"d": _f32(b, 0), "z": b[..., 4:5]})),
    "Q8F": Packing("q8f", 32, 36, lambda b: (_words(b, 4, 32).unsqueeze(2), {"d": _f32(b, 0)})),
    "MXFP4": Packing("mxfp4", 32, 17, lambda b: (_q4(b, 1), {"e": b[..., :1]})),
}


def pack_blocks(kind: str, rows: UInt8[Tensor, "O bytes"], name: str = "a tensor") -> PackedMatrix:
    """Pack the rows of a tensor of a type in `PACKINGS`, in chunks: no number is decoded.

    Args:
        kind: the name of the GGUF type.
        rows: the blocks of each row, for example mapped from a file.
        name: names the tensor in the error.

    Raises:
        CheckpointError: a scale or minimum is NaN or infinite.
    """
    packing = PACKINGS[kind]
    n_out, row_bytes = rows.shape
    assert row_bytes % packing.nbytes == 0, f"rows of {row_bytes} bytes are not blocks of {kind}"
    matrix = empty_matrix(packing.format, n_out, row_bytes // packing.nbytes * packing.size)
    step = max(1, CHUNK_BYTES // max(1, row_bytes * ROWS)) * ROWS
    for first in range(0, n_out, step):
        quads, fields = packing.parts(rows[first : first + step].unflatten(-1, (-1, packing.nbytes)))
        for key, value in fields.items():
            bad = value > MAX_EXPONENT if key == "e" else ~value.isfinite()
            if bool(bad.any()):
                row, block = bad.nonzero()[0, :2].tolist()
                raise CheckpointError(
                    f"{name}: block {block} of row {first + row} has a scale ({key}) that is NaN or infinite, because "
                    f"the file is damaged"
                )
        pack_rows(matrix, first, quads, fields)
    return matrix
