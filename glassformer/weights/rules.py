"""A family's rules applied to one model: which checkpoint tensor is which parameters, both ways."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from glassformer.config import EncoderConfig, ModelConfig, RecurrentConfig
from glassformer.families.family import Family


@dataclass(frozen=True)
class Entry:
    """One checkpoint tensor and the parameters that it fills, in order along the output axis.

    groups: the tensor holds a part of each parameter, then the next part of each, and so on, in as many groups (for
    each key/value head its queries' rows, its key's, its value's). row: a vector that is stored as a matrix of one row.
    zeros: what the parameters are where there is no such tensor.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    groups: int = 1
    row: bool = False
    zeros: bool = False

    def shape(self, parameters: dict[str, Tensor]) -> tuple[int, ...]:
        """The shape the checkpoint's tensor must have."""
        first = parameters[self.ours[0]].shape
        whole = (sum(parameters[name].shape[0] for name in self.ours), *first[1:])
        return (1, *whole) if self.row else whole[::-1] if self.transposed else whole

    def place(self, sizes: list[int]) -> Tensor:
        """Which row of the parameters, laid one behind the other, each row of the checkpoint's tensor is."""
        parts = torch.arange(sum(sizes)).split(sizes)
        return torch.cat([part.view(self.groups, -1) for part in parts], 1).flatten()

    def split(self, tensor: Tensor, parameters: dict[str, Tensor]) -> list[Tensor]:
        """A checkpoint's tensor as the parameters' values, views of it."""
        assert self.groups == 1, "rows that lie apart are no view"
        tensor = tensor[0] if self.row else tensor.T if self.transposed else tensor
        return list(tensor.split([parameters[name].shape[0] for name in self.ours]))

    def fill(self, values: list[Tensor], begin: int, rows: Tensor) -> None:
        """Copy rows of a checkpoint's tensor, from row `begin` on, to where they belong in the parameters."""
        if self.row:
            rows = rows[0]
        end, at = begin + len(rows), 0
        place = self.place([len(value) for value in values])[begin:end] if self.groups > 1 else None
        for value in values:
            if self.transposed:
                value.T[begin:end] = rows[:, at : at + len(value)]
            elif place is not None:
                mine = (place >= at) & (place < at + len(value))
                value[place[mine] - at] = rows[mine].to(value)
            else:
                first, last = max(begin, at), min(end, at + len(value))
                if first < last:
                    value[first - at : last - at] = rows[first - begin : last - begin]
            at += len(value)

    def join(self, parameters: dict[str, Tensor]) -> Tensor:
        """The parameters as the checkpoint's tensor."""
        parts = [parameters[name].detach() for name in self.ours]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.groups > 1:
            tensor = tensor[self.place([len(part) for part in parts])]
        return (tensor[None] if self.row else tensor.T if self.transposed else tensor).contiguous()


def entries(
    family: Family, config: ModelConfig | RecurrentConfig | EncoderConfig, parameters: Iterable[str]
) -> list[Entry]:
    """The rules that apply to a model with these parameters: one entry per checkpoint tensor, layers written out."""
    if family.rules is None:
        return [Entry(name, (name,)) for name in parameters]
    assert not isinstance(config, RecurrentConfig), "recurrent models are written as they are"
    present, found = set(parameters), []
    for rule in family.rules_of(config) or ():
        for counted in _counted(rule.ours[0], present):
            ours = tuple(_written_out(name, counted) for name in rule.ours)
            if present.issuperset(ours):
                groups = config.layers[int(counted["i"])].attention.n_kv_heads if rule.by_head else 1
                theirs = _written_out(rule.theirs, counted)
                found.append(Entry(theirs, ours, rule.transposed, groups, rule.row, rule.zeros))
    left = present.difference(*(entry.ours for entry in found))
    assert not left, f"parameters without a rule in {family.name}: {sorted(left)}"
    return found


def _counted(pattern: str, present: set[str]) -> list[dict[str, str]]:
    """What {i} and {j} stand for in the names of a pattern that there are, in order."""
    if "{" not in pattern:
        return [{}]
    regex = re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(pattern)))
    found = [match.groupdict() for name in present if (match := regex.fullmatch(name))]
    return sorted(found, key=lambda counted: [int(n) for n in counted.values()])


def _written_out(pattern: str, counted: dict[str, str]) -> str:
    for letter, number in counted.items():
        pattern = pattern.replace(f"{{{letter}}}", number)
    return pattern
