"""What a trace keeps while the model runs: bounded, stated beforehand, and bit-equal to a run that nobody looks at.

passes of a text  [0 .. 511] [512 .. 700] [701] [702] ...    each brings the rows of its own positions
                      '-> Reader.kept["blocks.3.resid_pre"]  [T, D], a row at a time
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from glassformer.config import EncoderConfig, ModelConfig
from glassformer.errors import CapacityError, RequestError
from glassformer.inspect.capture.points import derived, find, layer_of, match, needs, points, sizes
from glassformer.nn.step import Step

BUDGET = 4 << 30  # bytes that a trace may keep where nobody says
HANDED_ON = ("final.norm", "final.pooled", "final.follows")  # what an encoder is read for

AnyStack = ModelConfig | EncoderConfig


@runtime_checkable
class Editor(Protocol):
    """What changes values on their way: see `editing.py`."""

    def wants(self, name: str) -> bool: ...
    def change(self, name: str, value: Tensor, step: Step, rows: tuple[int, ...]) -> Tensor: ...


@runtime_checkable
class CaptureSpec(Protocol):
    """What keeps them."""

    def wants(self, name: str) -> bool: ...
    def keep(self, name: str, value: Tensor, step: Step) -> None: ...


def alias(config: AnyStack, name: str, edited: Sequence[str] = ()) -> str:
    """The point that holds the very same tensor and is kept anyhow: what leaves a block enters the next."""
    i = layer_of(name)
    if i is not None and name == f"blocks.{i}.resid_post" and i + 1 < config.n_layers:
        follows = f"blocks.{i + 1}.resid_pre"
        return name if follows in edited else follows
    return "blocks.0.resid_pre" if name == "embed.out" and "blocks.0.resid_pre" not in edited else name


def always(config: AnyStack, edited: Sequence[str] = ()) -> list[str]:
    """The points that every trace keeps, for all else is computed from them.

    `edited` are points that an edit changes: what a block made is kept apart where the next one reads something else.
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
        names += [name for name in HANDED_ON if name in points(config)]
    return match(config, names)


def wanted(config: AnyStack, read: Sequence[str], edited: Sequence[str] = ()) -> list[str]:
    """What a trace keeps as it passes: what it must, and what `read` names; of a derived point what it is made from."""
    names = [alias(config, need, edited) for name in match(config, read) for need in needs(config, name)]
    return match(config, [*always(config, edited), *names])


def n_bytes(config: AnyStack, name: str, length: int, itemsize: int, n_source: int = 0) -> int:
    """What a point of `length` tokens takes, that read a source of `n_source`. Derived ones are float32."""
    size, point, total = sizes(config, name), find(config, name), 1
    for axis in point.axes.split()[1:]:
        total *= n_source if axis == "S" and ".cross." in name else size.get(axis, length)
    return total * (4 if point.kind == "derived" else itemsize)


def check_budget(
    config: AnyStack, read: Sequence[str], edited: Sequence[str], length: int, itemsize: int, budget: int | None,
    n_source: int = 0,
) -> int:  # fmt: skip
    """The bytes that a trace of `length` tokens is going to keep.

    CapacityError where they are more than `budget`, with what would fit.
    """
    limit = BUDGET if budget is None else budget
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise RequestError(f"budget must be a number of bytes above 0, got {budget!r}", param="budget")
    names = [*wanted(config, read, edited), *(set(match(config, read)) & set(derived(config)))]
    size = {name: n_bytes(config, name, length, itemsize, n_source) for name in names}
    total = sum(size.values())
    if total <= limit:
        return total
    least = sum(size[name] for name in always(config, edited))
    message = f"a trace of {length} tokens that reads this keeps {mega(total)}, and the budget is {mega(limit)}. "
    if least > limit:
        fits = limit * length // least
        raise CapacityError(
            f"{message}Without any read it keeps {mega(least)}: give a budget of as much, or at most {fits} tokens"
        )
    room, some = limit - least, []
    for name in match(config, read):
        own = {name, *(alias(config, need, edited) for need in needs(config, name))} - set(always(config, edited))
        more = sum(size.pop(one, 0) for one in own)
        if more > room:
            break
        room -= more
        some.append(name)
    which = f"with {', '.join(some[:4])}{' ...' if len(some) > 4 else ''} it fits" if some else "none of them fits"
    raise CapacityError(
        f"{message}Without any read it keeps {mega(least)}, and all else is computed when it is asked for; "
        f"of the {len(match(config, read))} points read, {which}"
    )


def mega(n: int) -> str:
    """Bytes as a person reads them."""
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB" if n >= 1e5 else f"{n} bytes"


class TraceReader:
    """Keeps the points `names` of one text of at most `length` tokens, over all the passes that read it."""

    def __init__(self, config: AnyStack, names: Sequence[str], length: int):
        self.names, self.length = frozenset(names), length
        self.of_one = {name for name in names if find(config, name).axes.split()[1] != "T"}  # pass: not of tokens
        self.kept: dict[str, Tensor] = {}
        self.count = 0  # tokens read so far
        self.rereads: list[int] = []  # where the text became so long that it was read anew
        self.last_logits: Tensor | None = None

    def wants(self, name: str) -> bool:
        return name in self.names or name == "final.logits"

    def keep(self, name: str, value: Tensor, step: Step) -> None:
        """Keep what one pass brings of a point: the rows of the pass's positions."""
        if name == "final.logits":
            self.last_logits = value.reshape(-1, value.shape[-1])[-1].clone()
        if name not in self.names:
            return
        if name in self.of_one or step.cache is None:  # of one pass, whole
            self.kept[name] = value[0]
            return
        begin = int(step.positions[0, 0])
        if name not in self.kept:
            self.kept[name] = value.new_empty(self.length, *value.shape[2:])
        self.kept[name][begin : begin + value.shape[1]] = value[0]

    def passed(self, step: Step) -> None:
        """A pass begins."""
        begin, end = int(step.positions.min()), int(step.positions.max()) + 1
        if begin == 0 and self.count:
            self.rereads.append(end)
        self.count = end

    def result(self) -> dict[str, Tensor]:
        """What was kept, cut to the tokens that were read."""
        return {name: t if name in self.of_one else t[: self.count] for name, t in self.kept.items()}


class CapturingTap:
    """The tap of one pass: what an edit names is changed, then what is read is kept.

    rows: the numbers of the texts that the pass's rows are of.
    """

    def __init__(self, step: Step, rows: Sequence[int], editor: Editor | None, reader: CaptureSpec | None):
        self.step, self.rows, self.editor, self.reader = step, tuple(rows), editor, reader

    def wants(self, name: str) -> bool:
        return (self.editor is not None and self.editor.wants(name)) or (
            self.reader is not None and self.reader.wants(name)
        )

    def __call__(self, name: str, value: Tensor) -> Tensor:
        if self.editor is not None and self.editor.wants(name):
            value = self.editor.change(name, value, self.step, self.rows)
        if self.reader is not None and self.reader.wants(name):
            self.reader.keep(name, value, self.step)
        return value
