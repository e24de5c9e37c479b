"""What a model would write from a source: the likeliest token each time, or the best of several texts at once.

Beam search, `beam` = 2:      the 2 best of all texts one token longer go on, but for those that end: they are results

    BOS -> "1" -0.2 -> "19" -0.3 -> "198" -0.4 -> ...
           "2" -1.9    "18" -1.7    "19." -2.2 END        (its logprob is divided by lp(its length): its score)

A longer text is less likely, whatever it says. So results are compared by Y's score log P(Y|X) / lp(Y), with lp(Y) =
((5 + |Y|) / (5 + 1))^alpha ("Google's Neural Machine Translation System", Wu et al. 2016, equation 14, without its
coverage penalty). |Y| counts the token that ends it. alpha is 0.6, as in Vaswani et al. 2017, section 6.1.

`transformers` finds the same texts where none ends and alpha is 0. Where texts end it fills the beam up again, from the
best 2 beam continuations; its divisor is |Y|^length_penalty; and it ranks what was cut off among what ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import CheckpointError, RequestError
from glassformer.generate.loop import Observer, check_ids
from glassformer.generate.sampling import check_number
from glassformer.generate.seq2seq_decoder import (
    Paced,
    PairModel,
    Seq2SeqDecoder,
    longest_target,
    read_sources,
    vocab_sizes,
)
from glassformer.kernels.attention import attend_fused
from glassformer.nn.attend import Attend


@dataclass(frozen=True)
class Search:
    """How to look for what a model would write.

    beam: texts of one source that are followed at a time; 1 takes the likeliest token, always (greedy). n: how many of
    the results to give. max_tokens: of a result, with the one that ends it; None is what the context holds.
    length_penalty: alpha above; 0 compares by log P alone, which favours short texts, more is kinder to long ones.
    """

    beam: int = 1
    n: int = 1
    max_tokens: int | None = None
    length_penalty: float = 0.6

    def __post_init__(self):
        check_number("beam", self.beam, 1, 1024)
        check_number("n", self.n, 1, 1024)
        check_number("max_tokens", self.max_tokens, 1, 1 << 31, optional=True)
        check_number("length_penalty", self.length_penalty, 0.0, 10.0)
        if self.n > self.beam:
            raise RequestError(f"the {self.n} best (n) need a beam of at least {self.n}, got {self.beam}", param="n")

    def divisor(self, length: int) -> float:
        """lp of a text of so many tokens. It never falls with the length."""
        return ((5 + length) / 6) ** self.length_penalty


@dataclass(frozen=True)
class Ruled:
    """What a checkpoint says of tokens, whatever the model thinks of them.

    first: what every text begins with; last: what the longest possible one ends with. Neither counts in a text's
    probability. banned: what is never written. min_length: no text ends that has fewer tokens, with the one that it
    begins after. no_repeat: no row of so many tokens, that one too, stands in a text twice; 0: any may.
    """

    first: int | None = None
    last: int | None = None
    banned: tuple[int, ...] = ()
    min_length: int = 0
    no_repeat: int = 0


@dataclass(frozen=True)
class Hypothesis:
    """A text that a model might write. `ids` are without the token that ends it.

    logprob: the sum over its tokens, that one included (nats). finish: None while it goes on, "stop" where it ended,
    "length" where `max_tokens` cut it off.
    """

    ids: tuple[int, ...]
    logprob: float
    score: float
    finish: Literal["stop", "length"] | None = None

    @property
    def rank(self) -> tuple[bool, float]:
        """Smaller is better: what ended before what was cut off, then by score."""
        return self.finish != "stop", -self.score


def search(
    model: PairModel,
    sources: Sequence[Sequence[int]],
    how: Search,
    *,
    begin: int,
    end: int,
    spelled: int | None = None,
    ruled: Ruled = Ruled(),
    attend: Attend = attend_fused,
    before_pass: Callable[[], None] | None = None,
    watch: Observer | None = None,
) -> list[list[Hypothesis]]:
    """The `n` best texts for each source (token ids), the best first, all different; fewer where there are no more.

    `begin` is the token that a text begins after, `end` the one that ends it; only the first `spelled` tokens of the
    vocabulary are written, as `ruled` says. before_pass: called before each pass of the decoder; what it raises stops
    the work there. watch: looks at each pass, or changes it.
    Raises RequestError for an empty source or ids outside the vocabulary, and CapacityError where a source or
    `max_tokens` does not fit the context.
    """
    if not sources:
        return []
    read, written = vocab_sizes(model)
    for source in sources:
        check_ids("source", source, read)
    named = [token for token in (ruled.first, ruled.last, *ruled.banned) if token is not None]
    check_ids("target", [begin, end, *named], written)
    most = how.max_tokens or longest_target(model)
    with torch.inference_mode():
        writing = read_sources(model, sources, most, attend, watch)
        writing = writing if before_pass is None else Paced(writing, before_pass)
        if how.beam == 1:
            return [[one] for one in greedy(writing, len(sources), how, most, begin, end, spelled, ruled)]
        return beam_search(writing, len(sources), how, most, begin, end, spelled, ruled)


def greedy(
    writing: Seq2SeqDecoder,
    n_sources: int,
    how: Search,
    most: int,
    begin: int,
    end: int,
    spelled: int | None = None,
    ruled: Ruled = Ruled(),
) -> list[Hypothesis]:
    """The likeliest token, `most` times or until it is `end`. Rows leave as they end."""
    written: list[list[int]] = [[] for _ in range(n_sources)]
    logprobs, ended = [0.0] * n_sources, [False] * n_sources
    going, ids = list(range(n_sources)), [begin] * n_sources
    for length in range(1, most + 1):
        texts = [[begin, *written[row]] for row in going] if ruled.no_repeat else []
        top = _likeliest(writing.advance(ids), 1, texts, end, spelled, length, most, ruled)
        ids = [token for ((token, _),) in top]
        for row, ((token, logprob),) in zip(going, top, strict=True):
            logprobs[row] += logprob
            ended[row] = token == end and not (length == most and ruled.last is not None)
            if token != end:
                written[row].append(token)
        on = [i for i, row in enumerate(going) if not ended[row]]
        if not on or length == most:
            break
        if len(on) < len(going):
            writing.select(on)
            going, ids = [going[i] for i in on], [ids[i] for i in on]
    return [
        Hypothesis(tuple(row), logprob, logprob / how.divisor(len(row) + stop), "stop" if stop else "length")
        for row, logprob, stop in zip(written, logprobs, ended, strict=True)
    ]


def beam_search(
    writing: Seq2SeqDecoder,
    n_sources: int,
    how: Search,
    most: int,
    begin: int,
    end: int,
    spelled: int | None = None,
    ruled: Ruled = Ruled(),
) -> list[list[Hypothesis]]:
    """Of each source's texts that go on, the `beam` best continuations each time: those that end are results.

    The beam is not filled up again where some end, so that a beam of 1 is greedy (as in Sutskever et al. 2014).
    A source is done, and leaves, when none of its texts can still come among its `n` best results: see `_done`.
    """
    live = [[Hypothesis((), 0.0, 0.0)] for _ in range(n_sources)]  # of each source; their rows lie one after another
    found: list[list[Hypothesis]] = [[] for _ in range(n_sources)]
    for length in range(1, most + 1):
        ids = [one.ids[-1] if one.ids else begin for texts in live for one in texts]
        rows = [[begin, *one.ids] for texts in live for one in texts] if ruled.no_repeat else []
        top = _likeliest(writing.advance(ids), how.beam, rows, end, spelled, length, most, ruled)
        divisor, row, parents = how.divisor(length), 0, []
        for source, texts in enumerate(live):
            rows = range(row, row + len(texts))
            row += len(texts)
            longer = [
                (one.logprob + logprob, parent, token)
                for one, parent in zip(texts, rows, strict=True)
                for token, logprob in top[parent]
            ]
            longer.sort(key=lambda candidate: -candidate[0])
            on: list[tuple[int, Hypothesis]] = []
            for logprob, parent, token in longer[: how.beam]:
                before, score = texts[parent - rows.start].ids, logprob / divisor
                if token == end:
                    cut = length == most and ruled.last is not None
                    found[source].append(Hypothesis(before, logprob, score, "length" if cut else "stop"))
                elif length == most:
                    found[source].append(Hypothesis((*before, token), logprob, score, "length"))
                else:
                    on.append((parent, Hypothesis((*before, token), logprob, score)))
            found[source] = sorted(found[source], key=lambda one: one.rank)[: how.n]
            if _done(found[source], [one for _, one in on], how, most):
                on = []
            live[source] = [one for _, one in on]
            parents += [parent for parent, _ in on]
        if not parents:
            break
        if parents != list(range(row)):
            writing.select(parents)
    return found


def _done(found: list[Hypothesis], live: list[Hypothesis], how: Search, most: int) -> bool:
    """Whether no text that goes on can come among the `n` best.

    Exact for this score: a text's logprob only falls as it grows, and is below 0, so that no divisor makes more of it
    than the largest, lp(most). The results are those of a search that never stops early.
    """
    if not live:
        return True
    if len(found) < how.n or found[-1].finish != "stop":
        return False
    return max(one.logprob for one in live) / how.divisor(most) <= found[-1].score


def _likeliest(
    logits: Float[Tensor, "R V"],
    k: int,
    texts: Sequence[Sequence[int]],
    end: int,
    spelled: int | None,
    length: int,
    most: int,
    ruled: Ruled,
) -> list[list[tuple[int, float]]]:
    """The k likeliest tokens of each row, with their log-probabilities (nats, of all of V); or the one that must be.

    texts: of each row what stands before, with the token that it begins after, where `ruled` asks what that is; there
    are length - 1 tokens of it. Where nothing may follow, it ends.
    """
    if length == 1 and logits.isnan().any():
        raise CheckpointError("the model's logits are not numbers (NaN): damaged weights, or too large for their dtype")
    must = ruled.first if length == 1 else ruled.last if length == most else None
    if must is not None:
        return [[(must, 0.0)] for _ in logits]
    logprobs = logits.float().log_softmax(-1)[:, :spelled]
    banned = {*ruled.banned, *([end] if length < ruled.min_length else [])}
    logprobs[:, [token for token in banned if token < logprobs.shape[-1]]] = -torch.inf
    for row, text in enumerate(texts):
        logprobs[row, [token for token in _repeating(text, ruled.no_repeat) if token < logprobs.shape[-1]]] = -torch.inf
    top = logprobs.topk(min(k, logprobs.shape[-1]), -1)
    rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        [(token, logprob) for token, logprob in zip(*row, strict=True) if logprob > -torch.inf] or [(end, 0.0)]
        for row in rows
    ]


def _repeating(text: Sequence[int], n: int) -> set[int]:
    """The tokens after which the last n of a text would stand in it twice."""
    before = text[len(text) - n + 1 :] if n > 1 else text[:0]
    return {text[at + n - 1] for at in range(len(text) - n + 1) if text[at : at + n - 1] == before}
