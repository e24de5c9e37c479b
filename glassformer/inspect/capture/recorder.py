"""A tap that records values and changes nothing."""

from __future__ import annotations

from torch import Tensor


class RecorderTap(dict[str, list[Tensor]]):
    """A tap that records the values of some points, in order."""

    def __init__(self, *names: str):
        super().__init__({name: [] for name in names})

    def wants(self, name: str) -> bool:
        return name in self

    def __call__(self, name: str, value: Tensor) -> Tensor:
        self[name].append(value)
        return value
