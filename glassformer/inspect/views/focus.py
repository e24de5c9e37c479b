"""The layer, head, query and key to show first, for the page, reports, notebooks and the command line."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from glassformer.errors import RequestError
from glassformer.generate.sampling import check_number
from glassformer.inspect.trace.trace import Trace
from glassformer.inspect.views.attribution import attribution
from glassformer.inspect.views.layer import AttentionKind, select_stack
from glassformer.inspect.views.roles import MEANINGS, roles
from glassformer.plain_numbers import plain_number

ROLES = ("induction", "duplicate", "previous_token", "self", "first_token")
MIN_SCORE = 0.25  # smallest role score of a head with that role


@dataclass(frozen=True)
class Focus:
    """One cell of an attention matrix, and the reason why it was chosen."""

    layer: int
    head: int
    query: int
    key: int
    because: str


@torch.no_grad()
def focus(
    t: Trace,
    *,
    layer: int | None = None,
    head: int | None = None,
    query: int | None = None,
    key: int | None = None,
    attention: AttentionKind = "attn",
) -> Focus:
    """The layer, head, query and key to show first.

    Arguments are used as they are; those that are None are chosen. In a decoder, the query is the last token of the
    prompt, and the head is the one that adds most to the logit of the most likely next token or, if the model has no
    attribution, the one with the clearest role. In other models: the last query and the last layer's first head. The
    key is the one with the largest probability; causal attention excludes the first token and the query itself.

    Raises:
        RequestError: A layer, head, query or key is out of range or does not exist in the model.
    """
    layer, head, query, key = map(plain_number, (layer, head, query, key))
    if not t.has_blocks:
        return _recurrent_focus(t, layer, head, query, key)
    side, which = select_stack(t, attention)
    causal = which == "attn" and side.causal
    query = None if query is None else side.index("query", query)
    candidates = _candidates(side, which, layer, head)
    if len(candidates) == 1:
        (layer, head), because = candidates[0], "selected"
    elif causal:
        others = "any other head"
        if layer is not None:
            others += f" of block {layer}"
        elif head is not None:
            others = f"head {head} of any other block"
        layer, head, query, because = _choose(side, candidates, query, others)
    else:
        layer, head = next(one for one in candidates if one[0] == candidates[-1][0])
        because = "the first head of the last layer"
    query = side.default_query if query is None else query
    row = side.rows(f"blocks.{layer}.{which}.probs", head=head, query=query).tensor.float()
    if key is None:
        rest = row[1:query] if causal else row
        key = int(rest.argmax()) + causal if len(rest) else 0
    return Focus(layer, head, query, _index(key, len(row)), because)


def _candidates(t: Trace, which: AttentionKind, layer: int | None, head: int | None) -> list[tuple[int, int]]:
    """Return the (layer, head) pairs that match the request. RequestError if there are none."""
    if layer is not None:
        check_number("layer", layer, 0, t.config.n_layers - 1)
    kinds = [one.cross if which == "cross" else one.attention for one in t.config.layers]
    sizes = [one.n_heads for one in kinds if one is not None]
    if not sizes:
        raise RequestError("this model has no cross-attention: leave out `attention`", param="attention")
    layers = range(len(sizes)) if layer is None else [layer]
    if head is not None:
        check_number("head", head, 0, max(sizes[i] for i in layers) - 1)
    return [(i, h) for i in layers for h in range(sizes[i]) if head in (None, h)]


def _choose(
    t: Trace, candidates: list[tuple[int, int]], query: int | None, others: str
) -> tuple[int, int, int | None, str]:
    """Return a layer and head, a query, and the reason: by attribution, or else by role."""
    try:
        shares = attribution(t, position=t.default_query if query is None else query)
    except RequestError:
        return _choose_by_role(t, candidates, query, others)
    layer, head = max(candidates, key=lambda at: shares.heads[at[0]][at[1]])
    share, target, rival = shares.heads[layer][head], shares.target[1], shares.rival[1]
    return layer, head, query, f"adds {share:.2f} to logit({target!r}) - logit({rival!r}), more than {others}"


def _choose_by_role(
    t: Trace, candidates: list[tuple[int, int]], query: int | None, others: str
) -> tuple[int, int, int | None, str]:
    found = roles(t)
    for role in ROLES:
        scores = getattr(found.scores, role).nan_to_num(nan=-1.0)
        layer, head = max(candidates, key=lambda at: scores[at].item())
        evidence, score = found.evidence[role][layer][head], scores[layer, head].item()
        if evidence is not None and score >= MIN_SCORE:
            why = f"{role.replace('_', ' ')} score {score:.2f}, more than {others}: {MEANINGS[role]}"
            return layer, head, evidence.query if query is None else query, why
    return *candidates[0], query, "no head has a clear role on this text"


def _recurrent_focus(t: Trace, layer: int | None, head: int | None, query: int | None, key: int | None) -> Focus:
    if (layer, head) != (None, None):
        raise RequestError("a recurrent model has no layers and heads to choose: leave them out", param="layer")
    query = t.index("query", -1 if query is None else query)
    n = len(t.source)  # pyright: ignore[reportAttributeAccessIssue]
    if key is None and "rnn.probs" in t.names():
        key = int(t.rows("rnn.probs", query=query).tensor.argmax())
    return Focus(0, 0, query, _index(0 if key is None else key, n), "the source token with the largest probability")


def _index(key: int, n: int) -> int:
    check_number("key", key, -n, n - 1)
    return key % n
