"""Tiny checkpoints with quantized matrices, written from the definitions of the formats with NumPy loops."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny

from glassformer.formats import load_decoder, save_model

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
SIZES = {"d_model": 128} | {
    f"layers.{i}.{path}": value
    for i in range(3)
    for path, value in (("mlp.d_ff", 256), ("attention.head_dim", 32), ("attention.n_kv_heads", 2),
                        ("attention.n_heads", 4))
}  # fmt: skip


@dataclass
class Integers:
    """A random matrix of unsigned integers: weight[o, i] = scale[o, g] * (q[o, i] - zero[o, g]), g = group[i]."""

    q: np.ndarray  # [O, I]
    scale: np.ndarray  # [O, G] float16
    zero: np.ndarray  # [O, G]
    group: np.ndarray  # [I]
    bits: int

    @property
    def weight(self) -> np.ndarray:
        """The matrix in float64."""
        weight = np.empty(self.q.shape)
        for o, i in np.ndindex(*self.q.shape):
            g = self.group[i]
            weight[o, i] = float(self.scale[o, g]) * (int(self.q[o, i]) - int(self.zero[o, g]))
        return weight


def random_integers(shape, bits, group_size, *, symmetric=False, ordered=False, seed=0, magnitude=1.0) -> Integers:
    """Draw a matrix. Zero points include 0 and 2^bits - 1; `ordered`: the group of each input is random."""
    rng, (n_out, n_in) = np.random.default_rng(seed), shape
    size = n_in if group_size == -1 else group_size
    n_groups, top = n_in // size, 1 << bits
    zero = np.full((n_out, n_groups), top // 2) if symmetric else rng.integers(0, top, (n_out, n_groups))
    if not symmetric:
        zero[0, 0], zero[-1, -1] = 0, top - 1
    scale = (rng.uniform(0.2, 1, (n_out, n_groups)) * magnitude * 4 / top).astype(np.float16)
    group = np.arange(n_in) // size
    return Integers(rng.integers(0, top, shape), scale, zero, rng.permutation(group) if ordered else group, bits)


def words(fields: np.ndarray, bits: int) -> np.ndarray:
    """Pack the last axis into int32 words, the first field in the lowest bits; zeros fill the last word."""
    per_word = 32 // bits
    out = np.zeros((*fields.shape[:-1], -(-fields.shape[-1] // per_word)), np.uint64)
    for i in range(fields.shape[-1]):
        out[..., i // per_word] += fields[..., i].astype(np.uint64) << np.uint64(bits * (i % per_word))
    return out.astype(np.uint32)


def tensor(values: np.ndarray) -> torch.Tensor:
    if values.dtype == np.uint32:
        values = values.view(np.int32)
    return torch.from_numpy(np.ascontiguousarray(values))


def gptq_parts(matrix: Integers, minus_one: bool, g_idx: bool = True) -> dict[str, torch.Tensor]:
    """GPTQ: qweight packed along the inputs, qzeros along the outputs; "gptq" subtracts 1 in every field of a word."""
    zeros = words(matrix.zero.T, matrix.bits)
    if minus_one:
        zeros = zeros - np.uint32(sum(1 << shift for shift in range(0, 32, matrix.bits)))
    parts = {
        "qweight": tensor(words(matrix.q, matrix.bits).T),
        "qzeros": tensor(zeros),
        "scales": tensor(matrix.scale.T),
    }
    return parts | ({"g_idx": tensor(matrix.group.astype(np.int32))} if g_idx else {})


def awq_words(fields: np.ndarray) -> np.ndarray:
    """Pack the outputs, the last axis: field i of a word is output `AWQ_ORDER[i]` of its 8."""
    out = np.zeros((fields.shape[0], fields.shape[1] // 8), np.uint32)
    for column in range(out.shape[1]):
        for i, output in enumerate(AWQ_ORDER):
            out[:, column] |= (fields[:, 8 * column + output] << (4 * i)).astype(np.uint32)
    return out


def awq_parts(matrix: Integers) -> dict[str, torch.Tensor]:
    """AWQ "gemm": everything [in, out], packed along the outputs."""
    return {
        "qweight": tensor(awq_words(matrix.q.T)),
        "qzeros": tensor(awq_words(matrix.zero.T)),
        "scales": tensor(matrix.scale.T),
    }


def packed_parts(matrix: Integers, symmetric: bool) -> dict[str, torch.Tensor]:
    """compressed-tensors, pack-quantized: unsigned integers packed along the inputs, zero points along the outputs."""
    parts = {
        "weight_packed": tensor(words(matrix.q, matrix.bits)),
        "weight_scale": tensor(matrix.scale),
        "weight_shape": torch.tensor(matrix.q.shape),
    }
    return parts if symmetric else parts | {"weight_zero_point": tensor(words(matrix.zero.T, matrix.bits).T)}


def int8_parts(matrix: Integers, symmetric: bool) -> dict[str, torch.Tensor]:
    """compressed-tensors, int-quantized: signed integers."""
    parts = {"weight": tensor((matrix.q - 128).astype(np.int8)), "weight_scale": tensor(matrix.scale)}
    return parts if symmetric else parts | {"weight_zero_point": tensor((matrix.zero - 128).astype(np.int8))}


Make = Callable[[tuple[int, int], int, float], tuple[dict[str, torch.Tensor], np.ndarray]]


def save_quantized(folder, family: str, settings: dict, make: Make) -> tuple[dict, dict]:
    """Save a tiny model whose linear layers in blocks are quantized.

    Args:
        settings: the `quantization_config`.
        make: (shape, seed, magnitude) to the stored parts and the decoded matrix.

    Returns:
        The decoded weights and the file's tensors, by name.
    """
    model = tiny(family, **SIZES)
    save_model(model, folder)
    plain, tensors = load_file(folder / "model.safetensors"), {}
    for seed, (name, value) in enumerate(plain.items()):
        if (
            value.ndim == 2
            and ".layers." in name
            and "mlp.gate.weight" not in name
            and "block_sparse_moe.gate" not in name
        ):
            parts, weight = make(tuple(value.shape), seed, float(value.abs().max()))
            tensors |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in parts.items()}
            plain[name] = torch.from_numpy(weight).float()
        else:
            tensors[name] = value
    raw = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(tensors, folder / "model.safetensors")
    return plain, tensors


def load_changed(saved, folder, changes, settings=None, **options):
    """Load a changed copy of a model that `save_quantized` saved.

    Args:
        saved: its folder and the file's tensors.
        folder: where the copy is saved.
        changes: tensors by name; None removes one.
        settings: keys of the `quantization_config` that replace others.
        options: of `load_decoder`.
    """
    source, tensors = saved
    raw = json.loads((source / "config.json").read_text())
    raw["quantization_config"] |= settings or {}
    (folder / "config.json").write_text(json.dumps(raw))
    kept = {name: value.contiguous() for name, value in (tensors | changes).items() if value is not None}
    save_file(kept, folder / "model.safetensors")
    return load_decoder(folder, **options)
