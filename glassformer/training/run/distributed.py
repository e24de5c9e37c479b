"""One run on several processes: data parallelism with torchrun.

Each process computes the gradients of *summed* losses of its own sequences. Gradients and counted tokens are summed
over all processes, and the sum is divided by all counted tokens. The result is that of one process with the same global
batch, also where processes have different numbers of counted targets. The first process writes all files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(hours=2)  # the other processes wait while the first prepares the data


@dataclass(frozen=True)
class ProcessGroup:
    """The rank of this process and the number of processes of the run."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def all_reduce_step(self, grads: Sequence[Tensor], counts: Tensor) -> None:
        """Sum gradients, and counts (loss, tokens, stop requests; float64, which is exact), over all processes."""
        if self.size > 1:
            for tensor in (*grads, counts):
                dist.all_reduce(tensor)

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum `values` in place over all processes and return them."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return the first process's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


SINGLE_PROCESS = ProcessGroup()


def is_torchrun(environment: Mapping[str, str]) -> bool:
    """Return whether torchrun started this process."""
    return all(name in environment for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def local_device(environment: Mapping[str, str], device: str) -> str:
    """Return the device of this process: under torchrun the GPU of its local rank, unless a GPU is named."""
    if is_torchrun(environment) and device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{environment.get('LOCAL_RANK', '0')}"
    return device


@contextmanager
def process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started (nccl between GPUs, gloo otherwise); outside torchrun a single one.

    A process group that exists already is used and not destroyed, so that a script may train several times.
    """
    if dist.is_available() and dist.is_initialized():
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
        return
    if not is_torchrun(os.environ) or int(os.environ["WORLD_SIZE"]) == 1:
        yield SINGLE_PROCESS
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
