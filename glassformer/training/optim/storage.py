"""Where the trainable parameters of a model and their gradients are stored.

    FlatStorage    one buffer for all values and one for all gradients; every parameter is a view of them
    ListStorage    each parameter has its own tensors; works for any parameter, sharded ones (DTensor) included

The step of a small model is bound by the number of operations. In flat storage the norm of all gradients, their
scaling, their sum over processes and the momentum of all matrices are one operation each, for any number of layers:

    values  [ hidden matrices: 8 x [128,128] | 12 x [128,352] | ... | embeddings | head | norms and biases ]
    grads   [ the same layout                                                                              ]

Both classes present the parameters of a role as a list of tensors, so that an optimizer is written once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Role = Literal["hidden", "embed", "head", "scalar"]
ROLES: tuple[Role, ...] = ("hidden", "embed", "head", "scalar")
ALIGN = 16  # values: 64 bytes in float32, a cache line and the widest vector register


def role_of(name: str, parameter: Tensor) -> Role:
    """Return the role of a parameter in the optimizer, from its name and its number of dimensions.

    Tables that are looked up (tokens, positions) are "embed", matrices that are multiplied are "hidden" except the
    head, vectors are "scalar".
    """
    if parameter.ndim < 2:
        return "scalar"
    if name.startswith("head."):
        return "head"
    return "embed" if name.rpartition(".")[0].endswith(("embed", "positions")) else "hidden"


class ListStorage:
    """The trainable parameters of `model` by role, each with its own value and gradient tensor."""

    def __init__(self, model: nn.Module):
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters: dict[Role, dict[str, nn.Parameter]] = {
            role: {name: p for name, p in named.items() if role_of(name, p) == role} for role in ROLES
        }
        self.n_values = sum(p.numel() for p in named.values())
        self._allocate()

    def _allocate(self) -> None:
        for parameters in self.parameters.values():
            for parameter in parameters.values():
                parameter.grad = torch.zeros_like(parameter)

    def values(self, role: Role) -> list[Tensor]:
        """Return the tensors that together hold the values of a role's parameters."""
        return [parameter.data for parameter in self.parameters[role].values()]

    def grads(self, *roles: Role) -> list[Tensor]:
        """Return the tensors that together hold the gradients of these roles, in the layout of `values`."""
        found = [p.grad for role in roles for p in self.parameters[role].values()]
        return [grad for grad in found if grad is not None]

    def named(self, role: Role, tensors: Sequence[Tensor]) -> Iterable[tuple[str, Tensor]]:
        """Split tensors in the layout of `values(role)` into one view per parameter, with its name."""
        return zip(self.parameters[role], tensors, strict=True)

    def matrices(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """View tensors in the layout of `values("hidden")` as batches [n, rows, columns] of equally shaped matrices."""
        return [tensor.flatten(0, -3) if tensor.ndim > 2 else tensor[None] for tensor in tensors]


@dataclass(frozen=True)
class ParameterStack:
    """`names`: parameters of one role and shape, `stride` values apart, from offset `begin` in a flat buffer."""

    role: Role
    shape: torch.Size
    names: tuple[str, ...]
    begin: int
    stride: int

    @property
    def end(self) -> int:
        return self.begin + self.stride * len(self.names)

    def view(self, flat: Tensor, offset: int = 0) -> Tensor:
        """View a buffer that starts `offset` values into the layout as [len(names), *shape]."""
        strides = torch.empty(self.shape, device="meta").stride()
        begin = flat.storage_offset() + self.begin - offset
        return flat.as_strided((len(self.names), *self.shape), (self.stride, *strides), begin)


class FlatStorage(ListStorage):
    """Makes every trainable parameter of `model` a view of one float32 buffer, and its `.grad` a view of another."""

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Return whether the parameters can be views of one buffer: plain float32 tensors on one device."""
        data = [p.data for p in model.parameters() if p.requires_grad]
        plain = all(type(x) is Tensor and x.dtype == torch.float32 and x.is_contiguous() for x in data)
        return plain and len({x.device for x in data}) == 1

    def _allocate(self) -> None:
        self.stacks: list[ParameterStack] = []
        self.spans: dict[Role, slice] = {}
        begin = 0
        for role, parameters in self.parameters.items():
            shapes: dict[torch.Size, list[str]] = {}
            for name, parameter in parameters.items():
                shapes.setdefault(parameter.shape, []).append(name)
            first = begin
            for shape, names in shapes.items():
                stride = -(-shape.numel() // ALIGN) * ALIGN
                self.stacks.append(ParameterStack(role, shape, tuple(names), begin, stride))
                begin = self.stacks[-1].end
            self.spans[role] = slice(first, begin)
        device = next(p.device for parameters in self.parameters.values() for p in parameters.values())
        self.flat_values = torch.zeros(begin, device=device)
        self.flat_grads = torch.zeros_like(self.flat_values)
        for role, parameters in self.parameters.items():
            values, grads = self.values(role), self.grads(role)
            for (name, value), (_, grad) in zip(self.named(role, values), self.named(role, grads), strict=True):
                value.copy_(parameters[name].detach())
                parameters[name].data, parameters[name].grad = value, grad

    def values(self, role: Role) -> list[Tensor]:
        return [self.flat_values[self.spans[role]]]

    def grads(self, *roles: Role) -> list[Tensor]:
        if roles == ROLES:
            return [self.flat_grads]
        return [self.flat_grads[self.spans[role]] for role in roles]

    def named(self, role: Role, tensors: Sequence[Tensor]) -> Iterable[tuple[str, Tensor]]:
        for stack in (s for s in self.stacks if s.role == role):
            yield from zip(stack.names, stack.view(tensors[0], self.spans[role].start).unbind(0), strict=True)

    def matrices(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [stack.view(tensors[0]).flatten(0, -3) for stack in self.stacks if stack.role == "hidden"]
