"""A byte-bounded LRU cache of recomputed values.

A view needs several points of one token, and the next view mostly other points of the same token. With the cache a
block runs once for all of them.
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
    """Values by key, at most `limit` bytes of tensors. The least recently used value is evicted first."""

    def __init__(self, limit: int | None = None):
        self.limit, self.bytes = LIMIT if limit is None else limit, 0
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of a key, made by `make` where it is not cached: tensors by name, or a dataclass of them."""
        if key not in self._values:
            self._values[key] = value = make()
            self.bytes += _size(value)
            while self.bytes > self.limit and len(self._values) > 1:
                self.bytes -= _size(self._values.popitem(last=False)[1])
        self._values.move_to_end(key)
        return self._values[key]

    def tensors(self) -> Iterator[Tensor]:
        """Yield every cached tensor."""
        for value in self._values.values():
            yield from _tensors(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    for part in value.values() if isinstance(value, dict) else vars(value).values():
        one = part[0] if isinstance(part, tuple) else part
        if isinstance(one, Tensor):
            yield one
        elif is_dataclass(one):
            yield from _tensors(one)


def _size(value: Any) -> int:
    return sum(tensor.nbytes for tensor in _tensors(value))
