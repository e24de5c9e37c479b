"""A family's rules applied to one model: which checkpoint tensor fills which parameters, in both directions."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from glassformer.config import EncoderConfig, ModelConfig, RecurrentConfig
from glassformer.errors import ConfigError
from glassformer.families.common.family import AnyConfig, Family, TensorRule


@dataclass(frozen=True)
class TensorMapping:
    """One checkpoint tensor and the parameters that it fills, concatenated along the output axis.

    Attributes:
        tensor_name: the tensor's name in the checkpoint.
        parameter_names: the parameters' names in the model.
        transposed, row_vector, zeros_if_missing, fallback, float32, offset: see `TensorRule`.
        groups: the tensor holds one slice of every parameter, then the next slice of every parameter, and so on, in
            this many groups (fused QKV, per key/value head: the rows of its queries, its key, its value).
        interleaved_head_dim: the head_dim of a tensor whose rotary pairs are neighbours within a head; 0 if they are
            half a head apart, as in our parameters.
        rotary_dim: the number of rows of an interleaved head that rotate. They come last in the tensor and first in our
            parameter. 0: all rows rotate.
    """

    tensor_name: str
    parameter_names: tuple[str, ...]
    transposed: bool = False
    groups: int = 1
    interleaved_head_dim: int = 0
    row_vector: bool = False
    zeros_if_missing: bool = False
    fallback: str = ""
    rotary_dim: int = 0
    float32: bool = False
    offset: float = 0.0

    @property
    def rearranges(self) -> bool:
        """Whether the tensor differs from the concatenated parameters in order, shape or value."""
        reordered = self.transposed or self.groups > 1 or self.interleaved_head_dim > 0
        return reordered or self.row_vector or self.offset != 0

    def rope_order(self, n: int) -> Tensor:
        """Return our row index of each of the tensor's `n` rows, per head: 0, n/2, 1, n/2 + 1, ..."""
        rotary_dim, head_dim = self.rotary_dim or self.interleaved_head_dim, self.interleaved_head_dim
        pairs = torch.arange(rotary_dim).view(2, -1).T.flatten()
        head = torch.cat([torch.arange(rotary_dim, head_dim), pairs])
        return (torch.arange(0, n, head_dim)[:, None] + head).flatten()

    def dtype(self, requested: torch.dtype | None, stored: torch.dtype) -> torch.dtype:
        """Return the dtype to load or save the numbers in."""
        return torch.float32 if self.float32 else requested or stored

    def shape(self, parameters: dict[str, Tensor]) -> tuple[int, ...]:
        """Return the shape that the checkpoint's tensor must have."""
        first = parameters[self.parameter_names[0]].shape
        shape = (sum(parameters[name].shape[0] for name in self.parameter_names), *first[1:])
        return (1, *shape) if self.row_vector else shape[::-1] if self.transposed else shape

    def group_order(self, sizes: list[int]) -> Tensor:
        """Return, for each row of the checkpoint's tensor, its row in the concatenated parameters of these sizes."""
        parts = torch.arange(sum(sizes)).split(sizes)
        return torch.cat([part.view(self.groups, -1) for part in parts], 1).flatten()

    def split(self, tensor: Tensor, parameters: dict[str, Tensor]) -> list[Tensor]:
        """Return views of a checkpoint's tensor, one per parameter. Only for mappings that do not rearrange."""
        assert self.groups == 1, "grouped rows are not a view"
        assert self.offset == 0, "changed values are not a view"
        tensor = tensor.T if self.transposed else tensor
        return list(tensor.split([parameters[name].shape[0] for name in self.parameter_names]))

    def fill(self, values: list[Tensor], begin: int, rows: Tensor) -> None:
        """Copy rows of a checkpoint's tensor, from row `begin` on, to their positions in the parameters' values."""
        rows = rows - self.offset if self.offset else rows
        if self.row_vector:
            rows = rows[0]
        end, at = begin + len(rows), 0
        order = self.group_order([len(value) for value in values])[begin:end] if self.groups > 1 else None
        for value in values:
            if self.transposed:
                value.T[begin:end] = rows[:, at : at + len(value)]
            elif order is not None:
                selected = (order >= at) & (order < at + len(value))
                value[order[selected] - at] = rows[selected].to(value)
            else:
                first, last = max(begin, at), min(end, at + len(value))
                if first < last:
                    target, source = slice(first - at, last - at), rows[first - begin : last - begin]
                    if self.interleaved_head_dim:
                        value[self.rope_order(len(value))[target]] = source.to(value)
                    else:
                        value[target] = source
            at += len(value)

    def join(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the parameters as the checkpoint's tensor."""
        parts = [parameters[name].detach() for name in self.parameter_names]
        if self.interleaved_head_dim:
            parts = [part[self.rope_order(len(part)).to(part.device)] for part in parts]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.groups > 1:
            tensor = tensor[self.group_order([len(part) for part in parts])]
        tensor = tensor.float() + self.offset if self.offset else tensor
        return (tensor[None] if self.row_vector else tensor.T if self.transposed else tensor).contiguous()


@dataclass(frozen=True)
class StackedExperts(TensorMapping):
    """One checkpoint tensor [E, ...] that holds the parameters of all E = `n` experts."""

    n: int = 1

    @property
    def n_per_expert(self) -> int:
        """The number of parameters per expert."""
        return len(self.parameter_names) // self.n

    def expert(self, i: int) -> TensorMapping:
        """Return the mapping of one expert's slice, oriented as our parameters."""
        names = self.parameter_names[i * self.n_per_expert : (i + 1) * self.n_per_expert]
        return TensorMapping(self.tensor_name, names, groups=self.groups)

    def _transpose(self, tensor: Tensor) -> Tensor:
        """Convert one expert's slice between the file's orientation and ours."""
        return tensor.T if self.transposed else tensor

    def shape(self, parameters: dict[str, Tensor]) -> tuple[int, ...]:
        shape = self.expert(0).shape(parameters)
        return (self.n, *(shape[::-1] if self.transposed else shape))

    def split(self, tensor: Tensor, parameters: dict[str, Tensor]) -> list[Tensor]:
        parts = (self.expert(i).split(self._transpose(one), parameters) for i, one in enumerate(tensor))
        return [value for part in parts for value in part]

    def fill(self, values: list[Tensor], begin: int, rows: Tensor) -> None:
        n = self.n_per_expert
        for i, one in enumerate(rows, begin):
            self.expert(i).fill(values[i * n : (i + 1) * n], 0, self._transpose(one))

    def join(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self._transpose(self.expert(i).join(parameters)) for i in range(self.n)])


@dataclass(frozen=True)
class PerHeadTensor(TensorMapping):
    """One checkpoint tensor [H, ...] that holds the rows of one parameter, per head; H = `n`."""

    n: int = 1

    def _per_head(self, value: Tensor) -> Tensor:
        """Return a view of a parameter with the tensor's shape."""
        heads = value.unflatten(0, (self.n, -1))
        return heads.transpose(1, 2) if self.transposed else heads

    def shape(self, parameters: dict[str, Tensor]) -> tuple[int, ...]:
        return tuple(self._per_head(parameters[self.parameter_names[0]]).shape)

    def split(self, tensor: Tensor, parameters: dict[str, Tensor]) -> list[Tensor]:
        assert not self.transposed, "transposed heads are not a view"
        return [tensor.flatten(0, 1)]

    def fill(self, values: list[Tensor], begin: int, rows: Tensor) -> None:
        self._per_head(values[0])[begin : begin + len(rows)] = rows

    def join(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return self._per_head(parameters[self.parameter_names[0]].detach()).contiguous()


def map_tensors(
    family: Family,
    config: AnyConfig,
    parameters: Iterable[str],
    present: Collection[str] = (),
) -> list[TensorMapping]:
    """Apply a family's rules to a model: return one mapping per checkpoint tensor, layers and experts expanded.

    Args:
        parameters: the names of the model's parameters.
        present: the names of a checkpoint's tensors. Tensors of `family.alternatives` that are among them replace the
            tensors of `family.rules` that fill the same parameters.

    Raises:
        ConfigError: the family has no tensor for a parameter.
    """
    names = set(parameters)
    if family.rules is None:
        return [TensorMapping(name, (name,)) for name in parameters]
    assert not isinstance(config, RecurrentConfig), "recurrent models use our own tensor names"
    mappings = [mapping for rule in family.rules_for(config) or () for mapping in _apply(rule, config, names)]
    if missing := names.difference(*(mapping.parameter_names for mapping in mappings)):
        raise ConfigError(
            f"a {family.architecture} checkpoint cannot describe this model: it has no tensors for {sorted(missing)}"
        )
    alternatives = [
        mapping for rule in family.alternatives for mapping in _apply(rule, config, names)
        if mapping.tensor_name in present
    ]  # fmt: skip
    filled = {name for mapping in alternatives for name in mapping.parameter_names}
    return alternatives + [mapping for mapping in mappings if not filled.issuperset(mapping.parameter_names)]


def _apply(rule: TensorRule, config: ModelConfig | EncoderConfig, names: set[str]) -> Iterator[TensorMapping]:
    """Expand one rule's layers and experts."""
    stacked = "{j}" in rule.parameter_names[0] and "{j}" not in rule.tensor_name
    encoder = config.encoder if isinstance(config, ModelConfig) else None
    side = encoder if encoder is not None and rule.parameter_names[0].startswith("encoder.") else config
    for _, group in groupby(
        _indices(rule.parameter_names[0], names), lambda index: index.get("i") if stacked else index
    ):
        indices = list(group)
        parameters = tuple(_substitute(name, index) for index in indices for name in rule.parameter_names)
        if not names.issuperset(parameters):
            continue
        tensor = _substitute(rule.tensor_name, indices[0])
        layer = side.layers[int(indices[0].get("i", 0))]
        attention = layer.attention
        groups = attention.n_kv_heads if rule.grouped_by_kv_head else layer.mlp.d_ff if rule.interleaved_rows else 1
        if stacked:
            yield StackedExperts(tensor, parameters, rule.transposed, groups, n=len(indices))
        elif rule.head_axis:
            yield PerHeadTensor(tensor, parameters, rule.transposed, n=attention.n_kv_heads)
        else:
            head_dim = attention.cached_per_token if rule.single_head else attention.head_dim
            latent_rotary = 0 if attention.latent is None or attention.rope is None else attention.rope.dim or 0
            yield TensorMapping(
                tensor,
                parameters,
                rule.transposed,
                groups,
                head_dim if rule.interleaved_rope else 0,
                rule.row_vector,
                rule.zeros_if_missing,
                rule.fallback,
                latent_rotary if rule.interleaved_rope else 0,
                rule.float32,
                rule.offset,
            )


def _indices(pattern: str, names: set[str]) -> list[dict[str, str]]:
    """Return the values of {i} and {j} for which a name of the pattern exists, in order."""
    if "{" not in pattern:
        return [{}]
    regex = re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(pattern)))
    indices = [match.groupdict() for name in names if (match := regex.fullmatch(name))]
    return sorted(indices, key=lambda index: [int(n) for n in index.values()])


def _substitute(pattern: str, index: dict[str, str]) -> str:
    for letter, number in index.items():
        pattern = pattern.replace(f"{{{letter}}}", number)
    return pattern
