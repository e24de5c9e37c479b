"""Capture values while a model runs: with a bound known beforehand, and without changing a bit of the output.

forward passes of a text  [0 .. 511] [512 .. 700] [701] [702] ...   each brings the values of its own positions
                          '-> TraceCapture.tensors["blocks.3.resid_pre"]  [T, D], filled position by position
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from glassformer.config import EncoderConfig, ModelConfig
from glassformer.errors import CapacityError, RequestError
from glassformer.inspect.capture.points import derived, find, layer_of, match, needs, points, sizes
from glassformer.nn.step import Step

BUDGET = 4 << 30  # bytes that a trace may capture by default
ENCODER_OUTPUTS = ("final.norm", "final.pooled", "final.follows")

AnyStack = ModelConfig | EncoderConfig


@runtime_checkable
class Editor(Protocol):
    """Changes values during a forward pass: see `edits/apply.py`."""

    def wants(self, name: str) -> bool: ...
    def change(self, name: str, value: Tensor, step: Step, rows: tuple[int, ...]) -> Tensor: ...


@runtime_checkable
class Capture(Protocol):
    """Stores values during a forward pass."""

    def wants(self, name: str) -> bool: ...
    def capture(self, name: str, value: Tensor, step: Step) -> None: ...


def alias(config: AnyStack, name: str, edited: Sequence[str] = ()) -> str:
    """Return the captured point that holds the same tensor: the output of a block is the input of the next.

    edited: the points that edits change; an edited input differs from the output before it.
    """
    i = layer_of(name)
    if i is not None and name == f"blocks.{i}.resid_post" and i + 1 < config.n_layers:
        following = f"blocks.{i + 1}.resid_pre"
        return name if following in edited else following
    return "blocks.0.resid_pre" if name == "embed.out" and "blocks.0.resid_pre" not in edited else name


def required_points(config: AnyStack, edited: Sequence[str] = ()) -> list[str]:
    """Return the points that every trace captures, from which all others are recomputed.

    edited: the points that edits change. A block's output is captured apart where the next block's input is edited.
    """
    names, n = [], config.n_layers
    for i in range(n):
        names.append(f"blocks.{i}.resid_pre")
        names += [f"blocks.{i}.attn.k_rot", f"blocks.{i}.attn.v"]
        if config.layers[i].attention.latent is not None:
            names.append(f"blocks.{i}.attn.latent")
        if config.layers[i].cross is not None:
            names += [f"blocks.{i}.cross.k_rot", f"blocks.{i}.cross.v"]
        if i == n - 1 or f"blocks.{i + 1}.resid_pre" in edited:
            names.append(f"blocks.{i}.resid_post")
    if "blocks.0.resid_pre" in edited:
        names.append("embed.out")
    if isinstance(config, EncoderConfig):
        names += [name for name in ENCODER_OUTPUTS if name in points(config)]
    return match(config, names)


def captured_points(config: AnyStack, capture: Sequence[str], edited: Sequence[str] = ()) -> list[str]:
    """Return the points to capture: the required ones, and those that `capture` names.

    For a derived point these are the points that it is computed from.
    """
    names = [alias(config, need, edited) for name in match(config, capture) for need in needs(config, name)]
    return match(config, [*required_points(config, edited), *names])


def n_bytes(config: AnyStack, name: str, length: int, itemsize: int, n_source: int = 0) -> int:
    """Return the bytes of a point for `length` tokens and a source of `n_source`. Derived points are float32."""
    size, point, total = sizes(config, name), find(config, name), 1
    for axis in point.axes.split()[1:]:
        total *= n_source if axis == "S" and ".cross." in name else size.get(axis, length)
    return total * (4 if point.kind == "derived" else itemsize)


def check_budget(
    config: AnyStack, capture: Sequence[str], edited: Sequence[str], length: int, itemsize: int, budget: int | None,
    n_source: int = 0, cache_bytes: int = 0,
) -> int:  # fmt: skip
    """Return the bytes that a trace of `length` tokens takes.

    cache_bytes: of the cache, while the text is processed in chunks. CapacityError where they exceed `budget`; its
    message says what fits.
    """
    limit = BUDGET if budget is None else budget
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise RequestError(f"budget must be a number of bytes above 0, got {budget!r}", param="budget")
    names = [*captured_points(config, capture, edited), *(set(match(config, capture)) & set(derived(config)))]
    size = {name: n_bytes(config, name, length, itemsize, n_source) for name in names}
    total = sum(size.values()) + cache_bytes
    if total <= limit:
        return total
    required = required_points(config, edited)
    least = sum(size[name] for name in required) + cache_bytes
    message = (
        f"a trace of {length} tokens with these points takes {format_bytes(total)}, and the budget is "
        f"{format_bytes(limit)}. Without `capture` it takes {format_bytes(least)}"
    )
    if least > limit:
        raise CapacityError(
            f"{message}: raise the budget to at least that, or trace at most {limit * length // least} tokens"
        )
    room, some = limit - least, []
    for name in match(config, capture):
        own = {name, *(alias(config, need, edited) for need in needs(config, name))} - set(required)
        more = sum(size.pop(one, 0) for one in own)
        if more > room:
            break
        room -= more
        some.append(name)
    which = f"with {', '.join(some[:4])}{' ...' if len(some) > 4 else ''} it fits" if some else "none of them fits"
    raise CapacityError(
        f"{message}, and all other points are recomputed on request; of the {len(match(config, capture))} points in "
        f"`capture`, {which}"
    )


def format_bytes(n: int) -> str:
    """Return a number of bytes in a readable unit."""
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB" if n >= 1e5 else f"{n} bytes"


class TraceCapture:
    """Captures points of one text of at most `length` tokens, over all of its forward passes.

    reprefills: the lengths at which the text was prefilled again. last_logits: of the last token [V].
    """

    def __init__(self, config: AnyStack, names: Sequence[str], length: int):
        self.names, self.length = frozenset(names), length
        # Points without a token axis hold one forward pass's value.
        self.without_tokens = {name for name in names if find(config, name).axes.split()[1] != "T"}
        self.tensors: dict[str, Tensor] = {}
        self.count = 0  # tokens processed so far
        self.reprefills: list[int] = []
        self.last_logits: Tensor | None = None

    def wants(self, name: str) -> bool:
        return name in self.names or name == "final.logits"

    def capture(self, name: str, value: Tensor, step: Step) -> None:
        """Store a point's values at the positions of one forward pass."""
        if name == "final.logits":
            self.last_logits = value.reshape(-1, value.shape[-1])[-1].clone()
        if name not in self.names:
            return
        if name in self.without_tokens or step.cache is None:  # complete after one forward pass
            self.tensors[name] = value[0]
            return
        begin = int(step.positions[0, 0])
        if name not in self.tensors:
            self.tensors[name] = value.new_empty(self.length, *value.shape[2:])
        self.tensors[name][begin : begin + value.shape[1]] = value[0]

    def begin(self, step: Step) -> None:
        """Note the start of a forward pass."""
        begin, end = int(step.positions.min()), int(step.positions.max()) + 1
        if begin == 0 and self.count:
            self.reprefills.append(end)
        self.count = end

    def result(self) -> dict[str, Tensor]:
        """Return the captured tensors, cut to the tokens that were processed."""
        return {name: t if name in self.without_tokens else t[: self.count] for name, t in self.tensors.items()}


class CapturingTap:
    """The tap of one forward pass: applies edits to a value, then captures it.

    rows: for each sequence of the batch, the number of its text.
    """

    def __init__(self, step: Step, rows: Sequence[int], editor: Editor | None, capture: Capture | None):
        self.step, self.rows, self.editor, self.capture = step, tuple(rows), editor, capture

    def wants(self, name: str) -> bool:
        return (self.editor is not None and self.editor.wants(name)) or (
            self.capture is not None and self.capture.wants(name)
        )

    def __call__(self, name: str, value: Tensor) -> Tensor:
        if self.editor is not None and self.editor.wants(name):
            value = self.editor.change(name, value, self.step, self.rows)
        if self.capture is not None and self.capture.wants(name):
            self.capture.capture(name, value, self.step)
        return value
