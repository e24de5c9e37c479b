"""Choose a model's device and dtype, with reasons."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from glassformer.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL = 50_000_000  # parameters; below it a CPU reads the weights fast enough in float32


@dataclass(frozen=True)
class Choice:
    """One decision about how a model runs, and its reason: shown by `show`, `/health` and traces."""

    what: str
    value: str
    because: str


@dataclass(frozen=True)
class Placement:
    """The device and dtype of a model, and the reasons."""

    device: torch.device
    dtype: torch.dtype
    choices: tuple[Choice, Choice]


def choose_placement(device: str, dtype: str, *, stored: torch.dtype, n_parameters: int) -> Placement:
    """Choose the device and the dtype to load a checkpoint with.

    Args:
        device: "cpu", "cuda", "cuda:N", "mps", or "auto" for the fastest one of this machine.
        dtype: a name in `DTYPES`, or "auto".
        stored: the dtype of most of the checkpoint's weights.

    Raises:
        ConfigError: a name is unknown, or this machine has no such device.
    """
    where = choose_device(device)
    because = "it was requested" if device != "auto" else "it is the fastest device of this machine"
    choice = choose_dtype(dtype, device=where.type, stored=stored, n_parameters=n_parameters)
    return Placement(where, getattr(torch, choice.value), (Choice("device", str(where), because), choice))


def choose_device(requested: str = "auto") -> torch.device:
    """Return the requested device, or the fastest one of this machine. Raises ConfigError if it cannot be used."""
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    allowed = "allowed are auto, cpu, cuda, cuda:N and mps"
    if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", requested):
        raise ConfigError(f"device {requested!r} is not known: {allowed}")
    try:
        return torch.empty(0, device=requested).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"device {requested!r} cannot be used: {reason}; {allowed}") from None


def choose_dtype(requested: str, *, device: str, stored: torch.dtype, n_parameters: int) -> Choice:
    """Choose the dtype to run a checkpoint in; `value` is its name. Raises ConfigError for an unknown name."""
    if requested != "auto":
        if requested not in DTYPES:
            raise ConfigError(f"dtype must be auto, {', '.join(DTYPES)}, got {requested!r}")
        return Choice("dtype", requested, "it was requested")
    if device == "cpu" and (n_parameters < SMALL or stored == torch.float16):
        return Choice("dtype", "float32", "it loses no precision and is fast enough on a CPU at this size")
    return Choice("dtype", str(stored).removeprefix("torch."), "the checkpoint is stored in it")
