"""Memory for weights in huge pages, which need fewer address translations than the small pages of a mapped file."""

from __future__ import annotations

import ctypes
import sys
import threading

import torch
from jaxtyping import UInt8
from torch import Tensor

HUGE_PAGE = 2 << 20  # bytes
CHUNK = 16 * HUGE_PAGE
ALIGNMENT = 64  # bytes: a cache line
MADV_HUGEPAGE = 14  # of Linux's madvise(2)


class HugePages:
    """Allocate parts of large chunks of memory, because a huge page is larger than many matrices."""

    def __init__(self) -> None:
        self.chunk = torch.empty(0, dtype=torch.uint8)
        self.lock = threading.Lock()  # several threads may load models

    def empty(self, n: int) -> UInt8[Tensor, "n"]:
        """Return `n` uninitialized bytes. Their chunk is freed with the last part of it."""
        size = -(-n // ALIGNMENT) * ALIGNMENT
        with self.lock:
            if size > len(self.chunk):
                self.chunk = new_chunk(max(size, CHUNK))
            part, self.chunk = self.chunk[:n], self.chunk[size:]
        return torch.frombuffer(part.numpy(), dtype=torch.uint8) if n else part  # pickles without the chunk


def in_huge_pages(t: Tensor) -> Tensor:
    """Return a copy in huge pages."""
    return HUGE_PAGES.empty(t.nbytes).view(t.dtype).view(t.shape).copy_(t)


def new_chunk(n: int) -> UInt8[Tensor, "n"]:
    """Return `n` bytes that begin at a huge page, and request huge pages for them (a hint that a system may ignore)."""
    memory = torch.empty(n + HUGE_PAGE, dtype=torch.uint8)
    start = -memory.data_ptr() % HUGE_PAGE
    if sys.platform == "linux":
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        madvise(memory.data_ptr() + start, n // HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE)
    return memory[start : start + n]


HUGE_PAGES = HugePages()
