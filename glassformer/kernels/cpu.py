"""Detect the instruction sets of this CPU."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch

BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16"})
NATIVE_FEATURES = {
    torch.bfloat16: BF16_FEATURES | {"bf16"},  # "bf16" and "asimdhp" are Arm's
    torch.float16: frozenset({"avx512_fp16", "amx_fp16", "asimdhp"}),
}
# Instruction sets that decide how fast a model runs, in Linux's spelling.
NOTABLE_FEATURES = (
    "avx", "avx2", "fma", "f16c", "bmi2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of the CPU, as Linux or Python reports it."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


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
