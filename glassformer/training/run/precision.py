"""The dtype of training, the measured rate of matrix products, and the tuning of malloc."""

from __future__ import annotations

import ctypes
import platform
import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from glassformer.errors import ConfigError
from glassformer.kernels.cpu import BF16_FEATURES
from glassformer.nn.linear import TiedLinear

Precision = Literal["float32", "bfloat16"]
MIN_BF16_WIDTH = 64  # d_model; a bfloat16 step takes 0.8 of the CPU time of a float32 step there, 0.7 at 128


@dataclass(frozen=True)
class PrecisionChoice:
    """A dtype and the reason for it, which is printed at start."""

    dtype: Precision
    because: str

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


def cuda_has_bf16() -> bool:
    """Return whether the GPU multiplies bfloat16 natively."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def choose_precision(
    *,
    requested: str,
    device: str,
    features: frozenset[str] = frozenset(),
    cuda_bf16: bool = False,
    width: int = 1024,
    recurrent: bool = False,
) -> PrecisionChoice:
    """Choose the dtype of matrix products; weights, optimizer, norms and softmax stay in float32 (autocast).

    Args:
        requested: auto, float32 or bfloat16.
        width: d_model.
        recurrent: whether the model is recurrent.

    Raises ConfigError for another dtype, and for bfloat16 with a recurrent model.
    """
    kind = device.partition(":")[0]
    if recurrent and requested in ("auto", "bfloat16"):
        if requested == "bfloat16":
            raise ConfigError(
                "dtype must be auto or float32 for a recurrent model, whose state is rounded at each step, got bfloat16"
            )
        return PrecisionChoice("float32", "a recurrent model would round its state at each step")
    if requested == "float32":
        return PrecisionChoice("float32", "requested")
    if requested == "bfloat16":
        return PrecisionChoice("bfloat16", "requested")
    if requested != "auto":
        raise ConfigError(f"dtype must be auto, float32 or bfloat16, got {requested!r}")
    if kind == "cuda":
        if cuda_bf16:
            return PrecisionChoice("bfloat16", "this GPU multiplies bfloat16 natively")
        return PrecisionChoice("float32", "this GPU has no native bfloat16")
    if kind != "cpu":
        return PrecisionChoice("float32", f"bfloat16 training is not measured on {kind}")
    found = sorted(BF16_FEATURES & features)
    if not found:
        return PrecisionChoice("float32", "this CPU has neither avx512_bf16 nor amx_bf16")
    if width < MIN_BF16_WIDTH:
        return PrecisionChoice("float32", f"at d_model {width} casting costs more than {found[-1]} saves")
    return PrecisionChoice("bfloat16", f"this CPU has {found[-1]}")


def matrix_shapes(model: nn.Module) -> Counter[tuple[int, int]]:
    """Count the [out, in] shapes of all matrices that each token is multiplied with, including the head."""
    matrices = (m.weight for m in model.modules() if isinstance(m, nn.Linear | TiedLinear))
    return Counter((weight.shape[0], weight.shape[1]) for weight in matrices)


def matrix_flops_per_token(shapes: Counter[tuple[int, int]]) -> int:
    """Return the FLOPs of a training step's matrix products per token: 6 per weight (2 forward, 4 backward).

    The products inside attention (scores, and probabilities times values) are not counted.
    """
    return sum(6 * rows * columns * count for (rows, columns), count in shapes.items())


def measure_matrix_rate(
    shapes: Counter[tuple[int, int]], tokens: int, dtype: torch.dtype, device: str = "cpu", seconds: float = 0.5
) -> float:
    """Measure the FLOP/s of the model's matrix products alone, the upper bound of a training step's rate.

    Method: for each distinct [out, in], with x [tokens, in] and gradient g [tokens, out], the three products of a
    training step (x W^T, g W, g^T x) in `dtype` into existing buffers: one round of warm-up, then the fastest of the
    rounds that fit into the shape's share of `seconds` (2 to 19). Shapes are weighted by how often they occur.
    """
    share = seconds / max(1, len(shapes))
    generator = torch.Generator(device)  # its own, so that the run's generator does not advance
    total_flops = total_seconds = 0.0
    for (rows, columns), count in shapes.items():
        x, g, w = (
            torch.empty(shape, device=device).normal_(generator=generator).to(dtype)
            for shape in ((tokens, columns), (tokens, rows), (rows, columns))
        )
        y, dx, dw = torch.empty_like(g), torch.empty_like(x), torch.empty_like(w)
        best, begin, rounds = float("inf"), time.perf_counter(), 0
        while rounds < 3 or (rounds < 20 and time.perf_counter() - begin < share):
            start = time.perf_counter()
            torch.mm(x, w.T, out=y)
            torch.mm(g, w, out=dx)
            torch.mm(g.T, x, out=dw)
            if x.is_cuda:
                torch.cuda.synchronize()
            if rounds:
                best = min(best, time.perf_counter() - start)
            rounds += 1
        total_flops += 6.0 * tokens * rows * columns * count
        total_seconds += best * count
    return total_flops / total_seconds


def tune_malloc() -> bool:
    """Make glibc keep the memory of freed tensors for the next step; return whether it does.

    By default malloc maps blocks above a threshold (at most 32 MB) anew, unmaps them when freed and trims its heap,
    and a training step spends its time in page faults. See mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD. The change
    is permanent for the process, so only entry points of training call this. Does nothing without glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, mmap_threshold = -1, -3
    return bool(mallopt(mmap_threshold, 32 << 20)) & bool(mallopt(trim_threshold, 2**31 - 1))
