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
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glassformer.inspect.capture.points import layer_of
from glassformer.inspect.capture.reader import CapturingTap, Editor, alias
from glassformer.nn.attend import KV, AttendSpec, Visibility, attend_reference, visible
from glassformer.nn.attention import Attention
from glassformer.nn.protocols import EncodedSource
from glassformer.nn.step import Step

AT_ONCE = 1 << 22  # scores that are held at a time while more are computed
QUERIES = 128  # and of how many queries: a block of them looks no further than its last one
LOGITS = 512  # tokens whose logits are computed at a time
EARLY = ("attn.x", "attn.q", "attn.k", "attn.v", "attn.q_rot")
SAME_KEYS = "max |k_rot again - k_rot kept|"
SAME_END = "max |resid_post again - resid_post kept|"
SAME_START = "max |embed.out again - embed.out kept|"
SAME_LOGITS = "max |logits again - logits of the pass|, at the last token"
WEIGHED = "max |P·V - z|"
UNSEEN = {"scores": -math.inf, "probs": 0.0}


@dataclass(frozen=True)
class KeptValues:
    """What a pass left of one text: tensors by point, no batch axis. `edited` are the points that edits change."""

    model: Any  # the stack: a decoder, or an encoder
    ids: Tensor
    tensors: dict[str, Tensor]
    editor: Editor | None = None
    edited: tuple[str, ...] = ()
    last_logits: Tensor | None = None
    source: EncodedSource | None = None

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
        step = Step(where[None], cache=PastCache(self, where), source=self.source)
        step.tap = CapturingTap(step, (0,), editor, reader)
        return step


class PastCache:
    """A cache that holds what the pass left: keys and values of the whole text, whichever tokens run again."""

    def __init__(self, kept: KeptValues, queries: Tensor):
        self.kept, self.queries = kept, queries
        self.source, self.reach = kept.source, [len(kept.ids)]

    def layer(self, i: int) -> PastSlot:
        return PastSlot(self.kept, i)

    def view(self, spec: AttendSpec) -> Visibility:
        keys, n = self.kept.positions[None], len(self.kept.ids)
        if len(self.queries) == n and (spec.window is None or spec.window >= n):
            return Visibility(keys, keys, None, causal=spec.causal)
        return Visibility(self.queries[None], keys, visible(spec, self.queries[None], keys))


class PastSlot:
    """One layer of it."""

    def __init__(self, kept: KeptValues, i: int):
        self.kept, self.i = kept, i

    def keep(self, k: Tensor, v: Tensor) -> KV:
        name = f"blocks.{self.i}.attn."
        k_rot, latent = self.kept.of(f"{name}k_rot"), self.kept.tensors.get(f"{name}latent")
        if self.kept.model.config.layers[self.i].attention.latent is None:
            return KV(k_rot[None], self.kept.of(f"{name}v")[None])
        assert latent is not None  # of a token a turned key, the same for all heads, and its latent are kept
        token = torch.cat([k_rot[:, :1, : k.shape[-1] - latent.shape[-1]], latent[:, None]], -1)[None]
        return KV(token, token[..., :0])

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


class Everything(Until):
    """Keeps all that passes of a block's own tokens, but what is only made for an edit of it."""

    def __init__(self):
        super().__init__(())

    def wants(self, name: str) -> bool:
        return not name.endswith((".scores", ".probs", ".heads", ".cross.k", ".cross.v", ".cross.k_rot"))


class Without:
    """An editor that leaves some points alone: what enters a block was changed before it was kept."""

    def __init__(self, editor: Editor, *names: str):
        self.editor, self.names = editor, names

    def wants(self, name: str) -> bool:
        return name not in self.names and self.editor.wants(name)

    def change(self, name: str, value: Tensor, step: Step, rows: tuple[int, ...]) -> Tensor:
        return self.editor.change(name, value, step, rows)


Found = dict[
    str, tuple[Tensor, float | None, str | None]
]  # by point: the value, its error, and the identity that is off by it


def run_block(
    kept: KeptValues, i: int, names: Sequence[str], at: Tensor | None, last: str, before: str = ""
) -> dict[str, Tensor]:
    """Block i on its kept input, for all tokens or some, as far as `last`: what passed at `names` and there.

    before: a point that is wanted as it was before any edit of it.
    """
    return _run(kept, i, Until(names, last), at, before)


def _run(kept: KeptValues, i: int, tap: Until, at: Tensor | None, before: str = "") -> dict[str, Tensor]:
    start = f"blocks.{i}.resid_pre"
    step = kept.step(at, None if kept.editor is None else Without(kept.editor, start, before), tap)
    with contextlib.suppress(Enough):
        kept.model.blocks[i](kept.of(start, at)[None], step.layer(i, kept.model.score_bias(step)))
    return tap.seen


@torch.no_grad()
def in_block(kept: KeptValues, i: int, names: Sequence[str], at: Tensor | None) -> Found:
    """Live points of block i."""
    early = all(_early(name) for name in names)
    check, identity = (f"blocks.{i}.attn.k_rot", SAME_KEYS) if early else (f"blocks.{i}.resid_post", SAME_END)
    seen = run_block(kept, i, names, at, check)
    error = off(seen[check], kept.of(check, at))
    return {name: (seen[name], error, identity) for name in names}


@torch.no_grad()
def whole_block(kept: KeptValues, i: int, at: Tensor) -> Found:
    """All live points of block i, of the tokens at some places, by one run."""
    seen, found = _run(kept, i, Everything(), at), {}
    keys, end = (off(seen[name], kept.of(name, at)) for name in (f"blocks.{i}.attn.k_rot", f"blocks.{i}.resid_post"))
    for name, value in seen.items():
        found[name] = (value, keys, SAME_KEYS) if _early(name) else (value, end, SAME_END)
    return found


def _early(name: str) -> bool:
    return name.split(".", 2)[2] in EARLY


@torch.no_grad()
def outside(kept: KeptValues, names: Sequence[str], at: Tensor | None) -> Found:
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


def _closing(kept: KeptValues, names: Sequence[str], at: Tensor | None) -> Found:
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
def read_out(kept: KeptValues, resid: Float[Tensor, "N D"], where: Int[Tensor, "N"]) -> Float[Tensor, "N D"]:
    """A residual stream through the final norm, for tokens at these positions."""
    step = kept.step(where, kept.editor, None)
    return step.see("final.norm", kept.model.norm(resid[None]))[0]


@torch.no_grad()
def head(kept: KeptValues, normed: Float[Tensor, "N D"], where: Int[Tensor, "N"]) -> Float[Tensor, "N V"]:
    """The language-modelling head on it, some tokens at a time."""
    parts = []
    for some, at in zip(normed.split(LOGITS), where.split(LOGITS), strict=True):
        step = kept.step(at, kept.editor, None).at(at)
        step.tap = CapturingTap(step, (0,), kept.editor, None)
        parts.append(kept.model.logits(some, step))
    return torch.cat(parts)


@torch.no_grad()
def weighed(
    kept: KeptValues,
    layer: str,
    ends: Sequence[str],
    heads: Sequence[int] | None = None,
    at: Tensor | None = None,
    found: Found | None = None,
) -> tuple[dict[str, Float[Tensor, "H N S"]], float]:
    """Scores and probabilities, as `ends` name them, of some heads and queries, and max |P·V - z|.

    layer: "blocks.5.attn". found: what is known of its block at these queries.
    """
    i = layer_of(layer)
    assert i is not None
    editor, last = kept.editor, f"{layer}.z"
    late = editor is not None and editor.wants(last)  # it was changed after the probabilities
    if found is not None and not late:
        q, z = found[f"{layer}.q_rot"][0], found[last][0]
    else:
        q, z = (kept.get(f"{layer}.{part}", at) for part in ("q_rot", "z"))
        z = None if late else z
    if q is None or z is None:
        seen = run_block(kept, i, [f"{layer}.q_rot", last], at, last, before=last)
        q, z = seen[f"{layer}.q_rot"] if q is None else q, seen[last] if z is None else z
    if editor is not None and (editor.wants(f"{layer}.scores") or editor.wants(f"{layer}.probs")):
        values, error = _edited(kept, layer, q, z, at)
        return {end: values[end] if heads is None else values[end][list(heads)] for end in ends}, error
    some = None if heads is None else torch.tensor(list(heads), device=q.device)
    attention: Attention = kept.model.get_submodule(layer)  # pyright: ignore[reportAssignmentType]
    k, v = kept.of(f"{layer}.k_rot"), kept.of(f"{layer}.v")
    sinks = attention.sinks
    if some is not None:
        group = q.shape[1] // k.shape[1]
        q, z, k, v = q[:, some], z[:, some], k[:, some // group], v[:, some // group]
        sinks = None if sinks is None else sinks[some]
    where = kept.positions if at is None else at
    shape, error = (q.shape[1], len(q), len(k)), 0.0
    values = {end: q.new_empty(shape, dtype=torch.float32) for end in ends}
    n = max(1, min(QUERIES, AT_ONCE // (q.shape[1] * len(k))))
    for begin in range(0, len(q), n):
        rows = slice(begin, begin + n)
        step = kept.step(where[rows], None, None)
        bias = None if attention.spec.source else kept.model.score_bias(step)
        bias = bias if bias is None or some is None else bias[:, some]
        keys = _reach(attention.spec, where[rows], len(k))
        own, seen = (q[rows], k[keys], v[keys]), step.view(attention.spec).visible()[0, :, keys]
        scores, probs, again = weigh(
            attention.spec, *own, seen, bias if bias is None else bias[0, ..., keys], sinks, "scores" in ends
        )
        for end, value in values.items():
            value[:, rows, : keys.start], value[:, rows, keys.stop :] = UNSEEN[end], UNSEEN[end]
            value[:, rows, keys] = scores if end == "scores" else probs
        error = worst(error, off(again, z[rows]))
    return values, error


def _reach(spec: AttendSpec, queries: Int[Tensor, "N"], n_keys: int) -> slice:
    """Keys that any of these queries may see, and few others."""
    if not spec.causal or spec.source:
        return slice(0, n_keys)
    first = 0 if spec.window is None else max(0, int(queries.min()) - spec.window + 1)
    return slice(first, int(queries.max()) + 1)


def weigh(
    spec: AttendSpec,
    q: Float[Tensor, "N H Dh"],
    k: Float[Tensor, "S Hkv Dh"],
    v: Float[Tensor, "S Hkv Dv"],
    visible: Bool[Tensor, "N S"],
    bias: Float[Tensor, "H N S"] | None,
    sinks: Float[Tensor, "H"] | None,
    keep: bool,
) -> tuple[Float[Tensor, "H N S"], Float[Tensor, "H N S"], Float[Tensor, "N H Dv"]]:
    """`attend_reference` of one text: scores, probabilities (in place of the scores unless `keep`), and P·V."""
    n, n_heads, n_kv = len(q), q.shape[1], k.shape[1]
    rows = (q.float() * spec.scale).transpose(0, 1).reshape(n_kv, -1, q.shape[-1])  # [Hkv, H/Hkv N, Dh]
    scores = torch.bmm(rows, k.float().permute(1, 2, 0)).view(n_heads, n, -1)  # [H, N, S]
    if spec.softcap is not None:
        scores.div_(spec.softcap).tanh_().mul_(spec.softcap)
    if bias is not None:
        scores += bias
    partly = (~visible.all(0)).nonzero()
    if len(partly):  # most keys are seen by all of a block's queries
        some = slice(int(partly[0]), int(partly[-1]) + 1)
        scores[..., some].masked_fill_(~visible[:, some], -math.inf)
    if sinks is None:
        probs = torch.softmax(scores, -1, out=None if keep else scores)
    else:
        column = sinks.float().view(-1, 1, 1).expand(-1, n, 1)
        probs = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    z = torch.bmm(probs.reshape(n_kv, -1, probs.shape[-1]), v.float().transpose(0, 1))
    return scores, probs, z.view(n_heads, n, -1).transpose(0, 1)


def _edited(
    kept: KeptValues, layer: str, q: Tensor, z: Tensor, at: Tensor | None
) -> tuple[dict[str, Float[Tensor, "H N S"]], float]:
    """The same under an edit of them, which names heads by their number: all of them pass it."""
    i = layer_of(layer)
    assert i is not None
    attention: Attention = kept.model.get_submodule(layer)  # pyright: ignore[reportAssignmentType]
    step = kept.step(at, kept.editor, None)
    bias = None if attention.spec.source else kept.model.score_bias(step)
    kv = KV(kept.of(f"{layer}.k_rot")[None], kept.of(f"{layer}.v")[None])
    see = lambda part, value: step.layer(i).see(f"{layer.rpartition('.')[2]}.{part}", value)  # noqa: E731
    view = step.view(attention.spec)
    again, scores, probs = attend_reference(attention.spec, q[None], kv, view, bias, attention.sinks, see)
    return {"scores": scores[0], "probs": probs[0]}, off(again[0], z)


def worst(a: float, b: float) -> float:
    """The larger one; NaN where either is none."""
    return max(a, b) if a == a and b == b else math.nan


def off(a: Tensor, b: Tensor) -> float:
    """max |a - b|."""
    return (a.float() - b.float()).abs().max().item() if a.numel() else 0.0
