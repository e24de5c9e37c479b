"""Two traces side by side: where their texts part, and how far apart what comes next is at each token they share.

KL(p || q) = sum over the vocabulary of p log(p / q), in nats: p what the first says comes next, q the second
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from glassformer.errors import RequestError
from glassformer.inspect.trace.recompute import LOGIT_CHUNK, larger
from glassformer.inspect.trace.trace import Receipt, Trace


@dataclass(frozen=True)
class ForkPosition:
    """One place in both texts. A token is None where a text has ended; kl is None where they have parted before."""

    position: int
    token: str | None
    other: str | None
    kl: float | None


@dataclass(frozen=True)
class Fork:
    """`parts` is the first place where the two have different tokens, None where one goes on from the other."""

    steps: tuple[ForkPosition, ...]
    parts: int | None
    receipt: Receipt


@torch.no_grad()
def fork(t: Trace, other: Trace) -> Fork:
    """A text beside another one of the same vocabulary, from the same prompt or not. RequestError otherwise."""
    own, theirs = (one.shape("final.logits")[-1] for one in (t, other))
    if own != theirs:
        raise RequestError(
            f"the two have different vocabularies, of {own} and {theirs} tokens: what they say comes next cannot be "
            "compared", param="other",
        )  # fmt: skip
    length = max(len(t), len(other))
    parts = next((i for i, pair in enumerate(zip(t.ids, other.ids, strict=False)) if pair[0] != pair[1]), None)
    shared = min(len(t), len(other)) if parts is None else parts
    kls: list[float] = []
    for some in torch.arange(shared).split(LOGIT_CHUNK):
        p, q = (_next(one, some).to(t.captured.ids.device) for one in (t, other))
        kls += (p.exp() * (p - q)).nan_to_num(nan=torch.nan, posinf=torch.inf).sum(-1).tolist()
    places = [
        ForkPosition(i, _at(t, i), _at(other, i), kls[i] if i < shared else None) for i in range(length)
    ]  # fmt: skip
    last = [one.at("final.logits", -1) for one in (t, other)]
    errors = [one.error for one in last]
    error = None if None in errors else larger(*errors)  # pyright: ignore[reportArgumentType]
    return Fork(tuple(places), parts, Receipt("t.fork(other)", last[0].identity, error))


def _next(t: Trace, positions: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of the token after each position."""
    return t.logits(positions.to(t.captured.ids.device)).double().log_softmax(-1)


def _at(t: Trace, i: int) -> str | None:
    return t.tokens[i] if i < len(t) else None
