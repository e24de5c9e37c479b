"""Quantize a model's matrices at load: groups of 32 weights of a row, with one searched float16 scale.

    int8   q8   8.5 bits per weight   scale q, q from -127 to 127
    int4   q4   4.5 bits per weight   scale (q - 8), q from 0 to 15; embeddings and heads are q8

These formats of `packed.py` have the least error for their bits, of those with one level of scales: a minimum per group
(q4m) takes half a bit more and reduces the error by 14%. Errors of embeddings and heads cost the most accuracy: see
`bench/perplexity.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.errors import CheckpointError, shortened
from glassformer.kernels.packed import FORMATS, GROUP, ROWS, PackedMatrix, empty_matrix, pack_rows
from glassformer.kernels.packed_linear import can_replace, replace_matrix
from glassformer.kernels.placement import Quantize
from glassformer.kernels.scale_search import LARGEST, as_half, rounded, search_scale

LIMITS = {"q8": (-127, 127), "q4": (-8, 7)}  # of the integers; q4 stores them plus 8
STARTS = {"q8": (0.0,), "q4": (-0.6, 0.0, 0.6)}  # of `search_scale`
CHUNK = 1 << 17  # weights quantized at a time: they stay in the cache


@dataclass(frozen=True)
class QuantizedMatrix:
    """One matrix: its parameter's name, its shape, its format, and its relative error.

    error: the root-mean-square of the differences, divided by that of the weights.
    """

    name: str
    shape: tuple[int, int]
    format: str
    error: float


@dataclass(frozen=True)
class Quantization:
    """What `quantize_model` did. `left`: the matrices that stay floats, by the names of their parameters."""

    kind: Quantize
    matrices: tuple[QuantizedMatrix, ...]
    left: tuple[str, ...]

    @property
    def bits_per_weight(self) -> float:
        """The bits of an average weight of the quantized matrices."""
        sizes = {one: prod(one.shape) for one in self.matrices}
        return sum(size * FORMATS[one.format].bits_per_weight for one, size in sizes.items()) / sum(sizes.values())

    @property
    def mean_error(self) -> float:
        return sum(one.error for one in self.matrices) / len(self.matrices)

    def __str__(self) -> str:
        worst = max(self.matrices, key=lambda one: one.error)
        errors = f"relative error {100 * self.mean_error:.2f}% on average, {100 * worst.error:.2f}% in {worst.name}"
        floats = f"; matrices that stay floats: {shortened(self.left)}" if self.left else ""
        return (
            f"{self.kind}: {len(self.matrices)} matrices, {self.bits_per_weight:.1f} bits per weight, {errors}{floats}"
        )


def quantize_model(
    model: nn.Module, kind: Quantize, source: str, progress: Callable[[int, int], None] | None = None
) -> Quantization:
    """Replace the matrices of a model's linear layers and embeddings by packed ones; other parameters become float32.

    Routers of experts, matrices whose rows are no multiple of 32, and those of neither a linear layer nor an embedding
    stay floats.

    Args:
        source: the name of the model in error messages.
        progress: called after each matrix with the weights done, and all of them.

    Raises:
        CheckpointError: a weight is not finite or larger than 65,504, or no matrix can be quantized.
    """
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2}
    chosen = [name for name, p in matrices.items() if _fits(model, name, p)]
    if not chosen:
        raise CheckpointError(
            f"{source} cannot be quantized: it has no matrix with rows of a multiple of {GROUP} weights"
        )
    done, total, found = 0, sum(matrices[name].numel() for name in chosen), []
    for name in chosen:
        weight = matrices.pop(name)
        packed, error = quantize_matrix(weight.detach(), _format(model, name, kind), f"{source}: {name}")
        replace_matrix(model, name, packed)
        found.append(QuantizedMatrix(name, (packed.n_out, packed.n_in), packed.format, error))
        done += weight.numel()
        if progress is not None:
            progress(done, total)
    model.float()
    return Quantization(kind, tuple(found), tuple(matrices))


def _fits(model: nn.Module, name: str, weight: Tensor) -> bool:
    return can_replace(model, name) and weight.shape[1] % GROUP == 0 and ".router." not in name


def _format(model: nn.Module, name: str, kind: Quantize) -> str:
    table = isinstance(model.get_submodule(name.removesuffix(".weight")), nn.Embedding)
    return "q8" if kind == "int8" or table or name.split(".")[-2] == "head" else "q4"


def quantize_matrix(weight: Float[Tensor, "O I"], name: str, source: str) -> tuple[PackedMatrix, float]:
    """Return a matrix in the format `name`, and its relative error. Other errors: see `quantize_model`."""
    matrix, layout = empty_matrix(name, *weight.shape), FORMATS[name]
    low, high = LIMITS[name]
    squares = torch.zeros(2, dtype=torch.float64)  # of the differences, of the weights
    n = max(1, CHUNK // (ROWS * matrix.n_in)) * ROWS
    for first in range(0, matrix.n_out, n):
        groups = weight[first : first + n].float().reshape(-1, GROUP)
        largest = groups.abs().max().item()
        if not largest <= LARGEST:
            raise CheckpointError(
                f"{source}: weights must be finite and at most {LARGEST:,.0f}, the largest is {largest}"
            )
        scale = as_half(search_scale(groups, low, high, starts=STARTS[name], rounds=1)[:, None])
        q = rounded(groups, scale, low, high)
        squares += torch.stack([(scale * q - groups).square().sum(), groups.square().sum()])
        stored = (q + layout.zero).to(torch.int8).view(-1, matrix.n_in // GROUP, 1, GROUP)
        pack_rows(matrix, first, stored.view(torch.int32), {"d": scale.view(-1, matrix.n_in // GROUP, 1)})
    off, size = squares.sqrt().tolist()
    return matrix, off / size if size else 0.0
