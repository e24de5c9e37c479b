"""The decode loop: prefill once, then choose and process one token per sequence and step.

request -> session.start() -> logits -> choose -> TokenEvent -> session.advance() -> logits -> choose -> ...
           (n continuations share one prefill)    a sequence leaves the batch when it ends
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.errors import CapacityError, RequestError
from glassformer.generate.request import GenerationRequest, TokenEvent, TopTokens, check_ids
from glassformer.generate.sampling import adjust, choose
from glassformer.generate.session import (
    DEFAULT_MAX_TOKENS,
    DecodeSession,
    GenerativeModel,
    Observer,
    RecurrentSession,
    TransformerSession,
    max_source_tokens,
    vocab_sizes,
)
from glassformer.generate.stopping import StopStrings
from glassformer.kernels.native.attention import attend_native
from glassformer.nn.attend import Attend
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder
from glassformer.text.stream_decoder import StreamDecoder
from glassformer.text.tokenizer import Tokenizer


def decode(model: GenerativeModel, request: GenerationRequest, **options: Any) -> Iterator[TokenEvent]:
    """Continue each prompt of a request: `decode_with_pauses` without its pauses."""
    return (event for event in decode_with_pauses(model, request, **options) if event is not None)


def decode_with_pauses(
    model: GenerativeModel,
    request: GenerationRequest,
    *,
    tokenizer: Tokenizer | None = None,
    attend: Attend = attend_native,
    observer: Observer | None = None,
    before_forward: Callable[[], None] | None = None,
) -> Iterator[TokenEvent | None]:
    """Continue each prompt of a request; yield one event per continuation and step, in order of sequences.

    Between the forward passes of a long prefill it yields None, so that other work can run in between. Continuation i
    draws with the request's seed plus i.

    Args:
        tokenizer: decodes tokens to the text of the events; without it the text is empty.
        observer: inspects each forward pass, or changes it.
        before_forward: called before each forward pass of the decoder; an exception from it stops generation.

    Raises (at the call, before the first forward pass):
        CapacityError: a prompt with `max_tokens`, or a source, does not fit the context.
        RequestError: a token id is outside the vocabulary, there is no prompt, or stop strings have no tokenizer.
    """
    limits = check_request(model, request)
    if request.stop and tokenizer is None:
        raise RequestError("stop strings need a tokenizer, and this model has none", param="stop")
    session = open_session(model, request, limits, attend, observer, before_forward)
    return decode_steps(session, request, limits, tokenizer, observer is not None and observer.sees_last_token)


def check_request(model: GenerativeModel, request: GenerationRequest) -> list[int]:
    """Return the maximal number of tokens after each prompt. Errors as in `decode`."""
    if not request.prompts:
        raise RequestError("the request has no prompt: pass at least one", param="prompt")
    source_vocab_size, vocab_size = vocab_sizes(model)
    for prompt in request.prompts:
        check_ids("prompt", prompt, vocab_size)
    if request.sampling.logit_bias:
        check_ids("logit_bias", request.sampling.logit_bias, vocab_size)
    for source in request.sources or ():
        check_ids("source", source, source_vocab_size)
        limit = max_source_tokens(model)
        if limit is not None and len(source) > limit:
            raise CapacityError(f"a source of {len(source)} tokens does not fit: the encoder's context holds {limit}")
    if isinstance(model, RecurrentEncoderDecoder):
        return [request.max_tokens or DEFAULT_MAX_TOKENS] * len(request.prompts)
    context, limits = model.config.context_length, []
    begin = int(isinstance(model, EncoderDecoder))  # the token that begins a target is not part of the text
    for prompt in request.prompts:
        free = context - len(prompt) + begin
        if free < (request.max_tokens or 1):
            parts = [] if request.sources else [f"a prompt of {len(prompt)} tokens"]
            parts += [] if request.max_tokens is None else [f"max_tokens {request.max_tokens}"]
            raise CapacityError(f"{' and '.join(parts)} does not fit: the model's context holds {context} tokens")
        limits.append(request.max_tokens or free)
    return limits


def open_session(
    model: GenerativeModel,
    request: GenerationRequest,
    limits: Sequence[int],
    attend: Attend = attend_native,
    observer: Observer | None = None,
    before_forward: Callable[[], None] | None = None,
) -> TransformerSession | RecurrentSession:
    """Create the session of a checked request. limits: the result of `check_request`."""
    if isinstance(model, RecurrentEncoderDecoder):
        assert request.sources is not None
        return RecurrentSession(
            model, request.prompts, n=request.n, sources=request.sources, observer=observer,
            before_forward=before_forward,
        )  # fmt: skip
    capacity = max(len(prompt) + limit for prompt, limit in zip(request.prompts, limits, strict=True))
    return TransformerSession(
        model, request.prompts, capacity, n=request.n, sources=request.sources, attend=attend, observer=observer,
        before_forward=before_forward,
    )  # fmt: skip


class GeneratedSequence:
    """One continuation during generation: its ids, its text, and the number of tokens that may follow."""

    def __init__(
        self, number: int, prompt: Sequence[int], limit: int, seed: int, stop: Sequence[str],
        tokenizer: Tokenizer | None, min_length: int = 0,
    ):  # fmt: skip
        self.number, self.ids, self.remaining, self.min_length = number, list(prompt), limit, min_length
        self.generator, self.stops = random.Random(seed), StopStrings(stop)
        self.text = None if tokenizer is None else stream_after(prompt, tokenizer)

    def push(self, token: int) -> str:
        """Add a token; return the text that became final."""
        self.ids.append(token)
        self.remaining -= 1
        text = self.text.push(token) if self.text else ""
        self.min_length -= 1
        return text if self.min_length > 0 else self.stops.push(text)

    def finish(self) -> str:
        """Return the text that was withheld: a partial character, or a possible beginning of a stop string."""
        return self.stops.push(self.text.finish()) + self.stops.finish() if self.text else ""


def decode_steps(  # no inference mode here: it would leak to the caller at each yield
    session: DecodeSession,
    request: GenerationRequest,
    limits: Sequence[int],
    tokenizer: Tokenizer | None = None,
    process_last_token: bool = False,
) -> Iterator[TokenEvent | None]:
    """Run a session until all sequences have ended. See `decode_with_pauses`.

    process_last_token: run one more forward pass over the last generated token, from which nothing is predicted.
    """
    sampling, rules, max_steps = request.sampling.seeded(), request.constraints, max(limits)
    prompts = [prompt for prompt in zip(request.prompts, limits, strict=True) for _ in range(request.n)]
    sequences = [
        GeneratedSequence(i, prompt, limit, (sampling.seed or 0) + i, request.stop, tokenizer, rules.min_length)
        for i, (prompt, limit) in enumerate(prompts)
    ]
    logits, step = (yield from session.start()), 1
    counts = TokenCounts(logits, [one.ids for one in sequences]) if sampling.counts_tokens else None
    vocab_size = tokenizer.vocab_size if tokenizer else None  # excludes the padding of a vocabulary
    while True:
        forced = rules.forced(step, max_steps)
        if forced is not None:
            logits = torch.full_like(logits, -torch.inf).index_fill_(-1, torch.tensor(forced, device=logits.device), 0)
            allowed = logits
        else:
            allowed = adjust(logits, sampling, *(counts.select(sequences) if counts else ()))[:, :vocab_size]
            allowed = rules.mask(allowed, step, request.end_ids, [one.ids for one in sequences])
        chosen = choose(allowed, sampling, [one.generator for one in sequences])
        ids = chosen.tolist()
        no_logprobs: list[tuple[float | None, TopTokens]] = [(None, ())] * len(sequences)
        reports = no_logprobs if request.logprobs is None else token_logprobs(logits, chosen, request.logprobs)
        events = []
        for sequence, token, (logprob, top) in zip(sequences, ids, reports, strict=True):
            if token in request.end_ids:
                cut_off = step == max_steps and rules.last is not None
                text, finish, added, end = sequence.finish(), "length" if cut_off else "stop", None, token
            else:
                text, finish, added, end = sequence.push(token), None, token, None
                if sequence.stops.found is not None:
                    finish = "stop"
                elif sequence.remaining == 0:
                    text, finish = text + sequence.finish(), "length"
            events.append(TokenEvent(sequence.number, added, text, logprob, top, finish, end))
        yield from events
        going = [i for i, event in enumerate(events) if event.finish is None]
        if not going:
            if process_last_token and events[0].id is not None:
                session.advance(ids)
            return
        if len(going) < len(sequences):
            session.select(going)
            sequences, ids = [sequences[i] for i in going], [ids[i] for i in going]
        if counts:
            counts.add(sequences, ids)
        logits, step = session.advance(ids), step + 1


def stream_after(prompt: Sequence[int], tokenizer: Tokenizer) -> StreamDecoder:
    """Return a stream decoder that continues after a prompt, which may end within a character."""
    text, control = tokenizer.stream(), tokenizer.special_tokens.values()
    for token in prompt[-4:]:  # a character has at most four bytes
        if token not in control:
            text.push(token)
    return text


class TokenCounts:
    """The number of occurrences of each token in the prompt and in the output of each sequence, [R, V] each."""

    def __init__(self, logits: Float[Tensor, "R V"], prompts: Sequence[Sequence[int]]):
        counts = [torch.bincount(torch.tensor(list(ids)), minlength=logits.shape[-1]) for ids in prompts]
        self.prompt = torch.stack(counts).to(logits.device)
        self.output = torch.zeros_like(self.prompt)

    def add(self, sequences: Sequence[GeneratedSequence], ids: Sequence[int]) -> None:
        """Count one more token of each sequence."""
        self.output[[sequence.number for sequence in sequences], list(ids)] += 1

    def select(self, sequences: Sequence[GeneratedSequence]) -> tuple[Int[Tensor, "R V"], Int[Tensor, "R V"]]:
        """Return the counts of these sequences: prompt, output."""
        index = [sequence.number for sequence in sequences]
        return self.prompt[index], self.output[index]


def token_logprobs(
    logits: Float[Tensor, "R V"], chosen: Int[Tensor, "R"], n_top: int
) -> list[tuple[float | None, TopTokens]]:
    """Return each chosen token's log-probability (nats), and the `n_top` most likely tokens with theirs."""
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(-1, chosen[:, None]).squeeze(-1).tolist()
    top = logprobs.topk(min(n_top, logprobs.shape[-1]), -1)
    best = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [(one, tuple(zip(*tokens, strict=True))) for one, tokens in zip(own, best, strict=True)]
