"""A text, token by token, as the model saw it: how likely each one was, and what it would have written instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.generate.sampling import check_number
from glassformer.inspect.trace.trace import Receipt, Trace, token_text
from glassformer.inspect.views.result import Named, named

CHUNK = 64  # positions whose logits, [64, V], are held at a time


@dataclass(frozen=True)
class Seen:
    """One token. `prob` is what the model gave it, given those before, and `rank` how many it thought likelier; None
    for the first token, which nothing predicts. `top`: the likeliest tokens at its place.
    """

    position: int
    id: int
    text: str
    written: bool
    prob: float | None
    rank: int | None
    top: tuple[Named, ...]


@dataclass(frozen=True)
class Summary:
    """`next`: the likeliest tokens after the last one."""

    tokens: tuple[Seen, ...]
    n_prompt: int
    next: tuple[Named, ...]
    receipt: Receipt


@torch.no_grad()
def summary(t: Trace, *, top: int = 5) -> Summary:
    """Every token with its probability, its rank and the `top` likeliest at its place."""
    check_number("top", top, 1, min(100, t.shape("final.logits")[-1]))
    found: list[tuple[float, int, tuple[Named, ...]]] = []
    following: tuple[Named, ...] = ()
    for begin, logits in logit_chunks(t):
        probs = logits.softmax(-1)
        best = probs.topk(top, -1)
        for row in range(len(logits)):
            likeliest = named(t.lm, best.indices[row], best.values[row])
            if begin + row + 1 == len(t.ids):
                following = likeliest
            else:
                own = probs[row, t.ids[begin + row + 1]]
                found.append((own.item(), int((probs[row] > own).sum()), likeliest))
    tokens = [Seen(0, t.ids[0], token_text(t.lm.tokenizer, t.ids[0]), t.n_prompt == 0, None, None, ())]
    for i, (prob, rank, likeliest) in enumerate(found, 1):
        tokens.append(Seen(i, t.ids[i], token_text(t.lm.tokenizer, t.ids[i]), i >= t.n_prompt, prob, rank, likeliest))
    value = t.at("final.logits", -1)
    receipt = Receipt('t["final.logits"].tensor.softmax(-1)', value.identity, value.error)
    return Summary(tuple(tokens), t.n_prompt, following, receipt)


def logit_chunks(t: Trace) -> Iterator[tuple[int, Float[Tensor, "T V"]]]:
    """Yield (first position, logits in float32) of `CHUNK` positions at a time: the logits of a text can be large."""
    for positions in t.captured.positions.split(CHUNK):
        yield int(positions[0]), t.logits(positions).float()
