"""How edits reach a pass: each is checked against the model once, then applied wherever its positions come by.

A pass may bring a prompt's chunk, one token, or rows of many texts. An edit names positions of a text, and which text;
the tap of the pass knows which of them stand where.
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
from glassformer.inspect.capture.points import find, layer_of, points, sizes
from glassformer.inspect.capture.reader import CapturingTap
from glassformer.inspect.edits.edit import Edit, listed, of_product
from glassformer.kernels.placement import Choice
from glassformer.nn.attend import AttendSpec, visible
from glassformer.nn.attention import attend_spec
from glassformer.nn.protocols import Tap
from glassformer.nn.step import Step

MATH = "the definition of attention, not its fast twin"
TO_SOURCE = AttendSpec(1.0, causal=False, source=True)  # a recurrent model's attention, as far as an edit knows it


class Edits:
    """An `Editor`: the edits of one request. `prompts` are the lengths of the texts' prompts, by their number.

    length: the most tokens that a text may have; source: of what a decoder reads beside. RequestError for an edit of a
    place that is not there: it says which are.
    """

    def __init__(
        self,
        config: AnyConfig | EncoderConfig,
        edits: Sequence[Edit],
        prompts: Sequence[int],
        length: int,
        source: int | None = None,
    ):
        self.config, self.edits, self.prompts, self.source = config, tuple(edits), tuple(prompts), source
        self.by_point: dict[str, list[Edit]] = {}
        for edit in self.edits:
            if not isinstance(edit, Edit):
                raise RequestError(
                    f"an edit is made by ablate, scale, ... or from_json, got {edit!r:.100}", param="edit"
                )
            _check(config, edit, len(self.prompts), length, source)
            self.by_point.setdefault(edit.point, []).append(edit)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What the edits make the model do otherwise, beside what they change."""
        some = [edit.point for edit in self.edits if of_product(edit.point) and layer_of(edit.point) is not None]
        layers = sorted({point.rpartition(".")[0] for point in some})
        return tuple(Choice(layer, MATH, "its scores or probabilities are edited") for layer in layers)

    def inside(self, prefix: str) -> Edits | None:
        """The encoder's own, by the names that it has for its points; None where there are none."""
        assert isinstance(self.config, ModelConfig)
        assert self.config.encoder is not None
        assert self.source is not None
        own = [
            replace(edit, point=edit.point.removeprefix(prefix)) for edit in self.edits if edit.point.startswith(prefix)
        ]
        return Edits(self.config.encoder, own, (self.source,), self.source) if own else None

    def wants(self, name: str) -> bool:
        return name in self.by_point

    def change(self, name: str, value: Tensor, step: Step, rows: tuple[int, ...]) -> Tensor:
        """What flows on in place of `value`; `rows` are the numbers of the texts that its rows are of."""
        edits = self.by_point[name]
        if len(value) == 1 < len(rows) and value.ndim > 2 and any(edit.row is not None for edit in edits):
            value = value.expand(len(rows), *value.shape[1:])
        value = value.clone()
        for edit in edits:
            (self._product if of_product(name) else self._tokens)(edit, value, step, rows)
        return value

    def _tokens(self, edit: Edit, value: Tensor, step: Step, rows: tuple[int, ...]) -> None:
        """Of a value [B, T, ...] (or [B, ...], of one token each): what is named of the tokens that are."""
        positions = _positions(find(self.config, edit.point).axes.split()[1], step)
        lead = value.shape[: positions.ndim]
        rows = rows[: lead[0]]  # one value for all of them, where it is the same
        where = positions.expand(lead)
        here = self._named(edit.position, where, rows) & self._own(edit, where, rows)
        if edit.op == "patch" and edit.position is None and edit.tensor is not None:
            here &= where < len(edit.tensor)  # the positions that the other text has
        if not here.any():
            return
        part = value[here]  # [N, ...]
        heads, dims = (_index(places, value.device) for places in (edit.head, edit.dim))
        index: tuple = (slice(None),)
        if part.ndim == 3:
            both = heads is not None and dims is not None
            index += (slice(None) if heads is None else heads[:, None] if both else heads,)
        index += (slice(None) if dims is None else dims,)
        part[index] = _changed(edit, part[index], self._per_token(edit, where[here]))
        value[here] = part

    def _per_token(self, edit: Edit, positions: Tensor) -> Tensor | None:
        """Which row of the edit's tensor each token takes, where it has one for each."""
        if edit.op == "patch" and edit.position is None:
            return positions
        if not isinstance(edit.position, tuple) or -1 in edit.position:
            return None
        table = {position: n for n, position in enumerate(edit.position)}
        return torch.tensor([table[p] for p in positions.tolist()], device=positions.device)

    def _product(self, edit: Edit, value: Tensor, step: Step, rows: tuple[int, ...]) -> None:
        """Of scores or probabilities [B, H, T, S], or [B, T, S]: those of the queries, keys and heads named that are
        visible.
        """
        value = value if value.ndim == 4 else value[:, None]
        view = step.view(_spec(self.config, edit.point))
        n, _, n_queries, n_keys = value.shape
        queries, keys = view.queries.expand(n, -1), view.keys.expand(n, -1)
        here = (self._named(edit.query, queries, rows) & self._own(edit, queries, rows))[:, :, None]
        here = here & _among(edit.key, keys)[:, None, :] & view.visible().expand(n, n_queries, n_keys)
        heads = listed(range(value.shape[1]) if edit.head is None else edit.head)
        part = value[:, heads]
        if edit.op == "patch":
            assert edit.tensor is not None
            its = edit.tensor.to(value)
            its = its if its.ndim == 3 else its[None]
            q, k = _rows_of(its.shape[1], edit.query, queries), _rows_of(its.shape[2], edit.key, keys)
            here = here & (q >= 0)[:, :, None] & (k >= 0)[:, None, :]
            new = torch.stack([its[:, a.clamp(min=0)][:, :, b.clamp(min=0)] for a, b in zip(q, k, strict=True)])
        else:
            new = _changed(edit, part, None)
        value[:, heads] = torch.where(here[:, None], new, part)

    def _named(self, places: int | Sequence[int] | None, positions: Tensor, rows: tuple[int, ...]) -> Tensor:
        """Which positions are named; -1 are those from which new tokens are written."""
        found = _among(places, positions)
        if places is not None and -1 in listed(places):
            prompts = torch.tensor([self.prompts[row] for row in rows], device=positions.device)
            prompts = prompts.view(-1, *(1 for _ in positions.shape[1:]))
            found = found | (positions >= prompts - 1)
        return found

    def _own(self, edit: Edit, positions: Tensor, rows: tuple[int, ...]) -> Tensor:
        """Which rows the edit is of."""
        if edit.row is None:
            return torch.ones_like(positions, dtype=torch.bool)
        own = torch.tensor([row == edit.row for row in rows], device=positions.device)
        return own.view(-1, *(1 for _ in positions.shape[1:])).expand_as(positions)


class Editing:
    """A `Watch` that edits the passes of a request and keeps nothing."""

    sees_last_token, has_edits = False, True

    def __init__(self, editor: Edits):
        self.editor = editor
        self.separate_prefill = any(edit.row is not None for edit in editor.edits)

    def tap(self, step: Step, sequences: Sequence[int]) -> Tap:
        return CapturingTap(step, sequences, self.editor, None)


def edited(editor: Edits | None) -> tuple[str, ...]:
    """The points that edits change."""
    return () if editor is None else tuple(editor.by_point)


def about(editor: Edits | None) -> dict[str, Any]:
    """What a trace says of the edits it was made under."""
    return {} if editor is None else {"edits": editor.edits, "choices": editor.choices}


def _changed(edit: Edit, value: Tensor, per_token: Tensor | None) -> Tensor:
    """What the edit makes of a part; `per_token`: which of its tensor's rows each of the part's tokens takes."""
    if edit.op == "ablate":
        return torch.zeros_like(value)
    if edit.op == "scale":
        return value * (edit.factor or 0)
    if edit.op == "knockout":
        return torch.full_like(value, -torch.inf)
    if edit.tensor is None:
        assert edit.value is not None
        given = torch.full_like(value, edit.value)
    else:
        given = edit.tensor.to(value)
        if per_token is not None and given.ndim == value.ndim:
            given = given[per_token]
    if edit.op == "add":
        return value + (given if edit.factor is None else edit.factor * given)
    return given.expand_as(value)


def _among(places: int | Sequence[int] | None, positions: Tensor) -> Tensor:
    """Which of these positions are named. Padding and empty slots, at -1, never are."""
    there = positions >= 0
    if places is None:
        return there
    return there & torch.isin(positions, torch.tensor(listed(places), device=positions.device))


def _positions(axis: str, step: Step) -> Tensor:
    """Of the tokens that a point is of: the pass' own (T), its source's (S), or the one that stands for all of them."""
    if axis == "T":
        return step.positions
    if axis == "S":
        assert step.source is not None
        return step.source.positions
    return torch.zeros(1, dtype=torch.long, device=step.positions.device)


def _rows_of(size: int, places: int | Sequence[int] | None, positions: Tensor) -> Tensor:
    """Where on an axis of a patch each position stands; -1 where it does not."""
    if places is None:
        return torch.where(positions < size, positions, -1)
    found = torch.full_like(positions, -1)
    for n, place in enumerate(listed(places)):
        found = torch.where(positions == place, n, found)
    return found


def _index(places: int | Sequence[int] | None, device: torch.device) -> Tensor | None:
    return None if places is None else torch.tensor(listed(places), device=device)


def _spec(config: AnyConfig | EncoderConfig, point: str) -> AttendSpec:
    """Of the attention whose scores or probabilities a point is."""
    i = layer_of(point)
    if isinstance(config, RecurrentConfig):
        return TO_SOURCE
    assert i is not None
    encoder = config.encoder if isinstance(config, ModelConfig) and point.startswith("encoder.") else None
    stack = config if encoder is None else encoder
    layer = stack.layers[i]
    source = ".cross." in point
    return attend_spec(layer.cross if source and layer.cross is not None else layer.attention, source)


# ---- is there such a place


def _check(config: AnyConfig | EncoderConfig, edit: Edit, n_rows: int, length: int, source: int | None) -> None:
    """RequestError unless the model has what an edit names."""
    point, i = find(config, edit.point, "edit"), layer_of(edit.point)
    made_anew = edit.point.startswith("blocks.") and edit.point.endswith((".attn.k", ".attn.v", ".attn.k_rot"))
    if made_anew and not isinstance(config, RecurrentConfig) and config.layers[i or 0].attention.latent is not None:
        raise _wrong(edit, f"keys and values are made of latents in every pass anew: edit blocks.{i}.attn.latent")
    axes, product = point.axes.split()[1:], of_product(edit.point)
    if edit.op == "knockout" and not edit.point.endswith(".scores"):
        has = [name for name in points(config) if name.endswith(".scores")]
        if not has:
            raise _wrong(edit, "a knockout is of attention's scores, and this model has no attention")
        own = f"{edit.point.rpartition('.')[0]}.scores"
        raise _wrong(edit, f"a knockout is of scores, such as {own if own in has else has[0]}")
    inside, read = edit.point.startswith("encoder."), source or length
    whole = inside or axes[0] == "S" or isinstance(config, EncoderConfig)  # of what is there before anything is written
    n_tokens = read if inside or axes[0] == "S" else length
    takes = _takes(config, edit.point, axes, n_tokens, read if inside or not _own_keys(edit.point) else length)
    for name in ("head", "position", "query", "key", "dim"):
        places = getattr(edit, name)
        if places is None:
            continue
        if name not in takes:
            raise _wrong(edit, f"{edit.point} has no {name}: it has {', '.join(takes)}")
        written = name in ("position", "query") and not whole
        for place in listed(places):
            if not (0 <= place < takes[name] or (written and place == -1)):
                which = ", or -1, every token from which a new one is written" if written else ""
                raise _wrong(edit, f"{name} must be from 0 to {takes[name] - 1}{which}, got {place}")
    if edit.row is not None and not 0 <= edit.row < n_rows:
        raise _wrong(edit, f"row must be from 0 to {n_rows - 1}, got {edit.row}")
    if product and isinstance(edit.query, int) and isinstance(edit.key, int) and edit.query >= 0:
        seen = visible(_spec(config, edit.point), torch.tensor([[edit.query]]), torch.tensor([[edit.key]]))
        if not seen.all():
            raise _wrong(edit, f"query {edit.query} does not see key {edit.key}")
    if edit.tensor is not None:
        _check_shape(edit, takes)


def _own_keys(point: str) -> bool:
    """Whether the keys are the tokens' own, not those of a source."""
    return ".cross." not in point and not point.startswith("rnn.")


def _takes(
    config: AnyConfig | EncoderConfig, point: str, axes: Sequence[str], n_tokens: int, n_keys: int
) -> dict[str, int]:
    """What an edit of a point can name, and how many there are of each."""
    size, product = sizes(config, point) | {"2": 2}, of_product(point)
    takes = {"head": size[axes[0 if product else 1]]} if len(axes) == 3 else {}
    if product:
        return takes | {"query": n_tokens, "key": n_keys}
    return takes | ({"position": n_tokens} if len(axes) > 1 else {}) | {"dim": size[axes[-1]]}


def _check_shape(edit: Edit, takes: dict[str, int]) -> None:
    """The edit's tensor has as many numbers as it names."""
    assert edit.tensor is not None

    def n(name: str) -> int:
        places = getattr(edit, name)
        return takes[name] if places is None else len(listed(places))

    have = tuple(edit.tensor.shape)
    if of_product(edit.point):
        if edit.op != "patch":
            raise _wrong(edit, f"{edit.op} of scores and probabilities takes one number (value), not a vector")
        shape = tuple(map(n, takes))
        loose = [name in ("query", "key") and getattr(edit, name) is None for name in takes]  # a text of another length
        ok = len(have) == len(shape) and all(a == b or any_ for a, b, any_ in zip(have, shape, loose, strict=True))
    else:
        rest = tuple(n(name) for name in ("head", "dim") if name in takes)
        shape = (n("position"), *rest) if edit.position is not None else rest
        if edit.op == "patch":
            of_tokens = have[1:] if "position" in takes else have
            ok = of_tokens == rest and (edit.position is None or have == shape)
        else:
            ok = have in (rest, shape) or have == tuple(size for size in rest if size > 1) or have == (n("dim"),)
    if not ok:
        raise _wrong(edit, f"its tensor is {list(edit.tensor.shape)}, and what is named is {list(shape)}")


def _wrong(edit: Edit, message: str) -> RequestError:
    return RequestError(f"edit {edit.op} of {edit.point}: {message}", param="edit")
