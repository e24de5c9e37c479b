"""Apply edits during forward passes. Each edit is checked against the model once, then applied at its positions.

A forward pass may process a chunk of a prompt, one token, or a batch of several texts. An edit names positions of a
text, and which text; the step of the forward pass has the position of every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from glassformer.config import EncoderConfig, ModelConfig, RecurrentConfig
from glassformer.errors import RequestError
from glassformer.families.common.family import AnyConfig
from glassformer.inspect.capture.capture import CapturingTap
from glassformer.inspect.capture.points import ENCODER, find, layer_of, points, sizes
from glassformer.inspect.edits.edit import Edit, as_list, is_product
from glassformer.kernels.placement import Choice
from glassformer.nn.attend import AttendSpec, visible
from glassformer.nn.attention import attend_spec
from glassformer.nn.protocols import Tap
from glassformer.nn.step import Step

MATH = "attention by its definition, not by the fused kernel"
TO_SOURCE = AttendSpec(1.0, causal=False, source=True)  # the visibility of a recurrent model's attention


class Edits:
    """The `Editor` of one request.

    prompts: the length of each text's prompt. length: the largest number of tokens of a text. source: that of a source.
    RequestError for an edit of a point or an index that the model does not have; it says what is allowed.
    """

    def __init__(
        self,
        config: AnyConfig | EncoderConfig,
        edits: Edit | Sequence[Edit],
        prompts: Sequence[int],
        length: int,
        source: int | None = None,
    ):
        self.edits: tuple[Edit, ...] = tuple(edits) if isinstance(edits, Sequence) else (edits,)
        self.config, self.prompts, self.source = config, tuple(prompts), source
        self.by_point: dict[str, list[Edit]] = {}  # with tensors as `_shaped` returns them
        for edit in self.edits:
            if not isinstance(edit, Edit):
                raise RequestError(
                    f"an edit must be made by ablate, scale, ... or from_json, got {edit!r:.100}", param="edit"
                )
            tensor = _check(config, edit, self.prompts, length, source)
            self.by_point.setdefault(edit.point, []).append(edit if tensor is None else replace(edit, tensor=tensor))

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What the model computes differently because of the edits, such as attention by its definition."""
        some = [edit.point for edit in self.edits if is_product(edit.point) and layer_of(edit.point) is not None]
        layers = sorted({point.rpartition(".")[0] for point in some})
        return tuple(Choice(layer, MATH, "its scores or probabilities are edited") for layer in layers)

    @property
    def edits_scores(self) -> bool:
        """Whether an edit changes scores or probabilities, so that they are stored."""
        return any(is_product(point) for point in self.by_point)

    def for_encoder(self) -> Edits | None:
        """Return the edits of the encoder, with its own names of points; None where there are none."""
        assert isinstance(self.config, ModelConfig)
        assert self.config.encoder is not None
        assert self.source is not None
        own = [
            replace(edit, point=edit.point.removeprefix(ENCODER))
            for edit in self.edits
            if edit.point.startswith(ENCODER)
        ]
        return Edits(self.config.encoder, own, (self.source,), self.source) if own else None

    def wants(self, name: str) -> bool:
        return name in self.by_point

    def change(self, name: str, value: Tensor, step: Step, rows: tuple[int, ...]) -> Tensor:
        """Return the edited value. rows: for each sequence of the batch, the number of its text."""
        edits = self.by_point[name]
        if len(value) == 1 < len(rows) and value.ndim > 2 and any(edit.row is not None for edit in edits):
            value = value.expand(len(rows), *value.shape[1:])
        value = value.clone()
        for edit in edits:
            (self._edit_scores if is_product(name) else self._edit_tokens)(edit, value, step, rows)
        return value

    def _edit_tokens(self, edit: Edit, value: Tensor, step: Step, rows: tuple[int, ...]) -> None:
        """Edit a value [B, T, ...], or [B, ...] with one token each, in place."""
        positions = _positions(find(self.config, edit.point).axes.split()[1], step)
        lead = value.shape[: positions.ndim]
        rows = rows[: lead[0]]  # one value stands for all sequences where it is the same
        where = positions.expand(lead)
        order = self._order(edit.position, where, rows)
        here = (order >= 0) & self._own(edit, where, rows)
        per_token = edit.tensor is not None and edit.tensor.ndim == value.ndim - where.ndim + 1
        if edit.tensor is not None and per_token and edit.position is None:
            here &= where < len(edit.tensor)  # positions that the other text has
        if not here.any():
            return
        part = value[here]  # [N, ...]
        heads, dims = (_index(indices, value.device) for indices in (edit.head, edit.dim))
        index: tuple = (slice(None),)
        if part.ndim == 3:
            both = heads is not None and dims is not None
            index += (slice(None) if heads is None else heads[:, None] if both else heads,)
        index += (slice(None) if dims is None else dims,)
        given = edit.tensor if edit.tensor is None else edit.tensor.to(value)
        part[index] = _changed(edit, part[index], given[order[here]] if given is not None and per_token else given)
        value[here] = part

    def _edit_scores(self, edit: Edit, value: Tensor, step: Step, rows: tuple[int, ...]) -> None:
        """Edit the visible scores or probabilities, [B, H, T, S] or [B, T, S], in place."""
        value = value if value.ndim == 4 else value[:, None]
        view = step.view(_spec(self.config, edit.point))
        n, _, n_queries, n_keys = value.shape
        queries, keys = view.queries.expand(n, -1), view.keys.expand(n, -1)
        q, k = self._order(edit.query, queries, rows), self._order(edit.key, keys, rows)
        here = ((q >= 0) & self._own(edit, queries, rows))[:, :, None]
        here = here & (k >= 0)[:, None, :] & view.visible().expand(n, n_queries, n_keys)
        heads = as_list(range(value.shape[1]) if edit.head is None else edit.head)
        part = value[:, heads]
        if edit.op == "patch":
            assert edit.tensor is not None
            its = edit.tensor.to(value)
            its = its if its.ndim == 3 else its[None]
            here = here & (q < its.shape[1])[:, :, None] & (k < its.shape[2])[:, None, :]
            q, k = q.clamp(0, its.shape[1] - 1), k.clamp(0, its.shape[2] - 1)
            new = torch.stack([its[:, a][:, :, b] for a, b in zip(q, k, strict=True)])
        else:
            new = _changed(edit, part, None)
        value[:, heads] = torch.where(here[:, None], new, part)

    def _order(self, indices: int | Sequence[int] | None, positions: Tensor, rows: tuple[int, ...]) -> Tensor:
        """Return the number of each position among the selected indices; -1 where it is not selected.

        None selects all, in their own order. The index -1 stands for the positions after which a token is generated.
        Padding and empty slots, at position -1, are never selected.
        """
        if indices is None:
            return positions
        some = torch.tensor(as_list(indices), device=positions.device)
        known, order = some.sort()
        at = torch.searchsorted(known, positions.contiguous()).clamp(max=len(known) - 1)
        found = torch.where((known[at] == positions) & (positions >= 0), order[at], -1)
        if -1 in as_list(indices):
            prompts = torch.tensor([self.prompts[row] for row in rows], device=positions.device)
            prompts = prompts.view(-1, *(1 for _ in positions.shape[1:]))
            last = (positions >= prompts - 1) & (found < 0)
            found = torch.where(last, as_list(indices).index(-1), found)
        return found

    def _own(self, edit: Edit, positions: Tensor, rows: tuple[int, ...]) -> Tensor:
        """Return which sequences of the batch the edit applies to."""
        if edit.row is None:
            return torch.ones_like(positions, dtype=torch.bool)
        own = torch.tensor([row == edit.row for row in rows], device=positions.device)
        return own.view(-1, *(1 for _ in positions.shape[1:])).expand_as(positions)


class EditObserver:
    """An `Observer` that edits the forward passes of a request and captures nothing."""

    sees_last_token, has_edits = False, True

    def __init__(self, editor: Edits):
        self.editor = editor
        self.separate_prefill = any(edit.row is not None for edit in editor.edits)

    def tap(self, step: Step, sequences: Sequence[int]) -> Tap:
        return CapturingTap(step, sequences, self.editor, None)


def edited_points(editor: Edits | None) -> tuple[str, ...]:
    """Return the points that edits change."""
    return () if editor is None else tuple(editor.by_point)


def trace_fields(editor: Edits | None) -> dict[str, Any]:
    """Return the arguments of a trace that describe its edits."""
    return {} if editor is None else {"edits": editor.edits, "choices": editor.choices}


def _changed(edit: Edit, value: Tensor, given: Tensor | None) -> Tensor:
    """Return a value after an edit. given: the edit's tensor, which broadcasts to the value."""
    if edit.op == "ablate":
        return torch.zeros_like(value)
    if edit.op == "scale":
        return value * (edit.factor or 0)
    if edit.op == "knockout":
        return torch.full_like(value, -torch.inf)
    if given is None:
        assert edit.value is not None
        given = torch.full_like(value, edit.value, dtype=torch.float32).to(value)  # float16: may become inf
    if edit.op == "add":
        return value + (given if edit.factor is None else edit.factor * given)
    return given.expand_as(value)


def _positions(axis: str, step: Step) -> Tensor:
    """Return the positions of a point's tokens: of the input (T), of the source (S), or 0 for one value per text."""
    if axis == "T":
        return step.positions
    if axis == "S":
        assert step.source is not None
        return step.source.positions
    return torch.zeros(1, dtype=torch.long, device=step.positions.device)


def _index(indices: int | Sequence[int] | None, device: torch.device) -> Tensor | None:
    return None if indices is None else torch.tensor(as_list(indices), device=device)


def _spec(config: AnyConfig | EncoderConfig, point: str) -> AttendSpec:
    """Return the spec of the attention that a point of scores or probabilities belongs to."""
    i = layer_of(point)
    if isinstance(config, RecurrentConfig):
        return TO_SOURCE
    assert i is not None
    encoder = config.encoder if isinstance(config, ModelConfig) and point.startswith(ENCODER) else None
    stack = config if encoder is None else encoder
    layer = stack.layers[i]
    source = ".cross." in point
    return attend_spec(layer.cross if source and layer.cross is not None else layer.attention, source)


# ---- validation


def _check(
    config: AnyConfig | EncoderConfig, edit: Edit, prompts: Sequence[int], length: int, source: int | None
) -> Tensor | None:
    """Raise RequestError unless the model has the point and the indices of an edit; return its tensor, `_shaped`."""
    point, i = find(config, edit.point, "edit"), layer_of(edit.point)
    recomputed = edit.point.startswith("blocks.") and edit.point.endswith((".attn.k", ".attn.v", ".attn.k_rot"))
    if recomputed and not isinstance(config, RecurrentConfig) and config.layers[i or 0].attention.latent is not None:
        raise _wrong(
            edit, f"keys and values are recomputed from the latents in every forward pass: edit blocks.{i}.attn.latent"
        )
    axes, product = point.axes.split()[1:], is_product(edit.point)
    if edit.op == "knockout" and not edit.point.endswith(".scores"):
        has = [name for name in points(config) if name.endswith(".scores")]
        if not has:
            raise _wrong(edit, "a knockout edits attention scores, and this model has no attention")
        own = f"{edit.point.rpartition('.')[0]}.scores"
        raise _wrong(edit, f"a knockout edits scores, such as {own if own in has else has[0]}")
    inside, n_source = edit.point.startswith(ENCODER), source or length
    whole = inside or axes[0] == "S" or isinstance(config, EncoderConfig)  # known before generation begins
    n_tokens = n_source if inside or axes[0] == "S" else length
    takes = _takes(config, edit.point, axes, n_tokens, n_source if inside or not _own_keys(edit.point) else length)
    for name in ("head", "position", "query", "key", "dim"):
        indices = getattr(edit, name)
        if indices is None:
            continue
        if name not in takes:
            raise _wrong(edit, f"{edit.point} has no {name}: it has {', '.join(takes)}")
        generated = name in ("position", "query") and not whole
        for index in as_list(indices):
            if not (0 <= index < takes[name] or (generated and index == -1)):
                which = ", or -1, every token after which one is generated" if generated else ""
                raise _wrong(edit, f"{name} must be from 0 to {takes[name] - 1}{which}, got {index}")
    if edit.row is not None and not 0 <= edit.row < len(prompts):
        raise _wrong(edit, f"row must be from 0 to {len(prompts) - 1}, got {edit.row}")
    if product and isinstance(edit.query, int) and isinstance(edit.key, int) and edit.query >= 0:
        seen = visible(_spec(config, edit.point), torch.tensor([[edit.query]]), torch.tensor([[edit.key]]))
        if not seen.all():
            raise _wrong(edit, f"query {edit.query} does not see key {edit.key}")
    return None if edit.tensor is None else _shaped(edit, edit.tensor, takes, min(prompts) - 1)


def _own_keys(point: str) -> bool:
    """Return whether the keys are those of the text, not of a source."""
    return ".cross." not in point and not point.startswith("rnn.")


def _takes(
    config: AnyConfig | EncoderConfig, point: str, axes: Sequence[str], n_tokens: int, n_keys: int
) -> dict[str, int]:
    """Return what an edit of a point can select, with the length of each axis."""
    size, product = sizes(config, point) | {"2": 2}, is_product(point)
    takes = {"head": size[axes[0 if product else 1]]} if len(axes) == 3 else {}
    if product:
        return takes | {"query": n_tokens, "key": n_keys}
    return takes | ({"position": n_tokens} if len(axes) > 1 else {}) | {"dim": size[axes[-1]]}


def _shaped(edit: Edit, tensor: Tensor, takes: dict[str, int], last: int) -> Tensor:
    """Return an edit's tensor with the axes that it selects, which broadcast to the value.

    last: the position of the last token of the prompt, the first that the index -1 stands for. RequestError unless the
    tensor has as many numbers as the edit selects, in one row for each position.
    """
    for name in ("position", "query"):
        some = as_list(getattr(edit, name) or 0)
        if -1 in some and max(some) >= last:
            raise _wrong(edit, f"{name} {max(some)} is also one of those that -1 stands for: name it once")

    def n(name: str) -> int:
        indices = getattr(edit, name)
        return takes[name] if indices is None else len(as_list(indices))

    have = tuple(tensor.shape)
    if is_product(edit.point):
        if edit.op != "patch":
            raise _wrong(edit, f"{edit.op} of scores and probabilities needs one number (value), not a vector")
        shape = tuple(map(n, takes))
        loose = [
            name in ("query", "key") and getattr(edit, name) is None for name in takes
        ]  # the other text may have another length
        ok = len(have) == len(shape) and all(a == b or any_ for a, b, any_ in zip(have, shape, loose, strict=True))
    else:
        rest = tuple(n(name) for name in ("head", "dim") if name in takes)
        shape = (n("position"), *rest) if edit.position is not None else rest
        if edit.op == "patch":
            of_tokens = have[1:] if "position" in takes else have
            ok = of_tokens == rest and (edit.position is None or have == shape)
        else:
            ok = have in (rest, shape, (n("dim"),))
            for full in () if ok else (rest, shape):  # without the axes of one selected index
                if have == tuple(size for size in full if size > 1):
                    return tensor.reshape(full)
    if not ok:
        raise _wrong(edit, f"its tensor has the shape {list(have)}, and the selection has {list(shape)}")
    return tensor


def _wrong(edit: Edit, message: str) -> RequestError:
    return RequestError(f"edit {edit.op} of {edit.point}: {message}", param="edit")
