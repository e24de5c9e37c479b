"""Recompute values that a forward pass did not store, with the model's own modules.

    captured: resid_pre, k_rot, v --> Block i, for all tokens or some --> its points; resid_post compared with captured
    q_rot, k_rot, v, z            --> attend_reference, some heads and queries --> scores, probs; P·V compared with z

A block needs only the keys and values of earlier tokens, and those are captured: recomputing a single token costs no
more than one block of a decode step.
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

from glassformer.generate.prefill import chunk_size, has_large_masks
from glassformer.inspect.capture.capture import CapturingTap, Editor, alias
from glassformer.inspect.capture.points import find, layer_of
from glassformer.nn.attend import KV, AttendSpec, Visibility, attend_reference, visible
from glassformer.nn.attention import Attention
from glassformer.nn.protocols import EncodedSource
from glassformer.nn.step import Step

MAX_SCORES = 1 << 22  # scores held in memory at a time
QUERY_CHUNK = 128  # queries per chunk: causal attention computes no keys after the last query of a chunk
LOGIT_CHUNK = 512  # tokens whose logits are computed at a time
EARLY = ("attn.x", "attn.q", "attn.k", "attn.v", "attn.q_rot")  # points computed before attn.k_rot
SAME_KEYS = "max |k_rot recomputed - k_rot captured|"
SAME_END = "max |resid_post recomputed - resid_post captured|"
SAME_START = "max |embed.out recomputed - embed.out captured|"
SAME_LOGITS = "max |logits recomputed - logits of the forward pass|, at the last token"
ATTENDED = "max |P·V - z|"
PRODUCTS = ("attn.scores", "attn.probs", "cross.scores", "cross.probs")
HIDDEN = {"scores": -math.inf, "probs": 0.0}  # values at keys that a query does not see

# By point: the value, the error of its identity, and the identity.
Found = dict[str, tuple[Tensor, float | None, str | None]]


@dataclass(frozen=True)
class CapturedValues:
    """What a forward pass of one text stored: tensors by point, without a batch axis.

    model: the stack of blocks, a decoder or an encoder. edited: the points that edits change.
    """

    model: Any
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
        """Return a captured tensor, of some tokens or all; None where it was not captured."""
        tensor = self.tensors.get(alias(self.model.config, name, self.edited))
        return tensor if tensor is None or at is None else tensor[at]

    def require(self, name: str, at: Tensor | None = None) -> Tensor:
        """Return a tensor that every trace captures."""
        tensor = self.get(name, at)
        assert tensor is not None, f"{name} was not captured"
        return tensor

    def step(self, at: Tensor | None, editor: Editor | None, capture: Any) -> Step:
        """Return the step of a forward pass over some tokens, or all, that attends to all captured keys."""
        queries = self.positions if at is None else self.positions[at]
        step = Step(queries[None], cache=CapturedCache(self, queries), source=self.source)
        step.tap = CapturingTap(step, (0,), editor, capture)
        return step


class CapturedCache:
    """A cache over the captured keys and values of the text; forward passes over its tokens store nothing in it."""

    def __init__(self, captured: CapturedValues, queries: Tensor):
        self.captured, self.queries = captured, queries
        self.source, self.reach = captured.source, [len(captured.ids)]

    def layer(self, i: int) -> CapturedLayer:
        return CapturedLayer(self.captured, i)

    def view(self, spec: AttendSpec) -> Visibility:
        keys, n = self.captured.positions[None], len(self.captured.ids)
        if len(self.queries) == n and (spec.window is None or spec.window >= n):
            return Visibility(keys, keys, None, causal=spec.causal)
        return Visibility(self.queries[None], keys, visible(spec, self.queries[None], keys))


class CapturedLayer:
    """One layer of a `CapturedCache`."""

    def __init__(self, captured: CapturedValues, i: int):
        self.captured, self.i = captured, i

    def keep(self, k: Tensor, v: Tensor) -> KV:
        name = f"blocks.{self.i}.attn."
        k_rot, latent = self.captured.require(f"{name}k_rot"), self.captured.tensors.get(f"{name}latent")
        if self.captured.model.config.layers[self.i].attention.latent is None:
            return KV(k_rot[None], self.captured.require(f"{name}v")[None])
        assert latent is not None  # the cache holds a rotated key, shared by all heads, and the latent of each token
        token = torch.cat([k_rot[:, :1, : k.shape[-1] - latent.shape[-1]], latent[:, None]], -1)[None]
        return KV(token, token[..., :0])

    def keep_source(self, make: Callable[[], tuple[Tensor, Tensor]]) -> KV:
        make()  # for a tap at the keys before their norm
        return KV(*(self.captured.require(f"blocks.{self.i}.cross.{end}")[None] for end in ("k_rot", "v")))


class StopForward(Exception):
    """Raised by a tap to end a forward pass after the last point that is needed."""


class PointCapture:
    """Captures some points, and ends the forward pass after `last`."""

    def __init__(self, names: Sequence[str], last: str = ""):
        self.names, self.last = {*names, last}, last
        self.tensors: dict[str, Tensor] = {}

    def wants(self, name: str) -> bool:
        return name in self.names

    def capture(self, name: str, value: Tensor, step: Step) -> None:
        self.tensors[name] = value[0]
        if name == self.last:
            raise StopForward


class BlockCapture(PointCapture):
    """Captures all live points of a block's own tokens. Points that only an edit makes live are left out."""

    def __init__(self):
        super().__init__(())

    def wants(self, name: str) -> bool:
        return not name.endswith((".scores", ".probs", ".heads", ".cross.k", ".cross.v", ".cross.k_rot"))


class EditorExcept:
    """An editor without the edits of some points, such as a block's input, which was edited before it was captured."""

    def __init__(self, editor: Editor, *names: str):
        self.editor, self.names = editor, names

    def wants(self, name: str) -> bool:
        return name not in self.names and self.editor.wants(name)

    def change(self, name: str, value: Tensor, step: Step, rows: tuple[int, ...]) -> Tensor:
        return self.editor.change(name, value, step, rows)


def run_block(
    captured: CapturedValues, i: int, names: Sequence[str], at: Tensor | None, last: str, before_edit: str = ""
) -> dict[str, Tensor]:
    """Run block i on its captured input, for some tokens or all, up to the point `last`; return it and `names`.

    before_edit: a point to return as it is before edits of it.
    """
    return _run(captured, i, PointCapture(names, last), at, before_edit)


def _run(
    captured: CapturedValues, i: int, capture: PointCapture, at: Tensor | None, before_edit: str = ""
) -> dict[str, Tensor]:
    """Run block i; in chunks of tokens where a mask or scores of all of them would be stored."""
    start = f"blocks.{i}.resid_pre"
    editor = None if captured.editor is None else EditorExcept(captured.editor, start, before_edit)
    edits_scores = editor is not None and any(editor.wants(f"blocks.{i}.{end}") for end in PRODUCTS)
    n, config = len(captured.ids) if at is None else len(at), captured.model.config
    parts: list[Tensor | None] = [at]
    if n > 1 and (edits_scores or at is not None or has_large_masks(config, n)):
        size = chunk_size(config, len(captured.ids), 1, edits_scores)
        if size < n:
            parts = list((captured.positions if at is None else at).split(size))
    found: list[dict[str, Tensor]] = []
    for part in parts:
        capture.tensors = {}
        step = captured.step(part, editor, capture)
        with contextlib.suppress(StopForward):
            bias = captured.model.score_bias(step)
            captured.model.blocks[i](captured.require(start, part)[None], step.layer(i, bias))
        found.append(capture.tensors)
    if len(found) == 1:
        return found[0]
    shared = {name: value for name, value in found[0].items() if not _of_tokens(captured, name)}
    return shared | {name: torch.cat([one[name] for one in found]) for name in found[0] if name not in shared}


def _of_tokens(captured: CapturedValues, name: str) -> bool:
    """Return whether a point has a value for each token that a forward pass processes."""
    return find(captured.model.config, name).axes.split()[1] == "T"


@torch.no_grad()
def block_points(captured: CapturedValues, i: int, names: Sequence[str], at: Tensor | None) -> Found:
    """Return some live points of block i."""
    early = all(_is_early(name) for name in names)
    check, identity = (f"blocks.{i}.attn.k_rot", SAME_KEYS) if early else (f"blocks.{i}.resid_post", SAME_END)
    values = run_block(captured, i, names, at, check)
    error = max_difference(values[check], captured.require(check, at))
    return {name: (values[name], error, identity) for name in names}


@torch.no_grad()
def block_at_token(captured: CapturedValues, i: int, at: Tensor) -> Found:
    """Return all live points of block i at some tokens, by one run."""
    values, found = _run(captured, i, BlockCapture(), at), {}
    keys, end = (
        max_difference(values[name], captured.require(name, at))
        for name in (f"blocks.{i}.attn.k_rot", f"blocks.{i}.resid_post")
    )
    for name, value in values.items():
        found[name] = (value, keys, SAME_KEYS) if _is_early(name) else (value, end, SAME_END)
    return found


def _is_early(name: str) -> bool:
    return name.split(".", 2)[2] in EARLY


@torch.no_grad()
def outer_points(captured: CapturedValues, names: Sequence[str], at: Tensor | None) -> Found:
    """Return points before the first block, or after the last."""
    capture, found = PointCapture(names), {}
    step = captured.step(at, captured.editor, capture)
    ids = captured.ids if at is None else captured.ids[at]
    if any(name.startswith("embed.") for name in names):
        embedded = captured.model.embed_input(ids[None], step)[0]
        error = max_difference(embedded, captured.require("embed.out", at))
        found |= {name: (capture.tensors[name], error, SAME_START) for name in names if name in capture.tensors}
    if any(name.startswith("final.") for name in names):
        found |= _final_points(captured, names, at)
    return found


def _final_points(captured: CapturedValues, names: Sequence[str], at: Tensor | None) -> Found:
    """The final norm and the logits, compared with the logits of the last token in the forward pass."""
    positions = captured.positions if at is None else captured.positions[at]
    last = f"blocks.{captured.model.config.n_layers - 1}.resid_post"
    normed = final_norm(captured, captured.require(last, at), positions)
    values, error = {"final.norm": normed}, None
    if "final.logits" in names:
        values["final.logits"] = head(captured, normed, positions)
    if captured.last_logits is not None:
        end = captured.positions[-1:]
        if "final.logits" in values and bool((positions[-1:] == end).all()):
            recomputed = values["final.logits"][-1]
        else:
            recomputed = head(captured, final_norm(captured, captured.require(last, end), end), end)[0]
        error = max_difference(recomputed, captured.last_logits)
    return {name: (value, error, SAME_LOGITS) for name, value in values.items() if name in names}


@torch.no_grad()
def final_norm(
    captured: CapturedValues, resid: Float[Tensor, "N D"], positions: Int[Tensor, "N"]
) -> Float[Tensor, "N D"]:
    """Apply the final norm to a residual stream at these positions."""
    step = captured.step(positions, captured.editor, None)
    return step.see("final.norm", captured.model.norm(resid[None]))[0]


@torch.no_grad()
def head(captured: CapturedValues, normed: Float[Tensor, "N D"], positions: Int[Tensor, "N"]) -> Float[Tensor, "N V"]:
    """Apply the language-modelling head, in chunks of tokens."""
    parts = []
    for some, at in zip(normed.split(LOGIT_CHUNK), positions.split(LOGIT_CHUNK), strict=True):
        step = captured.step(at, captured.editor, None).at(at)
        step.tap = CapturingTap(step, (0,), captured.editor, None)
        parts.append(captured.model.logits(some, step))
    return torch.cat(parts)


@torch.no_grad()
def attend(
    captured: CapturedValues,
    layer: str,
    ends: Sequence[str],
    heads: Sequence[int] | None = None,
    at: Tensor | None = None,
    found: Found | None = None,
) -> tuple[dict[str, Float[Tensor, "H N S"]], float]:
    """Return scores and probabilities of some heads and queries, and max |P·V - z|.

    layer: "blocks.5.attn". ends: of "scores" and "probs", those to return. found: points of the block that are already
    recomputed for these queries.
    """
    i = layer_of(layer)
    assert i is not None
    editor, last = captured.editor, f"{layer}.z"
    z_edited = editor is not None and editor.wants(last)
    if found is not None and not z_edited:
        q, z = found[f"{layer}.q_rot"][0], found[last][0]
    else:
        q, z = (captured.get(f"{layer}.{part}", at) for part in ("q_rot", "z"))
        z = None if z_edited else z
    if q is None or z is None:
        values = run_block(captured, i, [f"{layer}.q_rot", last], at, last, before_edit=last)
        q, z = values[f"{layer}.q_rot"] if q is None else q, values[last] if z is None else z
    if editor is not None and (editor.wants(f"{layer}.scores") or editor.wants(f"{layer}.probs")):
        return _attend_edited(captured, layer, ends, heads, q, z, at)
    some = None if heads is None else torch.tensor(list(heads), device=q.device)
    attention: Attention = captured.model.get_submodule(layer)
    k, v = captured.require(f"{layer}.k_rot"), captured.require(f"{layer}.v")
    sinks = attention.sinks
    if some is not None:
        group = q.shape[1] // k.shape[1]
        q, z, k, v = q[:, some], z[:, some], k[:, some // group], v[:, some // group]
        sinks = None if sinks is None else sinks[some]
    positions = captured.positions if at is None else at
    shape, error = (q.shape[1], len(q), len(k)), 0.0
    values = {end: q.new_empty(shape, dtype=torch.float32) for end in ends}
    n = max(1, min(QUERY_CHUNK, MAX_SCORES // (q.shape[1] * len(k))))
    for begin in range(0, len(q), n):
        rows = slice(begin, begin + n)
        step = captured.step(positions[rows], None, None)
        bias = None if attention.spec.source else captured.model.score_bias(step)
        bias = bias if bias is None or some is None else bias[:, some]
        keys = _key_range(attention.spec, positions[rows], len(k))
        own, seen = (q[rows], k[keys], v[keys]), step.view(attention.spec).visible()[0, :, keys]
        scores, probs, recomputed = attend_one_text(
            attention.spec, *own, seen, bias if bias is None else bias[0, ..., keys], sinks, "scores" in ends
        )
        for end, value in values.items():
            value[:, rows, : keys.start], value[:, rows, keys.stop :] = HIDDEN[end], HIDDEN[end]
            value[:, rows, keys] = scores if end == "scores" else probs
        error = larger(error, max_difference(recomputed, z[rows]))
    return values, error


def _key_range(spec: AttendSpec, queries: Int[Tensor, "N"], n_keys: int) -> slice:
    """The smallest range of keys that holds every key visible to one of these queries."""
    if not spec.causal or spec.source:
        return slice(0, n_keys)
    first = 0 if spec.window is None else max(0, int(queries.min()) - spec.window + 1)
    return slice(first, int(queries.max()) + 1)


def attend_one_text(
    spec: AttendSpec,
    q: Float[Tensor, "N H Dh"],
    k: Float[Tensor, "S Hkv Dh"],
    v: Float[Tensor, "S Hkv Dv"],
    visible: Bool[Tensor, "N S"],
    bias: Float[Tensor, "H N S"] | None,
    sinks: Float[Tensor, "H"] | None,
    keep_scores: bool,
) -> tuple[Float[Tensor, "H N S"], Float[Tensor, "H N S"], Float[Tensor, "N H Dv"]]:
    """Compute `attend_reference` for one text: scores, probabilities and P·V.

    Without `keep_scores` the probabilities overwrite the scores.
    """
    n, n_heads, n_kv = len(q), q.shape[1], k.shape[1]
    rows = (q.float() * spec.scale).transpose(0, 1).reshape(n_kv, -1, q.shape[-1])  # [Hkv, H/Hkv N, Dh]
    scores = torch.bmm(rows, k.float().permute(1, 2, 0)).view(n_heads, n, -1)  # [H, N, S]
    if spec.softcap is not None:
        scores.div_(spec.softcap).tanh_().mul_(spec.softcap)
    if bias is not None:
        scores += bias
    partly = (~visible.all(0)).nonzero()
    if len(partly):  # all queries of a chunk see most keys: only the rest is masked
        some = slice(int(partly[0]), int(partly[-1]) + 1)
        scores[..., some].masked_fill_(~visible[:, some], -math.inf)
    if sinks is None:
        probs = torch.softmax(scores, -1, out=None if keep_scores else scores)
    else:
        column = sinks.float().view(-1, 1, 1).expand(-1, n, 1)
        probs = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    z = torch.bmm(probs.reshape(n_kv, -1, probs.shape[-1]), v.float().transpose(0, 1))
    return scores, probs, z.view(n_heads, n, -1).transpose(0, 1)


def _attend_edited(
    captured: CapturedValues,
    layer: str,
    ends: Sequence[str],
    heads: Sequence[int] | None,
    q: Tensor,
    z: Tensor,
    at: Tensor | None,
) -> tuple[dict[str, Float[Tensor, "H N S"]], float]:
    """`attend` under edits of scores or probabilities, which name heads by number: all heads are computed."""
    i = layer_of(layer)
    assert i is not None
    attention: Attention = captured.model.get_submodule(layer)
    kv = KV(captured.require(f"{layer}.k_rot")[None], captured.require(f"{layer}.v")[None])
    positions, some = captured.positions if at is None else at, list(range(q.shape[1]) if heads is None else heads)
    n_keys, error = kv.k.shape[1], 0.0
    values = {end: q.new_empty((len(some), len(q), n_keys), dtype=torch.float32) for end in ends}
    size = max(1, min(QUERY_CHUNK, MAX_SCORES // (q.shape[1] * n_keys)))
    for begin in range(0, len(q), size):
        rows = slice(begin, begin + size)
        step = captured.step(positions[rows], captured.editor, None)
        bias = None if attention.spec.source else captured.model.score_bias(step)
        see = lambda part, value: step.layer(i).see(f"{layer.rpartition('.')[2]}.{part}", value)  # noqa: B023, E731
        view = step.view(attention.spec)
        recomputed, scores, probs = attend_reference(
            attention.spec, q[None, rows], kv, view, bias, attention.sinks, see
        )
        for end, value in values.items():
            value[:, rows] = (scores if end == "scores" else probs)[0, some]
        error = larger(error, max_difference(recomputed[0], z[rows]))
    return values, error


def check_last_logits(captured: CapturedValues, shown: Float[Tensor, "V"]) -> float | None:
    """Return by how much logits of the last token, as a view shows them, differ from those of the forward pass.

    None where the trace has none of the forward pass.
    """
    passed = captured.last_logits
    if passed is None and (all_logits := captured.get("final.logits")) is not None:
        passed = all_logits[-1]
    return None if passed is None else max_difference(shown, passed)


def larger(a: float, b: float) -> float:
    """Return the larger number, NaN where one of them is NaN."""
    return max(a, b) if a == a and b == b else math.nan


def max_difference(a: Tensor, b: Tensor) -> float:
    """Return max |a - b| in float32, 0 for empty tensors."""
    return (a.float() - b.float()).abs().max().item() if a.numel() else 0.0
