"""Search for the most likely texts that a model generates from a source: greedily, or with a beam.

Beam search with `beam` = 2: at each step, the 2 best extensions by one token continue; those that end become results

    BOS -> "1" -0.2 -> "19" -0.3 -> "198" -0.4 -> ...
           "2" -1.9    "18" -1.7    "19." -2.2 END        (its log-probability is divided by lp(its length): its score)

Longer texts are less likely, so results are compared by the score log P(Y|X) / lp(Y) with lp(Y) =
((5 + |Y|) / (5 + 1))^alpha ("Google's Neural Machine Translation System", Wu et al. 2016, equation 14, without its
coverage penalty). |Y| counts the end token. alpha is 0.6, as in Vaswani et al. 2017, section 6.1.

`transformers` finds the same texts if none ends and alpha is 0. If texts end, it refills the beam from the best
2 · beam continuations; its divisor is |Y|^length_penalty; and it ranks truncated texts together with ended ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import RequestError
from glassformer.generate.decode import check_request, decode_steps, open_session
from glassformer.generate.request import NO_CONSTRAINTS, FinishReason, GenerationRequest, TokenConstraints, check_ids
from glassformer.generate.sampling import Sampling, check_number
from glassformer.generate.session import DecodeSession, Observer, Seq2SeqModel, max_target_tokens, run, vocab_sizes
from glassformer.kernels.native.attention import attend_native
from glassformer.nn.attend import Attend
from glassformer.plain_numbers import make_fields_plain


@dataclass(frozen=True)
class BeamSearch:
    """The options of a search.

    beam: the beam width per source; 1 is greedy decoding. n: the number of best results to return. max_tokens: per
    result, including the end token; None is the context length.
    length_penalty: alpha in the module's formula; 0 compares by log P alone, which favours short texts, larger values
    favour longer ones.
    """

    beam: int = 1
    n: int = 1
    max_tokens: int | None = None
    length_penalty: float = 0.6

    def __post_init__(self):
        make_fields_plain(self)
        check_number("beam", self.beam, 1, 1024)
        check_number("n", self.n, 1, 1024)
        check_number("max_tokens", self.max_tokens, 1, 1 << 31, optional=True)
        check_number("length_penalty", self.length_penalty, 0.0, 10.0)
        if self.n > self.beam:
            raise RequestError(f"n = {self.n} results need a beam of at least {self.n}, got {self.beam}", param="n")

    def divisor(self, length: int) -> float:
        """Return lp of a text of `length` tokens; it does not decrease with the length."""
        return ((5 + length) / 6) ** self.length_penalty


@dataclass(frozen=True)
class Hypothesis:
    """A text that a model may generate; `ids` exclude the end token.

    logprob: the sum over its tokens, including the end token (nats). finish: None while it continues, "stop" if it
    ended, "length" if `max_tokens` truncated it.
    """

    ids: tuple[int, ...]
    logprob: float
    score: float
    finish: FinishReason | None = None

    @property
    def rank(self) -> tuple[bool, float]:
        """Sort key: texts that ended come before truncated ones, then the higher score."""
        return self.finish != "stop", -self.score


def search(
    model: Seq2SeqModel,
    sources: Sequence[Sequence[int]],
    options: BeamSearch,
    *,
    begin: int,
    end: int,
    constraints: TokenConstraints = NO_CONSTRAINTS,
    attend: Attend = attend_native,
    observer: Observer | None = None,
    before_forward: Callable[[], None] | None = None,
) -> list[list[Hypothesis]]:
    """Return the `n` best different texts of each source, best first; fewer if the search finds fewer.

    Args:
        sources: token ids.
        begin: the token before the first generated one.
        end: the token that ends a text.
        observer, before_forward: as in `decode`.

    Raises:
        RequestError: a source is empty, or an id is outside the vocabulary.
        CapacityError: a source or `max_tokens` does not fit the context.
    """
    if not sources:
        return []
    special = [token for token in (constraints.first, constraints.last, *constraints.banned) if token is not None]
    check_ids("target", [begin, end, *special], vocab_sizes(model)[1])
    request = GenerationRequest(
        [[begin]] * len(sources), options.max_tokens or max_target_tokens(model), Sampling(temperature=0.0), logprobs=0,
        end_ids=(end,), sources=sources, constraints=constraints,
    )  # fmt: skip
    limits = check_request(model, request)
    session = open_session(model, request, limits, attend, observer, before_forward)
    if options.beam == 1:
        return [[best] for best in greedy(session, request, limits, options)]
    return beam_search(session, request, limits, options)


def greedy(
    session: DecodeSession, request: GenerationRequest, limits: Sequence[int], options: BeamSearch
) -> list[Hypothesis]:
    """Decode each sequence with the most likely token at each step; return the texts with their scores."""
    texts: list[list[int]] = [[] for _ in request.prompts]
    logprobs: list[float] = [0.0] * len(texts)
    finish: list[FinishReason | None] = [None] * len(texts)
    for event in decode_steps(session, request, limits):
        if event is None:
            continue
        logprobs[event.sequence] += event.logprob or 0.0
        if event.id is not None:
            texts[event.sequence].append(event.id)
        finish[event.sequence] = event.finish
    return [
        Hypothesis(tuple(ids), logprob, logprob / options.divisor(len(ids) + (why == "stop")), why)
        for ids, logprob, why in zip(texts, logprobs, finish, strict=True)
    ]


@torch.inference_mode()
def beam_search(
    session: DecodeSession, request: GenerationRequest, limits: Sequence[int], options: BeamSearch
) -> list[list[Hypothesis]]:
    """Continue the `beam` best texts of each source at each step; texts that end become results.

    The beam is not refilled when texts end, so that a beam of 1 is greedy (as in Sutskever et al. 2014). A source is
    removed from the batch when none of its texts can still rank among its `n` best results: see `_is_done`.
    """
    (end,), rules, max_steps = request.end_ids, request.constraints, max(limits)
    live = [[Hypothesis((), 0.0, 0.0)] for _ in request.prompts]  # per source; the batch concatenates the sources
    results: list[list[Hypothesis]] = [[] for _ in request.prompts]
    logits = run(session.start())
    for step in range(1, max_steps + 1):
        texts = [[*prompt, *one.ids] for prompt, ones in zip(request.prompts, live, strict=True) for one in ones]
        candidates = _candidates(logits, options.beam, rules, step, max_steps, end, texts)
        divisor, size, parents = options.divisor(step), 0, []
        for source, ones in enumerate(live):
            rows = range(size, size + len(ones))
            size += len(ones)
            longer = [
                (one.logprob + logprob, row, token)
                for one, row in zip(ones, rows, strict=True)
                for token, logprob in candidates[row]
            ]
            longer.sort(key=lambda candidate: -candidate[0])
            going: list[tuple[int, Hypothesis]] = []
            for logprob, row, token in longer[: options.beam]:
                before, score = ones[row - rows.start].ids, logprob / divisor
                if token == end:
                    cut_off = step == max_steps and rules.last is not None
                    results[source].append(Hypothesis(before, logprob, score, "length" if cut_off else "stop"))
                elif step == max_steps:
                    results[source].append(Hypothesis((*before, token), logprob, score, "length"))
                else:
                    going.append((row, Hypothesis((*before, token), logprob, score)))
            results[source] = sorted(results[source], key=lambda one: one.rank)[: options.n]
            if _is_done(results[source], [one for _, one in going], options, max_steps):
                going = []
            live[source] = [one for _, one in going]
            parents += [row for row, _ in going]
        if not parents:
            break
        if parents != list(range(size)):
            session.select(parents)
        logits = session.advance([one.ids[-1] for ones in live for one in ones])
    return results


def _is_done(results: list[Hypothesis], live: list[Hypothesis], options: BeamSearch, max_steps: int) -> bool:
    """Return whether no unfinished text can still rank among the `n` best.

    Exact for this score: the log-probability of a text only falls while it grows and is negative, so no divisor gives
    it a better score than the largest one, lp(max_steps). The results equal those of a search without early stopping.
    """
    if not live:
        return True
    if len(results) < options.n or results[-1].finish != "stop":
        return False
    return max(one.logprob for one in live) / options.divisor(max_steps) <= results[-1].score


def _candidates(
    logits: Float[Tensor, "R V"],
    k: int,
    rules: TokenConstraints,
    step: int,
    max_steps: int,
    end: int,
    texts: Sequence[Sequence[int]],
) -> list[list[tuple[int, float]]]:
    """Return, per sequence, the k most likely allowed tokens with their log-probabilities (nats, over all of V)."""
    forced = rules.forced(step, max_steps)
    if forced is not None:
        return [[(forced, 0.0)] for _ in logits]
    logprobs = rules.mask(logits.float().log_softmax(-1), step, (end,), texts)
    top = logprobs.topk(min(k, logprobs.shape[-1]), -1)
    best = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [[one for one in zip(*tokens, strict=True) if one[1] > -torch.inf] for tokens in best]
