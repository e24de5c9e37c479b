"""AWQ weights: 4-bit integers with a scale and a zero point per group, in AutoAWQ's layout "gemm".

X.qweight  [I, O / 8]  int32: 8 integers per word, for neighbouring outputs in the order 0 2 4 6 1 3 5 7, low bits first
X.qzeros   [G, O / 8]  int32: the zero points in the same way
X.scales   [G, O]      float

    weight[o, i] = scales[g, o] * (qweight[i, o] - qzeros[g, o]),  g = i // group_size

Source: AutoAWQ, `WQLinear_GEMM.from_linear` and `dequantize_gemm`.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from glassformer.errors import ConfigError
from glassformer.families.common.family import ConfigFields
from glassformer.formats.gptq import check_format, check_integer_keys, read_group_size
from glassformer.formats.integer_matrix import FLOATS, IntegerMatrix, Part, signed, take_parts
from glassformer.formats.reader import TensorReader

BITS, PER_WORD = 4, 8
FIELDS = (0, 4, 1, 5, 2, 6, 3, 7)  # the field of a word that holds each of 8 outputs
TUNING_KEYS = ("do_fuse", "fuse_max_seq_len", "ignore", "modules_to_fuse")


def read(fields: ConfigFields) -> partial[None]:
    """Read the settings of AWQ; return the `unpack` that applies them. ConfigError: a setting is not supported."""
    fields.expect("bits", 4)
    check_format(fields, "gemm", "GEMM")
    fields.flag("zero_point", True)  # qzeros states the zero points of symmetric matrices, too
    fields.flag("sym", False)
    fields.expect("desc_act", False)
    if fields.take("backend", None) == "llm-awq":
        raise ConfigError(f"{fields.source}: backend = 'llm-awq' is not supported, only AutoAWQ's layout 'gemm'")
    check_integer_keys(fields)
    for name in TUNING_KEYS:
        fields.take(name, None)
    return partial(unpack, group_size=read_group_size(fields))


class AwqMatrix(IntegerMatrix):
    """An AWQ matrix. CheckpointError: the shapes or types of its parts do not fit."""

    def __init__(self, module: str, parts: dict[str, Part], group_size: int):
        self.qweight, self.qzeros, self.stored_scales = parts["qweight"], parts["qzeros"], parts["scales"]
        self.qweight.require(("I32",))
        n_in, n_words = self.qweight.matrix_shape()
        n_out = n_words * PER_WORD
        super().__init__(self.qweight.file.path, f"{module}.weight", "AWQ", (n_out, n_in), BITS, group_size)
        groups = f"{self.n_groups} groups of {self.group_size} inputs"
        self.stored_scales.require(FLOATS, (self.n_groups, n_out), because=f"a scale per output for each of {groups}")
        self.qzeros.require(("I32",), (self.n_groups, n_words), because=f"4 bits per output for each of {groups}")

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.qweight, self.qzeros, self.stored_scales

    def integers(self, first: int, last: int) -> Int8[Tensor, "n I"]:
        return self._unpack(self.qweight, first, last)

    def scales(self, first: int, last: int) -> Float[Tensor, "n G"]:
        return self.stored_scales.finite(columns=slice(first, last)).T

    def zeros(self, first: int, last: int) -> Int8[Tensor, "n G"]:
        return self._unpack(self.qzeros, first, last)

    def _unpack(self, part: Part, first: int, last: int) -> Int8[Tensor, "n N"]:
        """Return the integers of a part [N, O / 8], those of each output together and in order."""
        words = part.read()[:, first // PER_WORD : last // PER_WORD].T.contiguous()  # [n / 8, N]
        q = torch.empty(len(words), PER_WORD, words.shape[1], dtype=torch.uint8)
        for output, field in enumerate(FIELDS):
            q[:, output] = (words >> (BITS * field)) & 15
        return signed(q.flatten(0, 1), BITS)


def unpack(reader: TensorReader, *, group_size: int) -> None:
    """Replace the parts of each AWQ matrix by an `AwqMatrix`. CheckpointError: parts do not fit or are missing."""
    for name in [name for name in reader if name.endswith(".qweight")]:
        module = name.removesuffix(".qweight")
        parts = take_parts(reader, module, ("qweight", "qzeros", "scales"))
        reader.files[f"{module}.weight"] = AwqMatrix(module, parts, group_size)
