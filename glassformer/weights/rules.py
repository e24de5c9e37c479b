"""A family's rules applied to one model: which checkpoint tensor is which parameters, both ways."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from glassformer.config import ModelConfig, RecurrentConfig
from glassformer.families.family import Family


@dataclass(frozen=True)
class Entry:
    """One checkpoint tensor and the parameters that it fills, in order along the output axis.

    `paired`: the head_dim of a tensor in which the two rows of a head that turn together are neighbours; 0 of others,
    where they are half a head apart, as in ours.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    paired: int = 0

    @property
    def moves(self) -> bool:
        """Whether numbers lie elsewhere than in ours."""
        return self.transposed or self.paired > 0

    def order(self, n: int) -> Tensor:
        """Where each of theirs `n` rows lies in ours, where they are paired: 0, n/2, 1, n/2 + 1, ... of each head."""
        return torch.arange(n).view(-1, 2, self.paired // 2).transpose(1, 2).reshape(-1)

    def shape(self, parameters: dict[str, Tensor]) -> tuple[int, ...]:
        """The shape the checkpoint's tensor must have."""
        first = parameters[self.ours[0]].shape
        whole = (sum(parameters[name].shape[0] for name in self.ours), *first[1:])
        return whole[::-1] if self.transposed else whole

    def split(self, tensor: Tensor, parameters: dict[str, Tensor]) -> list[Tensor]:
        """A checkpoint's tensor as the parameters' values, views of it."""
        tensor = tensor.T if self.transposed else tensor
        return list(tensor.split([parameters[name].shape[0] for name in self.ours]))

    def fill(self, values: list[Tensor], begin: int, rows: Tensor) -> None:
        """Copy rows of a checkpoint's tensor, from row `begin` on, to where they belong in the parameters."""
        end, at = begin + len(rows), 0
        for value in values:
            if self.transposed:
                value.T[begin:end] = rows[:, at : at + len(value)]
            else:
                first, last = max(begin, at), min(end, at + len(value))
                if first < last:
                    here = slice(first - at, last - at)
                    mine = rows[first - begin : last - begin]
                    if self.paired:
                        value[self.order(len(value))[here]] = mine.to(value)
                    else:
                        value[here] = mine
            at += len(value)

    def join(self, parameters: dict[str, Tensor]) -> Tensor:
        """The parameters as the checkpoint's tensor."""
        parts = [parameters[name].detach() for name in self.ours]
        if self.paired:
            parts = [part[self.order(len(part)).to(part.device)] for part in parts]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        return (tensor.T if self.transposed else tensor).contiguous()


def entries(family: Family, config: ModelConfig | RecurrentConfig, parameters: Iterable[str]) -> list[Entry]:
    """The rules that apply to a model with these parameters: one entry per checkpoint tensor, layers written out."""
    if family.rules is None:
        return [Entry(name, (name,)) for name in parameters]
    present, found = set(parameters), []
    for rule in family.rules:
        for i in range(config.n_layers) if "{i}" in rule.theirs else [0]:
            ours = tuple(name.replace("{i}", str(i)) for name in rule.ours)
            if present.issuperset(ours):
                turns = rule.interleaved and isinstance(config, ModelConfig)
                paired = config.layers[i].attention.head_dim if turns else 0  # pyright: ignore[reportAttributeAccessIssue]
                found.append(Entry(rule.theirs.replace("{i}", str(i)), ours, rule.transposed, paired))
    left = present.difference(*(entry.ours for entry in found))
    assert not left, f"parameters without a rule in {family.name}: {sorted(left)}"
    return found
