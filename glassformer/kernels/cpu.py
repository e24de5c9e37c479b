"""Detect the instruction sets of this CPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16"})
NATIVE_FEATURES = {
    torch.bfloat16: BF16_FEATURES | {"bf16"},  # "bf16" and "asimdhp" are Arm's
    torch.float16: frozenset({"avx512_fp16", "amx_fp16", "asimdhp"}),
}


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the instruction sets that Linux reports, in its spelling; empty on other systems."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), ":")
    return frozenset(flags.partition(":")[2].split())


@cache
def multiplies_natively(dtype: torch.dtype) -> bool:
    """Whether this CPU has instructions for products of a dtype; without them PyTorch converts number by number."""
    return dtype not in NATIVE_FEATURES or bool(NATIVE_FEATURES[dtype] & cpu_features())
