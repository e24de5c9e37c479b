"""A text token by token: the probability and rank of each token, and the most likely alternatives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.generate.sampling import check_number
from glassformer.inspect.trace.recompute import SAME_LOGITS, check_last_logits
from glassformer.inspect.trace.trace import Receipt, Trace, token_text
from glassformer.inspect.views.result import Named, named

CHUNK = 64  # positions whose logits, [64, V], are in memory at a time


@dataclass(frozen=True)
class TokenSummary:
    """One token. prob: its probability given the tokens before it; rank: how many tokens are more likely; None for the
    first token, which is not predicted. top: the most likely tokens at its position.
    """

    position: int
    id: int
    text: str
    generated: bool
    prob: float | None
    rank: int | None
    top: tuple[Named, ...]


@dataclass(frozen=True)
class Summary:
    """The result of `summary`. next: the most likely tokens after the last one."""

    tokens: tuple[TokenSummary, ...]
    n_prompt: int
    next: tuple[Named, ...]
    receipt: Receipt


@torch.no_grad()
def summary(t: Trace, *, top: int = 5) -> Summary:
    """Every token with its probability, its rank and the `top` most likely tokens at its position."""
    check_number("top", top, 1, min(100, t.shape("final.logits")[-1]))
    found: list[tuple[float, int, tuple[Named, ...]]] = []
    following: tuple[Named, ...] = ()
    error: float | None = None
    for begin, logits in logit_chunks(t):
        probs = logits.softmax(-1)
        best = probs.topk(top, -1)
        for row in range(len(logits)):
            likeliest = named(t.lm, best.indices[row], best.values[row])
            if begin + row + 1 == len(t.ids):
                following, error = likeliest, check_last_logits(t.captured, logits[row])
            else:
                own = probs[row, t.ids[begin + row + 1]]
                found.append((own.item(), int((probs[row] > own).sum()), likeliest))
    rows = [(None, None, ()), *found]
    tokens = [
        TokenSummary(i, t.ids[i], token_text(t.lm.tokenizer, t.ids[i]), i >= t.n_prompt, *row)
        for i, row in enumerate(rows)
    ]
    receipt = Receipt('t["final.logits"].tensor.softmax(-1)', SAME_LOGITS, error)
    return Summary(tuple(tokens), t.n_prompt, following, receipt)


def logit_chunks(t: Trace) -> Iterator[tuple[int, Float[Tensor, "T V"]]]:
    """Yield (first position, logits of at most `CHUNK` positions) in float32."""
    for positions in t.captured.positions.split(CHUNK):
        yield int(positions[0]), t.logits(positions).float()
