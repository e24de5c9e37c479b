"""Where to look first: a head that does something on this text, by its measured role, and a cell that shows it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from glassformer.errors import RequestError
from glassformer.inspect.roles import MEANINGS, relations, roles
from glassformer.inspect.trace import Trace

ROLES = ("induction", "duplicate", "previous_token", "self", "first_token")
ENOUGH = 0.25  # of a head's attention, for it to be said to play a role


@dataclass(frozen=True)
class Place:
    """A cell of attention, and why it is this one."""

    layer: int
    head: int
    query: int
    key: int
    because: str


@torch.no_grad()
def worth_seeing(
    t: Trace, *, layer: int | None = None, head: int | None = None, query: int | None = None, key: int | None = None
) -> Place:
    """The place that is asked for, and where it is left open the head that plays the first of `ROLES` best, at the
    query that shows it most clearly. RequestError for a layer, head or position that there is not.
    """
    role: str | None = None
    if layer is None and head is None:
        layer, head, role, because = _best(t)
    else:
        layer = t.config.n_layers - 1 if layer is None else layer
        head, because = 0 if head is None else head, "as asked"
    if not 0 <= layer < t.config.n_layers:
        raise RequestError(
            f"layer must be a whole number from 0 to {t.config.n_layers - 1}, got {layer}", param="layer"
        )
    name = f"blocks.{layer}.attn.probs"
    if query is None and role is not None:
        probs = t.rows(name, head=head).tensor.float()  # [T, S]
        shown = probs * relations(t.kept.ids, t.kept.positions)[role]
        query = int(shown.sum(-1).argmax())
        key = int(shown[query].argmax()) if key is None else t.place("key", key)
    query = t.place("query", -1 if query is None else query)
    row = t.rows(name, head=head, query=query).tensor.float()
    if key is None:
        rest = row[1:query]  # itself and the first token apart: there heads rest
        key = 1 + int(rest.argmax()) if len(rest) else 0
    return Place(layer, head, query, t.place("key", key), because)


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
