"""A generation request, and the token events of its response."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.generate.sampling import Sampling, check_number
from glassformer.generate.stopping import StopStrings
from glassformer.plain_numbers import make_fields_plain

TopTokens = tuple[tuple[int, float], ...]  # (token id, log-probability), the most likely first
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TokenConstraints:
    """Constraints of a checkpoint on generated tokens, which override the model's predictions.

    first: the token that every text begins with. last: the token at position `max_tokens`, if a text reaches it.
    Both have log-probability 0. banned: tokens that are never generated. min_length: a text with fewer tokens does not
    end, at an end token or a stop string; the begin token counts. no_repeat_ngram: no n-gram of this size occurs twice
    in a text; 0 allows repetition. vocab_size: tokens with this id or a larger one are never generated, unless None.
    """

    first: int | None = None
    last: int | None = None
    banned: tuple[int, ...] = ()
    min_length: int = 0
    no_repeat_ngram: int = 0
    vocab_size: int | None = None

    def forced(self, step: int, max_tokens: int) -> int | None:
        """Return the only token allowed at this step (the first step is 1), or None if several are."""
        return self.first if step == 1 else self.last if step == max_tokens else None

    def mask(
        self, scores: Float[Tensor, "R V"], step: int, end_ids: Collection[int], sequences: Sequence[Sequence[int]]
    ) -> Float[Tensor, "R V2"]:
        """Return logits or log-probabilities with banned tokens at -inf; `sequences` are the ids so far.

        If a sequence has no allowed token left, its end tokens get 0.
        """
        scores = scores[:, : self.vocab_size]
        banned = {*self.banned, *(end_ids if step < self.min_length else ())}
        if not banned and not self.no_repeat_ngram:
            return scores
        scores, size = scores.clone(), scores.shape[-1]
        scores[:, [token for token in banned if token < size]] = -torch.inf
        for row, ids in enumerate(sequences if self.no_repeat_ngram else ()):
            scores[row, [token for token in _repeated(ids, self.no_repeat_ngram) if token < size]] = -torch.inf
        stuck = scores.isneginf().all(-1).nonzero()  # [stuck sequences, 1]
        scores[stuck, [token for token in end_ids if token < size]] = 0.0
        return scores


NO_CONSTRAINTS = TokenConstraints()


def _repeated(ids: Sequence[int], n: int) -> set[int]:
    """Return the tokens that would complete an n-gram that `ids` already contains."""
    ids = list(ids)
    before = ids[len(ids) - n + 1 :] if n > 1 else []
    return {ids[at + n - 1] for at in range(len(ids) - n + 1) if ids[at : at + n - 1] == before}


@dataclass(frozen=True)
class GenerationRequest:
    """Prompts to continue, with the options of generation.

    prompts: token ids. sources: one per prompt, for models that generate from a source. n: continuations per prompt,
    from one prefill. max_tokens: per continuation; None generates until an end token or the end of the context.
    end_ids: tokens that end a continuation and are not part of it. logprobs: the number of most likely tokens to report
    with the log-probability of the chosen one (nats, of the model's distribution before any sampling stage); None
    reports nothing. An option that is out of range raises RequestError.
    """

    prompts: Sequence[Sequence[int]]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    end_ids: Collection[int] = ()
    sources: Sequence[Sequence[int]] | None = None
    constraints: TokenConstraints = NO_CONSTRAINTS

    def __post_init__(self):
        make_fields_plain(self)
        check_number("max_tokens", self.max_tokens, 1, 1 << 31, optional=True)
        check_number("n", self.n, 1, 1024)
        check_number("logprobs", self.logprobs, 0, 1024, optional=True)
        StopStrings(self.stop)


@dataclass(frozen=True)
class TokenEvent:
    """The token and text that one decoding step adds to one continuation.

    sequence: the index of the continuation; those of prompt p are p*n to p*n + n-1. id: the chosen token; None if it is
    an end token, then `end_id`. text: final text, never a partial character or a part of a stop string. logprob, top:
    of the chosen token, end tokens included. finish: set in the last event.
    """

    sequence: int
    id: int | None
    text: str
    logprob: float | None = None
    top: TopTokens = ()
    finish: FinishReason | None = None
    end_id: int | None = None


def check_ids(name: str, ids: Collection[int], vocab_size: int) -> None:
    """Raise RequestError if `ids` is empty or has an id outside the vocabulary."""
    if len(ids) == 0:
        raise RequestError(f"the {name} is empty: it must hold at least one token", param=name)
    bad = next((token for token in (min(ids), max(ids)) if not 0 <= token < vocab_size), None)
    if bad is not None:
        raise RequestError(f"{name}: token id {bad} is out of range: allowed are 0 to {vocab_size - 1}", param=name)
