"""The formats of compressed-tensors (llm-compressor): packed integers, int8, and FP8.

pack-quantized   X.weight_packed      [O, I b / 32]  int32: 32 / b integers of b = 4 or 8 bits per word, low bits first,
                                                     each plus 2^(b - 1)
                 X.weight_shape       [2]            O and I
                 X.weight_scale       [O, G]         float; G = 1 for the strategy "channel"
                 X.weight_zero_point  [O b / 32, G]  int32, packed along the outputs; missing if all are 0
                 X.weight_g_idx       [I]            the group of each input, for actorder = "group"
int-quantized    X.weight             [O, I]         int8
                 X.weight_scale       [O, G], [O, 1] or [1]: the strategies "group", "channel" and "tensor"
                 X.weight_zero_point  the same shape int8; missing if all are 0
float-quantized  X.weight             [O, I]         FP8 (E4M3)
                 X.weight_scale       [O, 1], [1], or a scale per block

    weight = scale * (integer - zero point)

"naive-quantized" is int-quantized or float-quantized. The scales of quantized activations and caches are
not used: see `docs/checkpoints.md`. Source: compressed-tensors, `compressors/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from glassformer.errors import CheckpointError, ConfigError
from glassformer.families.common.family import ConfigFields
from glassformer.formats.fp8 import Fp8Tensor, is_block
from glassformer.formats.gptq import read_group_size
from glassformer.formats.integer_matrix import FLOATS, IntegerMatrix, Part, signed, take_parts, unpack_words
from glassformer.formats.reader import TensorFile, TensorReader

NAME = "compressed-tensors"
PACKED, INTEGER, FLOAT, EITHER = "pack-quantized", "int-quantized", "float-quantized", "naive-quantized"
FORMATS = {PACKED: ("int",), INTEGER: ("int",), FLOAT: ("float",), EITHER: ("int", "float")}
STRATEGIES = {"int": ("tensor", "channel", "group"), "float": ("tensor", "channel", "block")}
TYPES = {"I8": INTEGER, "F8_E4M3": FLOAT}  # stored types of X.weight
# Scales of activations and of the cache.
ACTIVATION_SCALES = re.compile(r".+\.((input|output)_(scale|zero_point)|[qkv]_(scale|zero_point))")
GROUP_IDS = ("group", "dynamic")  # values of actorder with a stored group of each input


@dataclass(frozen=True)
class Scheme:
    """How the matrices of one of the config's groups are stored.

    Attributes:
        format: "pack-quantized", "int-quantized" or "float-quantized".
        bits: 4 or 8.
        strategy: what has one scale: "tensor", "channel" (a row), "group" (inputs of a row) or "block".
        group_size: the inputs of a group; -1: a row is one group.
        block: the rows and columns of a block.
        symmetric: there are no zero points.
        ordered: the group of each input is stored.
    """

    format: str
    bits: int
    strategy: str
    group_size: int = -1
    block: tuple[int, int] = (0, 0)
    symmetric: bool = True
    ordered: bool = False


def read(fields: ConfigFields) -> partial[None]:
    """Read the settings of compressed-tensors; return the `unpack` that applies them.

    Raises:
        ConfigError: a setting is not supported.
    """
    overall = fields.take("format", None)
    groups = fields.take("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()) or not groups:
        raise ConfigError(f"{fields.source}: config_groups must map names to objects with weights, got {groups!r:.200}")
    for name in ("sparsity_config", "transform_config", "moe_sparsity_config"):
        value = fields.take(name, None)
        if value not in (None, {}) and not (isinstance(value, dict) and value.get("format") == "dense"):
            raise ConfigError(f"{fields.source}: {name} = {value!r:.200} is not supported, only none")
    for name in ("quantization_status", "ignore", "kv_cache_scheme", "global_compression_ratio", "version",
                 "run_compressed", "dequantize", "provider"):  # fmt: skip
        fields.take(name, None)
    schemes = [
        _read_group(ConfigFields(group, f"{fields.source}.config_groups.{name}"), overall)
        for name, group in groups.items()
    ]
    return partial(unpack, schemes=schemes)


def _read_group(fields: ConfigFields, overall: object) -> Scheme:
    """Read one group of settings; `overall` is the format of groups that state none."""
    name = fields.take("format", None) or overall
    if not isinstance(name, str) or name not in FORMATS:
        raise ConfigError(f"{fields.source}: format = {name!r} is not supported, only {', '.join(FORMATS)}")
    for other in ("targets", "input_activations", "output_activations"):
        fields.take(other, None)
    raw = fields.take("weights")
    fields.close()
    if not isinstance(raw, dict):
        raise ConfigError(f"{fields.source}: weights must be an object, got {raw!r}")
    weights = ConfigFields(raw, f"{fields.source}.weights")
    weights.expect("type", *FORMATS[name])
    kind = raw.get("type", FORMATS[name][0])
    weights.expect("num_bits", *((4, 8) if name == PACKED else (8,)))
    size, block = raw.get("group_size"), weights.take("block_structure", None)
    inferred = "tensor" if size is None else "channel" if size == -1 else "group"
    strategy = weights.take("strategy", None) or inferred
    allowed = ("channel", "group") if name == PACKED else STRATEGIES[kind]
    if strategy not in allowed:
        raise ConfigError(f"{weights.source}: strategy = {strategy!r} is not supported, only {', '.join(allowed)}")
    size = read_group_size(weights) if strategy == "group" else -1
    weights.take("group_size", None)
    if strategy == "block" and not is_block(block):
        raise ConfigError(f"{weights.source}: block_structure must be two sizes, [rows, columns], got {block!r}")
    weights.expect("dynamic", False)
    weights.expect("actorder", None, False, "weight", "static", *(GROUP_IDS if name == PACKED else ()))
    for other in ("observer", "observer_kwargs", "scale_dtype", "zp_dtype"):
        weights.take(other, None)
    scheme = Scheme(
        format={"int": INTEGER, "float": FLOAT}[kind] if name == EITHER else name,
        bits=weights.size("num_bits"),
        strategy=strategy,
        group_size=size,
        block=(block[0], block[1]) if strategy == "block" else (0, 0),
        symmetric=weights.flag("symmetric", True),
        ordered=raw.get("actorder") in GROUP_IDS,
    )
    weights.close()
    return scheme


class PackedIntegers(IntegerMatrix):
    """A matrix of the format "pack-quantized". CheckpointError: the shapes or types of its parts do not fit."""

    def __init__(self, module: str, parts: dict[str, Part], scheme: Scheme):
        self.packed, self.stored_scales = parts["weight_packed"], parts["weight_scale"]
        self.stored_zeros = parts.get("weight_zero_point")
        path, bits = self.packed.file.path, scheme.bits
        parts["weight_shape"].require(("I64", "I32"), (2,))
        n_out, n_in = parts["weight_shape"].read().tolist()
        words = -(-n_in * bits // 32)
        self.packed.require(("I32",), (n_out, words), because=f"{bits} bits for each of {n_out} x {n_in} weights")
        super().__init__(
            path, f"{module}.weight", NAME, (n_out, n_in), bits, scheme.group_size, parts.get("weight_g_idx")
        )
        groups = f"{self.n_groups} groups of {self.group_size} inputs"
        self.stored_scales.require(FLOATS, (n_out, self.n_groups), because=f"a scale per output for each of {groups}")
        if self.stored_zeros is not None:
            words = -(-n_out * bits // 32)
            self.stored_zeros.require(
                ("I32",), (words, self.n_groups), because=f"{bits} bits per output for each of {groups}"
            )

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.packed, self.stored_scales, *(() if self.stored_zeros is None else (self.stored_zeros,))

    def integers(self, first: int, last: int) -> Int8[Tensor, "n I"]:
        return signed(unpack_words(self.packed.read()[first:last], self.bits)[:, : self.n_in], self.bits)

    def scales(self, first: int, last: int) -> Float[Tensor, "n G"]:
        return self.stored_scales.finite(slice(first, last))

    def zeros(self, first: int, last: int) -> Int8[Tensor, "n G"]:
        if self.stored_zeros is None:
            return torch.zeros(last - first, self.n_groups, dtype=torch.int8)
        per_word = 32 // self.bits
        words = self.stored_zeros.read()[first // per_word : -(-last // per_word)]
        return signed(unpack_words(words.T, self.bits)[:, : last - first].T, self.bits)


class Int8Matrix(IntegerMatrix):
    """A matrix of the format "int-quantized". CheckpointError: the shapes or types of its parts do not fit."""

    def __init__(self, module: str, parts: dict[str, Part], scheme: Scheme):
        self.weight, self.stored_scales = parts["weight"], parts["weight_scale"]
        self.stored_zeros = parts.get("weight_zero_point")
        shape = self.weight.matrix_shape()
        super().__init__(self.weight.file.path, f"{module}.weight", NAME, shape, 8, scheme.group_size)
        self.one_scale = scheme.strategy == "tensor"
        shapes = [(1,), ()] if self.one_scale else [(shape[0], self.n_groups)]
        self.stored_scales.require(FLOATS, *shapes, because=f"one scale per {scheme.strategy}")
        if self.stored_zeros is not None:
            self.stored_zeros.require(("I8",), *shapes, because=f"one zero point per {scheme.strategy}")

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.weight, self.stored_scales, *(() if self.stored_zeros is None else (self.stored_zeros,))

    def integers(self, first: int, last: int) -> Int8[Tensor, "n I"]:
        return self.weight.read()[first:last]

    def scales(self, first: int, last: int) -> Float[Tensor, "n G"]:
        rows = None if self.one_scale else slice(first, last)
        return self.stored_scales.finite(rows).expand(last - first, self.n_groups)

    def zeros(self, first: int, last: int) -> Int8[Tensor, "n G"]:
        if self.stored_zeros is None:
            return torch.zeros(last - first, self.n_groups, dtype=torch.int8)
        zeros = self.stored_zeros.read()
        return (zeros if self.one_scale else zeros[first:last]).expand(last - first, self.n_groups)


def fp8_matrix(module: str, parts: dict[str, Part], scheme: Scheme) -> Fp8Tensor:
    """Return a matrix of the format "float-quantized"."""
    weight, scales = parts["weight"], parts["weight_scale"]
    n_out, n_in = weight.matrix_shape()
    block = {"tensor": (n_out, n_in), "channel": (1, n_in), "block": scheme.block}[scheme.strategy]
    return Fp8Tensor(weight.file, weight.name, scales.file, scales.name, block)


MAKE: dict[str, Callable[[str, dict[str, Part], Scheme], TensorFile]] = {
    PACKED: PackedIntegers, INTEGER: Int8Matrix, FLOAT: fp8_matrix,
}  # fmt: skip


def unpack(reader: TensorReader, *, schemes: list[Scheme]) -> None:
    """Replace the parts of each quantized matrix by one tensor.

    Raises:
        CheckpointError: parts are missing, or do not fit any of the schemes.
    """
    for name in list(reader):
        module, _, role = name.rpartition(".")
        if ACTIVATION_SCALES.fullmatch(name):
            del reader.files[name]
        elif role == "weight_packed":
            required = ("weight_packed", "weight_scale", "weight_shape")
            parts = take_parts(reader, module, required, ("weight_zero_point", "weight_g_idx"))
            reader.files[f"{module}.weight"] = _matrix(PACKED, module, parts, schemes)
        elif role == "weight" and reader.stored_type(name) in TYPES:
            stored_as = TYPES[reader.stored_type(name)]
            optional = ("weight_zero_point",) if stored_as == INTEGER else ()
            parts = take_parts(reader, module, ("weight", "weight_scale"), optional)
            reader.files[name] = _matrix(stored_as, module, parts, schemes)


def _matrix(stored_as: str, module: str, parts: dict[str, Part], schemes: list[Scheme]) -> TensorFile:
    """Return the matrix by the first scheme that fits it."""
    path, errors = next(iter(parts.values())).file.path, []
    for scheme in schemes:
        if scheme.format != stored_as:
            continue
        needed = {"weight_zero_point": not scheme.symmetric, "weight_g_idx": scheme.ordered}
        if missing := [f"{module}.{role}" for role, need in needed.items() if need and role not in parts]:
            errors.append(CheckpointError(f"{path}: {module} cannot be decoded without {', '.join(missing)}"))
            continue
        try:
            return MAKE[stored_as](module, parts, scheme)
        except CheckpointError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    stated = ", ".join(sorted({scheme.format for scheme in schemes}))
    raise CheckpointError(f"{path}: {module} is stored as {stored_as}, but config.json states only {stated}")
