"""The limits of this machine, measured: the rates of memory reads and of matrix products, and the memory of a process.

Prefill is bound by the rate of matrix products, decoding by memory bandwidth: each step reads every weight once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

WIDTH = 2048  # rows and columns of the weight matrix
N_TOKENS = 256  # rows of its input, as in the prefill of a prompt


@dataclass(frozen=True)
class Limits:
    """Bytes read per second from memory, and floating-point operations per second of a float32 matrix product."""

    memory_rate: float
    matrix_rate: float


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: adds the time of all threads, so use one


def measure_limits(device: torch.device, clock: str = "wall") -> Limits:
    """Measure the limits of a device with torch's threads. clock: a key of `CLOCKS`."""
    return Limits(memory_rate(device, clock), matrix_rate(device, clock))


def memory_rate(device: torch.device, clock: str = "wall", size: int = 1 << 28, rounds: int = 7) -> float:
    """Return the bytes per second of reading one tensor far larger than the CPU caches; the best of `rounds`."""
    data = torch.ones(size // 4, dtype=torch.float32, device=device)
    return size / min(_seconds(data.sum, device, clock) for _ in range(rounds))


def matrix_rate(device: torch.device, clock: str = "wall", rounds: int = 7) -> float:
    """Return the floating-point operations per second of x W^T in float32; the best of `rounds`."""
    x, w = torch.randn(N_TOKENS, WIDTH, device=device), torch.randn(WIDTH, WIDTH, device=device)
    return 2.0 * N_TOKENS * WIDTH * WIDTH / min(_seconds(lambda: x @ w.T, device, clock) for _ in range(rounds))


def resident_bytes() -> int | None:
    """Return the bytes of this process in memory, mapped files included; None on systems that do not report it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), None)


def _seconds(work: Callable[[], object], device: torch.device, clock: str) -> float:
    """Return the seconds until the device has finished the work."""
    now = CLOCKS[clock]
    begin = now()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return now() - begin
