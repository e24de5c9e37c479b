"""Choose a model's device and dtype, and whether its quantized matrices stay packed, with reasons."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from glassformer.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Quantize = Literal["int8", "int4"]  # quantization of matrices at load: see `quantize.py`
STORED = "the checkpoint is stored in it"
SMALL = 50_000_000  # parameters; below it a CPU reads the weights fast enough in float32


@dataclass(frozen=True)
class Choice:
    """One decision about how a model runs, and its reason: shown by `show`, `/health` and traces."""

    what: str
    value: str
    because: str


@dataclass(frozen=True)
class Placement:
    """The device and dtype of a model, and the reasons.

    packed: whether quantized matrices stay packed. quantizes: whether matrices of floats are quantized after loading.
    """

    device: torch.device
    dtype: torch.dtype
    choices: tuple[Choice, ...]
    packed: bool = False
    quantizes: bool = False

    @property
    def stored_dtype(self) -> torch.dtype | None:
        """The dtype to load parameters in: None, each tensor's own, if they are quantized after loading."""
        return None if self.quantizes else self.dtype


@dataclass(frozen=True)
class QuantizedMatrices:
    """The matrices of a checkpoint that are stored in one quantized type. packs: whether they can run packed."""

    type: str
    n: int
    n_weights: int
    nbytes: int
    packs: bool

    def __str__(self) -> str:
        return f"{self.n} {self.type} ({self.nbytes / 1e6:,.1f} MB)"


def choose_placement(
    device: str,
    dtype: str,
    *,
    stored: torch.dtype,
    n_parameters: int,
    quantized: Sequence[QuantizedMatrices] = (),
    packs: bool = False,
) -> Placement:
    """Choose the device and the dtype to load a checkpoint with.

    Args:
        device: "cpu", "cuda", "cuda:N", "mps", or "auto" for the fastest one of this machine.
        dtype: a name in `DTYPES`, or "auto".
        stored: the dtype of most of the checkpoint's weights.
        quantized: the checkpoint's quantized matrices.
        packs: whether a CPU runs them packed: see `runs_packed`.

    Raises:
        ConfigError: a name is unknown, or this machine has no such device.
    """
    where = choose_device(device)
    because = "it was requested" if device != "auto" else "it is the fastest device of this machine"
    choice = choose_dtype(dtype, device=where.type, stored=stored, n_parameters=n_parameters)
    choices = (Choice("device", str(where), because), choice)
    if not quantized:
        return Placement(where, getattr(torch, choice.value), choices)
    weights = choose_weights(dtype, device=where.type, quantized=quantized, packs=packs, decoded_to=choice.value)
    if weights.value == "decoded":
        if choice.because == STORED:
            choices = choices[0], Choice("dtype", choice.value, "quantized matrices are decoded to it")
        return Placement(where, getattr(torch, choice.value), (*choices, weights))
    choice = Choice("dtype", "float32", "activations and all weights that are not packed are float32")
    return Placement(where, torch.float32, (choices[0], choice, weights), packed=True)


def choose_quantized_placement(device: str, dtype: str, kind: str) -> Placement:
    """Choose the device and the dtype of a model whose matrices are quantized at load.

    Raises:
        ConfigError: the kind is unknown, or another device or dtype was requested.
    """
    if kind not in get_args(Quantize):
        raise ConfigError(f"quantize must be {' or '.join(get_args(Quantize))}, got {kind!r}")
    if device not in ("auto", "cpu"):
        raise ConfigError(f"quantize {kind} runs on a CPU only, got device {device!r}: use auto or cpu")
    if dtype not in ("auto", "float32"):
        raise ConfigError(f"quantize {kind} computes in float32, got dtype {dtype!r}: use auto or float32")
    choices = (
        Choice("device", "cpu", "quantized matrices run on a CPU only"),
        Choice("dtype", "float32", "activations and all weights that are not quantized are float32"),
        Choice("weights", kind, "quantization was requested"),
    )
    return Placement(torch.device("cpu"), torch.float32, choices, packed=True, quantizes=True)


def choose_weights(
    requested: str, *, device: str, quantized: Sequence[QuantizedMatrices], packs: bool, decoded_to: str
) -> Choice:
    """Choose whether quantized matrices stay "packed" or are "decoded" to floats at load.

    Args:
        requested: the dtype that the user requested, or "auto".
        packs: whether a CPU runs them packed: see `runs_packed`.
        decoded_to: the dtype of decoded matrices.
    """
    own, others = ([one for one in quantized if one.packs is kind] for kind in (True, False))
    if not own:
        why = "their types or layouts have no packed format"
    elif device != "cpu":
        why = "packed matrices run on a CPU only"
    elif requested != "auto":
        why = f"dtype {requested} was requested"
    elif not packs:
        why = "decoded matrices run faster on this machine"
    else:
        rest = f"; decoded to float32: {', '.join(map(str, others))}" if others else ""
        return Choice("weights", "packed", f"{', '.join(map(str, own))} run as they are stored{rest}")
    return Choice("weights", "decoded", f"{', '.join(map(str, quantized))} become {decoded_to}: {why}")


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
    return Choice("dtype", str(stored).removeprefix("torch."), STORED)
