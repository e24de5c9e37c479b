"""Numbers that a trace did not keep, computed again from those that it did, by the model's own modules.

    kept: resid_pre, k_rot, v --> Block i, for all tokens or some --> what passes; resid_post against the kept
    q_rot, k_rot, v, z        --> the definition, for some heads and queries --> scores, probs; P·V against z

A block needs the earlier tokens' keys and values only, and those are kept: a single token costs no more than a decode
step of one block.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.inspect.points import layer_of
from glassformer.inspect.reading import Editor, Looking, alias
from glassformer.nn.attend import KV, AttendSpec, View, attend_math, visible
from glassformer.nn.attention import Attention
from glassformer.nn.model import Decoder
from glassformer.nn.step import Source, Step

AT_ONCE = 1 << 22  # scores that are held at a time while more are computed
LOGITS = 512  # tokens whose logits are computed at a time
EARLY = ("attn.x", "attn.q", "attn.k", "attn.v", "attn.q_rot")
SAME_KEYS = "max |k_rot again - k_rot kept|"
SAME_END = "max |resid_post again - resid_post kept|"
SAME_START = "max |embed.out again - embed.out kept|"
SAME_LOGITS = "max |logits again - logits of the pass|, at the last token"
WEIGHED = "max |P·V - z|"


@dataclass(frozen=True)
class Kept:
    """What a pass left of one text: tensors by point, no batch axis. `edited` are the points that edits change."""

    model: Decoder
    ids: Tensor
    tensors: dict[str, Tensor]
    editor: Editor | None = None
    edited: tuple[str, ...] = ()
    last_logits: Tensor | None = None
    source: Source | None = None

    @property
    def positions(self) -> Tensor:
        return torch.arange(len(self.ids), device=self.ids.device)

    def get(self, name: str, at: Tensor | None = None) -> Tensor | None:
        """A kept tensor, at some tokens only; None where it was not kept."""
        tensor = self.tensors.get(alias(self.model.config, name, self.edited))
        return tensor if tensor is None or at is None else tensor[at]

    def of(self, name: str, at: Tensor | None = None) -> Tensor:
        """One that every trace keeps."""
        tensor = self.get(name, at)
        assert tensor is not None, f"{name} was not kept"
        return tensor

    def step(self, at: Tensor | None, editor: Editor | None, reader: Any) -> Step:
        """A pass over all tokens, or over some, that sees what the pass left of all."""
        where = self.positions if at is None else self.positions[at]
        step = Step(where[None], cache=Left(self, where), source=self.source)
        step.tap = Looking(step, (0,), editor, reader)
        return step


class Left:
    """A cache that holds what the pass left: keys and values of the whole text, whichever tokens run again."""

    def __init__(self, kept: Kept, queries: Tensor):
        self.kept, self.queries = kept, queries
        self.source, self.reach = kept.source, [len(kept.ids)]

    def layer(self, i: int) -> LeftSlot:
        return LeftSlot(self.kept, i)

    def view(self, spec: AttendSpec) -> View:
        keys, n = self.kept.positions[None], len(self.kept.ids)
        if len(self.queries) == n and (spec.window is None or spec.window >= n):
            return View(keys, keys, None, causal=True)
        return View(self.queries[None], keys, visible(spec, self.queries[None], keys))


class LeftSlot:
    """One layer of it."""

    def __init__(self, kept: Kept, i: int):
        self.kept, self.i = kept, i

    def keep(self, k: Tensor, v: Tensor) -> KV:
        return KV(*(self.kept.of(f"blocks.{self.i}.attn.{end}")[None] for end in ("k_rot", "v")))

    def keep_source(self, make: Callable[[], tuple[Tensor, Tensor]]) -> KV:
        make()  # for who looks at the keys before their norm
        return KV(*(self.kept.of(f"blocks.{self.i}.cross.{end}")[None] for end in ("k_rot", "v")))


class Enough(Exception):
    """All that was wanted of a pass has passed."""


class Until:
    """Keeps what passes at some points, and ends the pass after `last`."""

    def __init__(self, names: Sequence[str], last: str = ""):
        self.names, self.last = {*names, last}, last
        self.seen: dict[str, Tensor] = {}

    def wants(self, name: str) -> bool:
        return name in self.names

    def keep(self, name: str, value: Tensor, step: Step) -> None:
        self.seen[name] = value[0]
        if name == self.last:
            raise Enough


class Without:
    """An editor that leaves some points alone: what enters a block was changed before it was kept."""

    def __init__(self, editor: Editor, *names: str):
        self.editor, self.names = editor, names

    def wants(self, name: str) -> bool:
        return name not in self.names and self.editor.wants(name)

    def change(self, name: str, value: Tensor, step: Step, rows: tuple[int, ...]) -> Tensor:
        return self.editor.change(name, value, step, rows)


Found = dict[
    str, tuple[Tensor, float | None, str]
]  # by point: the value, its error, and the identity that is off by it


def run_block(
    kept: Kept, i: int, names: Sequence[str], at: Tensor | None, last: str, before: str = ""
) -> dict[str, Tensor]:
    """Block i on its kept input, for all tokens or some, as far as `last`: what passed at `names` and there.

    before: a point that is wanted as it was before any edit of it.
    """
    start, tap = f"blocks.{i}.resid_pre", Until(names, last)
    step = kept.step(at, None if kept.editor is None else Without(kept.editor, start, before), tap)
    with contextlib.suppress(Enough):
        kept.model.blocks[i](kept.of(start, at)[None], step.layer(i))
    return tap.seen


@torch.no_grad()
def in_block(kept: Kept, i: int, names: Sequence[str], at: Tensor | None) -> Found:
    """Live points of block i."""
    early = all(name.removeprefix(f"blocks.{i}.") in EARLY for name in names)
    check, identity = (f"blocks.{i}.attn.k_rot", SAME_KEYS) if early else (f"blocks.{i}.resid_post", SAME_END)
    seen = run_block(kept, i, names, at, check)
    error = off(seen[check], kept.of(check, at))
    return {name: (seen[name], error, identity) for name in names}


@torch.no_grad()
def outside(kept: Kept, names: Sequence[str], at: Tensor | None) -> Found:
    """Points before the first block, or after the last."""
    tap, found = Until(names), {}
    step = kept.step(at, kept.editor, tap)  # the tap sees what enters, not what leaves
    ids = kept.ids if at is None else kept.ids[at]
    if any(name.startswith("embed.") for name in names):
        error = off(kept.model.enter(ids[None], step)[0], kept.of("embed.out", at))
        found |= {name: (tap.seen[name], error, SAME_START) for name in names if name in tap.seen}
    if any(name.startswith("final.") for name in names):
        found |= _closing(kept, names, at)
    return found


def _closing(kept: Kept, names: Sequence[str], at: Tensor | None) -> Found:
    """The final norm and the logits, checked against those that the pass itself computed of the last token."""
    where = kept.positions if at is None else kept.positions[at]
    last = f"blocks.{kept.model.config.n_layers - 1}.resid_post"
    normed = read_out(kept, kept.of(last, at), where)
    seen, error = {"final.norm": normed}, None
    if "final.logits" in names:
        seen["final.logits"] = head(kept, normed, where)
    if kept.last_logits is not None:
        end = kept.positions[-1:]
        if "final.logits" in seen and bool((where[-1:] == end).all()):
            again = seen["final.logits"][-1]
        else:
            again = head(kept, read_out(kept, kept.of(last, end), end), end)[0]
        error = off(again, kept.last_logits)
    return {name: (value, error, SAME_LOGITS) for name, value in seen.items() if name in names}


@torch.no_grad()
def read_out(kept: Kept, resid: Float[Tensor, "N D"], where: Int[Tensor, "N"]) -> Float[Tensor, "N D"]:
    """A residual stream through the final norm, for tokens at these positions."""
    step = kept.step(where, kept.editor, None)
    return step.see("final.norm", kept.model.norm(resid[None]))[0]


@torch.no_grad()
def head(kept: Kept, normed: Float[Tensor, "N D"], where: Int[Tensor, "N"]) -> Float[Tensor, "N V"]:
    """The language-modelling head on it, some tokens at a time."""
    parts = []
    for some, at in zip(normed.split(LOGITS), where.split(LOGITS), strict=True):
        step = kept.step(at, kept.editor, None).at(at)
        step.tap = Looking(step, (0,), kept.editor, None)
        parts.append(kept.model.logits(some, step))
    return torch.cat(parts)


@torch.no_grad()
def weighed(
    kept: Kept, layer: str, heads: Sequence[int] | None, at: Tensor | None
) -> tuple[Float[Tensor, "H N S"], Float[Tensor, "H N S"], float]:
    """Scores and probabilities of some heads and queries, and max |P·V - z|. `layer`: "blocks.5.attn"."""
    model, i = kept.model, layer_of(layer)
    assert i is not None
    attention: Attention = model.get_submodule(layer)  # pyright: ignore[reportAssignmentType]
    config, group = attention.config, attention.config.n_heads // attention.config.n_kv_heads
    ends = [f"{layer}.q_rot", f"{layer}.z"]
    q, z = (kept.get(name, at) for name in ends)
    z = None if kept.editor is not None and kept.editor.wants(ends[1]) else z  # changed after the probabilities
    if q is None or z is None:
        seen = run_block(kept, i, ends, at, ends[1], before=ends[1])
        q, z = seen[ends[0]] if q is None else q, seen[ends[1]] if z is None else z
    k, v = kept.of(f"{layer}.k_rot"), kept.of(f"{layer}.v")
    step = kept.step(at, kept.editor, None)
    view = step.view(attention.spec)
    edited = [f"{layer}.{end}" for end in ("scores", "probs") if kept.editor and kept.editor.wants(f"{layer}.{end}")]
    see = None
    if edited:  # an edit names heads by their number: all of them pass it
        see = lambda end, value: step.layer(i).see(f"{layer.rpartition('.')[2]}.{end}", value)  # noqa: E731
    some = list(range(config.n_heads)) if heads is None else list(heads)
    each = max(1, AT_ONCE // max(1, len(q) * len(k)))
    parts, error = [], 0.0
    for part in [list(range(config.n_heads))] if see else [some[n : n + each] for n in range(0, len(some), each)]:
        index = torch.tensor(part, device=q.device)
        those = KV(*(t.index_select(1, index // group)[None] for t in (k, v)))
        sinks = None if attention.sinks is None else attention.sinks[index]
        again, scores, probs = attend_math(
            attention.spec, q.index_select(1, index)[None], those, view, None, sinks, see
        )
        error = worst(error, off(again[0], z.index_select(1, index)))
        parts.append((scores[0], probs[0]))
    scores, probs = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
    return (scores[some], probs[some], error) if see else (scores, probs, error)


def worst(a: float, b: float) -> float:
    """The larger one; NaN where either is none."""
    return max(a, b) if a == a and b == b else math.nan


def off(a: Tensor, b: Tensor) -> float:
    """max |a - b|."""
    return (a.float() - b.float()).abs().max().item() if a.numel() else 0.0
