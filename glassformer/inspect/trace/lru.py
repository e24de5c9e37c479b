"""What was computed again and stays at hand: the last of it, as much as fits into some bytes.

A picture asks for several points of one token, and the next picture mostly for others of the same: a block runs once
for them all, and what a head weighed there is worked out once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import is_dataclass
from typing import Any, TypeVar

from torch import Tensor

LIMIT = 256 << 20  # bytes
T = TypeVar("T")


class ByteLRU:
    """Values by what they were asked for; those not asked for the longest go first."""

    def __init__(self, limit: int | None = None):
        self.limit, self.bytes = LIMIT if limit is None else limit, 0
        self._found: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is at hand under a key; made now where nothing is. Tensors by name, or a dataclass of them."""
        if key not in self._found:
            self._found[key] = found = make()
            self.bytes += _size(found)
            while self.bytes > self.limit and len(self._found) > 1:
                self.bytes -= _size(self._found.popitem(last=False)[1])
        self._found.move_to_end(key)
        return self._found[key]

    def tensors(self) -> Iterator[Tensor]:
        """All that it holds."""
        for found in self._found.values():
            yield from _tensors(found)


def _tensors(found: Any) -> Iterator[Tensor]:
    for value in found.values() if isinstance(found, dict) else vars(found).values():
        one = value[0] if isinstance(value, tuple) else value
        if isinstance(one, Tensor):
            yield one
        elif is_dataclass(one):
            yield from _tensors(one)


def _size(found: Any) -> int:
    return sum(tensor.nbytes for tensor in _tensors(found))
