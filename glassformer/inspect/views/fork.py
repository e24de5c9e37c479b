"""Two traces compared: where their texts differ, and the KL divergence of their next-token distributions.

KL(p || q) = sum over the vocabulary of p log(p / q), in nats: p of the first trace, q of the second
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from glassformer.errors import RequestError
from glassformer.inspect.trace.recompute import LOGIT_CHUNK, SAME_LOGITS, check_last_logits, larger
from glassformer.inspect.trace.trace import Receipt, Trace


@dataclass(frozen=True)
class ForkPosition:
    """One position. token, other: None after the end of that text; kl: None from the first different token on."""

    position: int
    token: str | None
    other: str | None
    kl: float | None


@dataclass(frozen=True)
class Fork:
    """The result of `fork`.

    diverges_at: the first position with different tokens; None if one text continues the other, or both are equal.
    ends_at: the length of the shorter text, if the other one continues it; otherwise None.
    """

    steps: tuple[ForkPosition, ...]
    diverges_at: int | None
    ends_at: int | None
    receipt: Receipt


@torch.no_grad()
def fork(t: Trace, other: Trace) -> Fork:
    """A comparison of this text with another one, token by token.

    Raises:
        RequestError: The two models have different vocabularies.
    """
    size, other_size = (one.shape("final.logits")[-1] for one in (t, other))
    if size != other_size:
        raise RequestError(
            f"the two traces have vocabularies of {size} and {other_size} tokens: next-token distributions can be "
            "compared over the same vocabulary only", param="other",
        )  # fmt: skip
    length = max(len(t), len(other))
    first = next((i for i, pair in enumerate(zip(t.ids, other.ids, strict=False)) if pair[0] != pair[1]), None)
    shared = min(len(t), len(other)) if first is None else first
    kls: list[float] = []
    for some in torch.arange(shared).split(LOGIT_CHUNK):
        p, q = (_next(one, some).to(t.captured.ids.device) for one in (t, other))
        kls += (p.exp() * (p - q)).nan_to_num(nan=torch.nan, posinf=torch.inf).sum(-1).tolist()
    steps = [
        ForkPosition(i, _token(t, i), _token(other, i), kls[i] if i < shared else None) for i in range(length)
    ]  # fmt: skip
    errors = [check_last_logits(one.captured, one.logits(one.captured.positions[-1:])[0]) for one in (t, other)]
    error = None if None in errors else larger(*errors)  # pyright: ignore[reportArgumentType]
    ends_at = shared if first is None and shared < length else None
    return Fork(tuple(steps), first, ends_at, Receipt("t.fork(other)", SAME_LOGITS, error))


def _next(t: Trace, positions: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of the next token after some positions."""
    return t.logits(positions.to(t.captured.ids.device)).double().log_softmax(-1)


def _token(t: Trace, i: int) -> str | None:
    return t.tokens[i] if i < len(t) else None
