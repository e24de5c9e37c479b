"""Several processes, one run: each reads its own rows, gradients are summed, the first one writes.

Started by torchrun, which says in the environment who is who. What is summed are gradients of *summed* losses, and the
counted tokens beside them; the division by the tokens of all comes after. So ranks with fewer counted targets weigh
less, and the result is that of one process with the same global batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=2)  # others wait while the first prepares the data


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def all_reduce_step(self, grads: Tensor, counts: Tensor) -> None:
        """Sum gradients [n] and counts (loss, tokens, wish to stop; float64, so that counts stay whole) over all."""
        if self.size > 1:
            dist.all_reduce(grads)
            dist.all_reduce(counts)

    def all_reduce(self, values: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


SINGLE_PROCESS = ProcessGroup()


def is_torchrun(environment: Mapping[str, str]) -> bool:
    """Whether torchrun started this process."""
    return all(name in environment for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def local_device(environment: Mapping[str, str], device: str) -> str:
    """The device of this process: under torchrun each takes the GPU of its local rank, unless one was named."""
    if is_torchrun(environment) and device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{environment.get('LOCAL_RANK', '0')}"
    return device


@contextmanager
def process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """The run's processes: alone, or with those that torchrun started (nccl between GPUs, gloo otherwise).

    A process group that is there already is used and left alone, so that a script may train more than once.
    """
    if dist.is_available() and dist.is_initialized():
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
        return
    if not is_torchrun(os.environ) or int(os.environ["WORLD_SIZE"]) == 1:
        yield ProcessGroup()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
