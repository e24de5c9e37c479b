"""One captured or recomputed tensor, with names for its axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Value:
    """The tensor of one point for one text, without a batch axis. Traces make them.

    It works as an array: NumPy and torch functions accept it, and arithmetic, comparisons and slices return a `Value`
    as long as the axes can be named, else a tensor.

    axes: one name for each axis, such as "T", "H", "Dh": see `capture/points.py`.
    error: by how much `identity`, an equation that ties the value to the forward pass, is violated, in the value's own
        units; None where nothing was checked.
    """

    name: str
    tensor: Tensor
    axes: tuple[str, ...]
    error: float | None = None
    identity: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def ndim(self) -> int:
        return self.tensor.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def numpy(self) -> np.ndarray:
        """Return a NumPy array on the CPU. bfloat16, which NumPy lacks, becomes float32."""
        tensor = self.tensor.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()

    def tolist(self) -> Any:
        return self.tensor.tolist()

    def item(self) -> float:
        return self.tensor.item()

    def __getattr__(self, name: str) -> Any:
        """Return an attribute or a method of the tensor, such as `argmax`."""
        if name == "tensor" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.tensor, name)

    def __float__(self) -> float:
        return float(self.tensor)

    def __int__(self) -> int:
        return int(self.tensor)

    def without(self, axis: str) -> Value:
        """Remove an axis of length 1."""
        n = self.axes.index(axis)
        rest = (*self.axes[:n], *self.axes[n + 1 :])
        return Value(self.name, self.tensor.squeeze(n), rest, self.error, self.identity)

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: Any) -> Any:
        part = self.tensor[index]
        axes = _indexed(self.axes, index)
        return part if axes is None else Value(self.name, part, axes, self.error, self.identity)

    def __repr__(self) -> str:
        size = ", ".join(f"{axis} {n}" for axis, n in zip(self.axes, self.shape, strict=True))
        check = "" if self.identity is None else f", error {self.error}: {self.identity}"
        return f"Value({self.name} [{size}]{check})"

    # ---- protocols of NumPy and torch

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy() if dtype is None else self.numpy().astype(dtype, copy=False)
        return array.copy() if copy else array

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.detach().__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a torch function with tensors. A result of the same shape as a `Value` argument keeps its axes."""
        result = function(*map(_tensor, args), **{name: _tensor(one) for name, one in (kwargs or {}).items()})
        if isinstance(result, Tensor):
            for one in args:
                if isinstance(one, Value) and one.shape == tuple(result.shape):
                    return Value(one.name, result, one.axes)
        return result

    # ---- operators

    def __neg__(self) -> Any:
        return torch.neg(self)  # pyright: ignore[reportArgumentType]

    def __abs__(self) -> Any:
        return torch.abs(self)  # pyright: ignore[reportArgumentType]

    def __add__(self, other: Any) -> Any:
        return self._apply(torch.Tensor.__add__, other)

    def __radd__(self, other: Any) -> Any:
        return self._apply(torch.Tensor.__radd__, other)

    def __sub__(self, other: Any) -> Any:
        return self._apply(torch.Tensor.__sub__, other)

    def __rsub__(self, other: Any) -> Any:
        return self._apply(torch.Tensor.__rsub__, other)

    def __mul__(self, other: Any) -> Any:
        return self._apply(torch.Tensor.__mul__, other)

    def __rmul__(self, other: Any) -> Any:
        return self._apply(torch.Tensor.__rmul__, other)

    def __truediv__(self, other: Any) -> Any:
        return self._apply(torch.Tensor.__truediv__, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._apply(torch.Tensor.__rtruediv__, other)

    def __pow__(self, other: Any) -> Any:
        return self._apply(torch.Tensor.__pow__, other)

    def __matmul__(self, other: Any) -> Any:
        return self._apply(torch.Tensor.__matmul__, other)

    def __lt__(self, other: Any) -> Any:
        return self._apply(torch.Tensor.__lt__, other)

    def __le__(self, other: Any) -> Any:
        return self._apply(torch.Tensor.__le__, other)

    def __gt__(self, other: Any) -> Any:
        return self._apply(torch.Tensor.__gt__, other)

    def __ge__(self, other: Any) -> Any:
        return self._apply(torch.Tensor.__ge__, other)

    def __eq__(self, other: Any) -> Any:
        return self._apply(torch.Tensor.__eq__, other)

    def __ne__(self, other: Any) -> Any:
        return self._apply(torch.Tensor.__ne__, other)

    __hash__ = object.__hash__

    def _apply(self, function: Any, other: Any) -> Any:
        other = torch.from_numpy(other) if isinstance(other, np.ndarray) else other
        return self.__torch_function__(function, (Value,), (self, other))


def _tensor(argument: Any) -> Any:
    if isinstance(argument, Value):
        return argument.tensor
    return type(argument)(map(_tensor, argument)) if type(argument) in (list, tuple) else argument


def _indexed(axes: tuple[str, ...], index: Any) -> tuple[str, ...] | None:
    """The names of the axes that an index leaves; None where it does not select axis by axis."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(one, bool) or not isinstance(one, int | slice | type(...)) for one in items):
        return None
    if ... in items:
        n = items.index(...)
        items[n : n + 1] = [slice(None)] * (len(axes) - len(items) + 1)
    rest = zip(axes, [*items, *[slice(None)] * (len(axes) - len(items))], strict=True)
    return tuple(axis for axis, one in rest if isinstance(one, slice))
