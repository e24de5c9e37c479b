"""GPTQ weights: 4-bit or 8-bit integers with a scale and a zero point per group, as AutoGPTQ and GPTQModel store them.

X.qweight  [I b / 32, O]  int32: 32 / b integers of b bits per word, for neighbouring inputs, the first in the low bits
X.qzeros   [G, O b / 32]  int32: the zero points in the same way, for neighbouring outputs
X.scales   [G, O]         float
X.g_idx    [I]            int32: the group of each input; i // group_size if it is missing

    weight[o, i] = scales[g, o] * (qweight[i, o] - qzeros[g, o]),  g = g_idx[i]

The format "gptq" stores each zero point minus 1. Writers subtract 1 from every field of a word at once, so a borrow
from a zero point of 0 goes to its neighbour; adding 1 to every field at once restores all of them. "gptq_v2" stores
the zero points themselves. With `desc_act`, g_idx is not ascending: the matrix was quantized in another order.

Sources: AutoGPTQ, `qlinear_cuda.py`; GPTQModel, `convert_gptq_v1_to_v2_format_module`.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from glassformer.errors import ConfigError
from glassformer.families.common.family import ConfigFields
from glassformer.formats.integer_matrix import FLOATS, IntegerMatrix, Part, signed, take_parts, unpack_words
from glassformer.formats.reader import TensorReader

ONES = {4: 0x11111111, 8: 0x01010101}  # 1 in every field of a word
# How the numbers were found, and which programs may use them. Which matrices are quantized is known from the tensors.
TUNING_KEYS = (
    "act_group_aware", "autoround_version", "backend", "batch_size", "block_name_to_quantize", "cache_block_outputs",
    "damp_auto_increment", "damp_percent", "dataset", "disable_exllama", "enable_minmax_tuning", "enable_quanted_input",
    "exllama_config", "gradient_accumulate_steps", "iters", "lm_head", "low_gpu_mem_usage", "lr", "max_input_length",
    "meta", "minmax_lr", "model_file_base_name", "model_name_or_path", "model_seqlen",
    "module_name_preceding_first_block", "modules_in_block_to_quantize", "modules_to_not_convert", "mse", "nsamples",
    "pad_token_id", "provider", "seqlen", "static_groups", "to_quant_block_names", "tokenizer", "true_sequential",
    "use_cuda_fp16", "use_exllama",
)  # fmt: skip


def read(fields: ConfigFields) -> partial[None]:
    """Read the settings of GPTQ; return the `unpack` that applies them. ConfigError: a setting is not supported."""
    fields.expect("bits", 4, 8)
    layout = check_format(fields, "gptq", "gptq_v2")
    fields.expect("is_marlin_format", False)
    fields.flag("sym", True)  # qzeros states the zero points of symmetric matrices, too
    check_integer_keys(fields)
    ordered = fields.flag("desc_act", False)
    size = read_group_size(fields)
    return partial(unpack, bits=fields.size("bits"), group_size=size, minus_one=layout == "gptq", ordered=ordered)


def check_format(fields: ConfigFields, *allowed: str) -> str:
    """Return the layout of the tensors, which three keys may state; the first of `allowed` if none does."""
    names = [name for name in ("checkpoint_format", "format", "version") if fields.take(name, None) is not None]
    for name in names:
        fields.expect(name, *allowed)
    values = {fields.raw[name] for name in names} or {allowed[0]}
    if len(values) > 1:
        raise ConfigError(f"{fields.source}: {' and '.join(names)} differ: {', '.join(sorted(values))}")
    return values.pop()


def check_integer_keys(fields: ConfigFields) -> None:
    """Check the keys that GPTQ and AWQ share."""
    fields.expect("pack_dtype", "int32")
    fields.expect("data_type", "int")
    dynamic = fields.take("dynamic", None) or {}
    if not isinstance(dynamic, dict) or not all(name.startswith("-:") for name in dynamic):
        raise ConfigError(
            f"{fields.source}: dynamic = {dynamic!r:.200} is not supported, only patterns that begin with '-:' "
            "(matrices that are not quantized)"
        )
    for name in TUNING_KEYS:
        fields.take(name, None)


def read_group_size(fields: ConfigFields) -> int:
    """Return the number of inputs of a group, or -1 for a group per row."""
    size = fields.take("group_size")
    if type(size) is not int or (size < 1 and size != -1):
        raise ConfigError(
            f"{fields.source}: group_size must be a whole number of at least 1, or -1 for a group per row, got {size!r}"
        )
    return size


class GptqMatrix(IntegerMatrix):
    """A GPTQ matrix. CheckpointError: the shapes or types of its parts do not fit."""

    def __init__(self, module: str, parts: dict[str, Part], *, bits: int, group_size: int, minus_one: bool):
        self.qweight, self.qzeros, self.stored_scales = parts["qweight"], parts["qzeros"], parts["scales"]
        self.qweight.require(("I32",))
        n_words, n_out = self.qweight.matrix_shape()
        super().__init__(
            self.qweight.file.path, f"{module}.weight", "GPTQ", (n_out, n_words * 32 // bits), bits, group_size,
            parts.get("g_idx"),
        )  # fmt: skip
        groups = f"{self.n_groups} groups of {self.group_size} inputs"
        self.stored_scales.require(FLOATS, (self.n_groups, n_out), because=f"a scale per output for each of {groups}")
        words = -(-n_out * bits // 32)
        self.qzeros.require(("I32",), (self.n_groups, words), because=f"{bits} bits per output for each of {groups}")
        self.minus_one = minus_one

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.qweight, self.qzeros, self.stored_scales

    def integers(self, first: int, last: int) -> Int8[Tensor, "n I"]:
        return signed(unpack_words(self.qweight.read()[:, first:last].T, self.bits), self.bits)

    def scales(self, first: int, last: int) -> Float[Tensor, "n G"]:
        return self.stored_scales.finite(columns=slice(first, last)).T

    def zeros(self, first: int, last: int) -> Int8[Tensor, "n G"]:
        per_word = 32 // self.bits
        words = self.qzeros.read()[:, first // per_word : -(-last // per_word)]
        if self.minus_one:
            words = words + torch.tensor(ONES[self.bits], dtype=torch.int32)
        return signed(unpack_words(words, self.bits)[:, : last - first].T, self.bits)


def unpack(reader: TensorReader, *, bits: int, group_size: int, minus_one: bool, ordered: bool) -> None:
    """Replace the parts of each GPTQ matrix by a `GptqMatrix`. CheckpointError: parts do not fit or are missing."""
    for name in [name for name in reader if name.endswith(".qweight")]:
        module = name.removesuffix(".qweight")
        required = ("qweight", "qzeros", "scales", *(("g_idx",) if ordered else ()))
        parts = take_parts(reader, module, required, ("g_idx",))
        matrix = GptqMatrix(module, parts, bits=bits, group_size=group_size, minus_one=minus_one)
        reader.files[f"{module}.weight"] = matrix
