"""Where to look first: a head that does something on this text, by its measured role, and a cell that shows it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from glassformer.errors import RequestError
from glassformer.generate.sampling import check_number
from glassformer.inspect.trace.trace import Trace
from glassformer.inspect.views.layer import Which, side_of
from glassformer.inspect.views.roles import MEANINGS, relations, roles

ROLES = ("induction", "duplicate", "previous_token", "self", "first_token")
ENOUGH = 0.25  # of a head's attention, for it to be said to play a role


@dataclass(frozen=True)
class Focus:
    """A cell of attention, and why it is this one."""

    layer: int
    head: int
    query: int
    key: int
    because: str


@torch.no_grad()
def worth_seeing(
    t: Trace,
    *,
    layer: int | None = None,
    head: int | None = None,
    query: int | None = None,
    key: int | None = None,
    attention: Which = "attn",
) -> Focus:
    """The place that is asked for, and where it is left open the head that plays the first of `ROLES` best, at the
    query that shows it most clearly. Heads that do not look back at their own text play no role: of them it is the last
    layer's first, and of a recurrent model its only one. RequestError for a layer, head or position that there is not.
    """
    if t.kind == "recurrent":
        return _of_recurrent(t, layer, head, query, key)
    side, which = side_of(t, attention)
    role: str | None = None
    if layer is None and head is None and which == "attn" and side.kind != "encoder":
        layer, head, role, because = _best(side)
    else:
        because = "as asked" if (layer, head) != (None, None) else "the last layer's first head"
        layer = side.config.n_layers - 1 if layer is None else layer
        head = 0 if head is None else head
    if not 0 <= layer < side.config.n_layers:
        raise RequestError(
            f"layer must be a whole number from 0 to {side.config.n_layers - 1}, got {layer}", param="layer"
        )
    name = f"blocks.{layer}.{which}.probs"
    if query is None and role is not None:
        probs = side.rows(name, head=head).tensor.float()  # [T, S]
        shown = probs * relations(side.kept.ids, side.kept.positions)[role]
        query = int(shown.sum(-1).argmax())
        key = int(shown[query].argmax()) if key is None else side.place("key", key)
    query = side.place("query", -1 if query is None else query)
    row = side.rows(name, head=head, query=query).tensor.float()
    if key is None and (which == "cross" or side.kind == "encoder"):
        key = int(row.argmax())
    elif key is None:
        rest = row[1:query]  # itself and the first token apart: there heads rest
        key = 1 + int(rest.argmax()) if len(rest) else 0
    return Focus(layer, head, query, _key(key, len(row)), because)


def _of_recurrent(t: Trace, layer: int | None, head: int | None, query: int | None, key: int | None) -> Focus:
    if (layer, head) != (None, None):
        raise RequestError("a recurrent model has no layers and heads to choose: leave them out", param="layer")
    query = t.place("query", -1 if query is None else query)
    n = len(t.source)  # pyright: ignore[reportAttributeAccessIssue]
    if key is None and "rnn.probs" in t.names():
        key = int(t.rows("rnn.probs", query=query).tensor.argmax())
    return Focus(0, 0, query, _key(0 if key is None else key, n), "what this token took most of")


def _key(key: int, n: int) -> int:
    check_number("key", key, -n, n - 1)
    return key % n


def _best(t: Trace) -> tuple[int, int, str | None, str]:
    try:
        found = roles(t)
    except RequestError as error:
        return 0, 0, None, f"roles cannot be measured here: {error}"
    for role in ROLES:
        scores = getattr(found.scores, role).nan_to_num(nan=-1.0)
        if scores.max() >= ENOUGH:
            layer, head = divmod(int(scores.argmax()), scores.shape[1])
            share = scores[layer, head].item()
            return (
                layer,
                head,
                role,
                f"{role.replace('_', ' ')} {share:.2f}: {MEANINGS[role]}, more than of any other head",
            )
    return 0, 0, None, "no head plays a role on this text"
