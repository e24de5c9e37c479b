"""A family's rules applied to one model: which checkpoint tensor is which parameters, both ways."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from glassformer.config import EncoderConfig, ModelConfig, RecurrentConfig
from glassformer.errors import ConfigError
from glassformer.families.common.family import AnyConfig, Family, TensorRule


@dataclass(frozen=True)
class TensorMapping:
    """One checkpoint tensor and the parameters that it fills, in order along the output axis.

    `groups`: the tensor holds a part of each parameter, then the next part of each, and so on, in as many groups (for
    each key/value head its queries' rows, its key's, its value's). `paired`: the head_dim of a tensor in which the two
    rows of a head that turn together are neighbours; 0 of others, where they are half a head apart, as in ours. Of such
    a head the last `turning` rows turn, which come first in ours; 0: all. `float32`: see `Rule`.
    `row`: a vector that is stored as a matrix of one row. `zeros`: what the parameters are where there is no such
    tensor; `instead`: the tensor that holds them there.
    `plus`: what the tensor's numbers are larger by (a norm that multiplies by 1 + ours).
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    groups: int = 1
    paired: int = 0
    row: bool = False
    zeros: bool = False
    instead: str = ""
    turning: int = 0
    float32: bool = False
    plus: float = 0.0

    @property
    def moves(self) -> bool:
        """Whether numbers lie elsewhere than in ours, or are others."""
        return self.transposed or self.groups > 1 or self.paired > 0 or self.row or self.plus != 0

    def order(self, n: int) -> Tensor:
        """Where each of theirs `n` rows lies in ours, where they are paired: 0, n/2, 1, n/2 + 1, ... of each head."""
        turning = self.turning or self.paired
        pairs = torch.arange(turning).view(2, -1).T.flatten()
        head = torch.cat([torch.arange(turning, self.paired), pairs])
        return (torch.arange(0, n, self.paired)[:, None] + head).flatten()

    def dtype(self, asked: torch.dtype | None, own: torch.dtype) -> torch.dtype:
        """What its numbers are loaded or saved in: as was asked, or as they are."""
        return torch.float32 if self.float32 else asked or own

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
        assert self.plus == 0, "other numbers are no view"
        tensor = tensor.T if self.transposed else tensor
        return list(tensor.split([parameters[name].shape[0] for name in self.ours]))

    def fill(self, values: list[Tensor], begin: int, rows: Tensor) -> None:
        """Copy rows of a checkpoint's tensor, from row `begin` on, to where they belong in the parameters."""
        rows = rows - self.plus if self.plus else rows
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
        if self.groups > 1:
            tensor = tensor[self.place([len(part) for part in parts])]
        tensor = tensor.float() + self.plus if self.plus else tensor
        return (tensor[None] if self.row else tensor.T if self.transposed else tensor).contiguous()


@dataclass(frozen=True)
class Stacked(TensorMapping):
    """One checkpoint tensor [E, ...] that holds what each of `n` = E experts has, `ours`, in their order."""

    n: int = 1

    @property
    def size(self) -> int:
        """How many parameters each expert has of it."""
        return len(self.ours) // self.n

    def part(self, expert: int) -> TensorMapping:
        """The entry of one expert, whose part of the tensor lies as in ours."""
        return TensorMapping(self.theirs, self.ours[expert * self.size : (expert + 1) * self.size], groups=self.groups)

    def turned(self, own: Tensor) -> Tensor:
        """One expert's part of the tensor, between how it lies in the file and in ours."""
        return own.T if self.transposed else own

    def shape(self, parameters: dict[str, Tensor]) -> tuple[int, ...]:
        own = self.part(0).shape(parameters)
        return (self.n, *(own[::-1] if self.transposed else own))

    def split(self, tensor: Tensor, parameters: dict[str, Tensor]) -> list[Tensor]:
        parts = (self.part(expert).split(self.turned(own), parameters) for expert, own in enumerate(tensor))
        return [value for part in parts for value in part]

    def fill(self, values: list[Tensor], begin: int, rows: Tensor) -> None:
        for expert, own in enumerate(rows, begin):
            self.part(expert).fill(values[expert * self.size : (expert + 1) * self.size], 0, self.turned(own))

    def join(self, parameters: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.turned(self.part(expert).join(parameters)) for expert in range(self.n)])


@dataclass(frozen=True)
class Headed(TensorMapping):
    """One checkpoint tensor [H, ...] in which each of `n` = H heads has its rows of the one parameter."""

    n: int = 1

    def turned(self, value: Tensor) -> Tensor:
        """A parameter, a view of it, as the tensor."""
        own = value.unflatten(0, (self.n, -1))
        return own.transpose(1, 2) if self.transposed else own

    def shape(self, parameters: dict[str, Tensor]) -> tuple[int, ...]:
        return tuple(self.turned(parameters[self.ours[0]]).shape)

    def split(self, tensor: Tensor, parameters: dict[str, Tensor]) -> list[Tensor]:
        assert not self.transposed, "heads that are turned are no view"
        return [tensor.flatten(0, 1)]

    def fill(self, values: list[Tensor], begin: int, rows: Tensor) -> None:
        self.turned(values[0])[begin : begin + len(rows)] = rows

    def join(self, parameters: dict[str, Tensor]) -> Tensor:
        return self.turned(parameters[self.ours[0]].detach()).contiguous()


def entries(
    family: Family,
    config: AnyConfig,
    parameters: Iterable[str],
    there: Collection[str] = (),
) -> list[TensorMapping]:
    """The rules that apply to a model with these parameters: one entry per checkpoint tensor, layers written out.

    `there`: the tensors that a checkpoint has. Where it has those of `family.others`, these entries stand for those of
    the parameters that they fill. ConfigError where a parameter has no place in a checkpoint of the family.
    """
    present = set(parameters)
    if family.rules is None:
        return [TensorMapping(name, (name,)) for name in parameters]
    assert not isinstance(config, RecurrentConfig), "recurrent models are written as they are"
    found = [entry for rule in family.rules_of(config) or () for entry in _applied(rule, config, present)]
    left = present.difference(*(entry.ours for entry in found))
    if left:
        raise ConfigError(
            f"a {family.architecture} checkpoint cannot describe this model: it has no place for {sorted(left)}"
        )
    others = [entry for rule in family.others for entry in _applied(rule, config, present) if entry.theirs in there]
    filled = {name for entry in others for name in entry.ours}
    return others + [entry for entry in found if not filled.issuperset(entry.ours)]


def _applied(rule: TensorRule, config: ModelConfig | EncoderConfig, present: set[str]) -> Iterator[TensorMapping]:
    """One rule, layers and experts written out."""
    stacked = "{j}" in rule.ours[0] and "{j}" not in rule.theirs
    encoder = config.encoder if isinstance(config, ModelConfig) else None
    side = encoder if encoder is not None and rule.ours[0].startswith("encoder.") else config
    for _, same in groupby(_counted(rule.ours[0], present), lambda counted: counted.get("i") if stacked else counted):
        numbers = list(same)
        ours = tuple(_written_out(name, counted) for counted in numbers for name in rule.ours)
        if present.issuperset(ours):
            theirs = _written_out(rule.theirs, numbers[0])
            layer = side.layers[int(numbers[0].get("i", 0))]
            attention = layer.attention
            groups = attention.n_kv_heads if rule.by_head else layer.mlp.d_ff if rule.by_turns else 1
            paired = 0 if not rule.interleaved else attention.cached_per_token if rule.kept else attention.head_dim
            turning = 0 if attention.latent is None or attention.rope is None else attention.rope.dim or 0
            if stacked:
                yield Stacked(theirs, ours, rule.transposed, groups, n=len(numbers))
            elif rule.heads:
                yield Headed(theirs, ours, rule.transposed, n=attention.n_kv_heads)
            else:
                yield TensorMapping(
                    theirs, ours, rule.transposed, groups, paired, rule.row, rule.zeros, rule.instead,
                    turning if paired else 0, rule.float32, rule.plus,
                )  # fmt: skip


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
