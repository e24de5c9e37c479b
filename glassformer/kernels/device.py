"""Where a model runs and in which dtype: pure choices that say why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import torch

from glassformer.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL = 50_000_000  # parameters; below it a CPU reads the weights fast enough in float32


class DtypeChoice(NamedTuple):
    dtype: torch.dtype
    because: str


@dataclass(frozen=True)
class Choice:
    """Something that was chosen, and why: shown where a person asks what is running."""

    what: str
    value: str
    because: str


def choose_device(asked: str = "auto") -> torch.device:
    """The device a person named, or the fastest there is. ConfigError where it is not on this machine."""
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    allowed = "allowed are auto, cpu, cuda, cuda:N and mps"
    if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", asked):
        raise ConfigError(f"device {asked!r} is not known: {allowed}")
    try:
        return torch.empty(0, device=asked).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"device {asked!r} cannot be used: {reason}; {allowed}") from None


def choose_dtype(asked: str, *, device: str, stored: torch.dtype, n_parameters: int) -> DtypeChoice:
    """The dtype to run a checkpoint in."""
    if asked != "auto":
        if asked not in DTYPES:
            raise ConfigError(f"dtype must be auto, {', '.join(DTYPES)}, got {asked!r}")
        return DtypeChoice(DTYPES[asked], "it was asked for")
    if device == "cpu" and (n_parameters < SMALL or stored == torch.float16):
        return DtypeChoice(torch.float32, "it is the exact one, and quick enough on a CPU at this size")
    return DtypeChoice(stored, "the checkpoint is stored in it")


def choose(device: str, dtype: str, *, stored: torch.dtype, n_parameters: int) -> tuple[torch.device, torch.dtype]:
    """Where and in which dtype to load a checkpoint, of those that a person named ("auto" chooses).

    ConfigError for one that is not known, or not on this machine.
    """
    where = choose_device(device)
    return where, choose_dtype(dtype, device=where.type, stored=stored, n_parameters=n_parameters).dtype


def explain(device: str, dtype: str, *, stored: torch.dtype, n_parameters: int) -> tuple[Choice, ...]:
    """What `choose` chooses, and why."""
    where = choose_device(device)
    kind, because = choose_dtype(dtype, device=where.type, stored=stored, n_parameters=n_parameters)
    why = "it was asked for" if device != "auto" else "it is the fastest one on this machine"
    return (
        Choice("device", str(where), why),
        Choice("dtype", str(kind).removeprefix("torch."), because),
        Choice("attention", "sdpa", "PyTorch's fused product; the definition runs where scores or shares are edited"),
    )
