"""A generation request: checked before it is queued, then decoded in the worker thread.

body -> GenerationJob (token ids and options; raises RequestError) -> queue -> Chunk, Chunk, ... -> OpenAI's format
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from glassformer.cache.size import cached_numbers, tokens_that_fit
from glassformer.errors import CapacityError, RequestError
from glassformer.generate.request import GenerationRequest, TokenEvent, TopTokens, check_ids
from glassformer.inspect.capture.capture import format_bytes
from glassformer.models.language_model import LanguageModel
from glassformer.nn.linear import dtype_of
from glassformer.server.bodies import SEEDS, OpenAIFields
from glassformer.server.errors import ApiError, prompt_errors
from glassformer.server.models import ServedModel
from glassformer.server.queue import CheckCancelled
from glassformer.text.stream_decoder import StreamDecoder

BATCH = 32  # sequences of several prompts that are generated together


@dataclass(frozen=True)
class Token:
    """A prompt or generated token.

    logprob: None for the first token of a prompt. offset: in characters from the start of the prompt.
    """

    id: int
    logprob: float | None
    top: TopTokens
    offset: int


@dataclass(frozen=True)
class Chunk:
    """Text to append to choice `index`.

    tokens: only when log-probabilities are requested; with the end token, which has no text. n_tokens: the number of
    generated tokens, with the end token.
    """

    index: int
    text: str
    tokens: tuple[Token, ...] = ()
    n_tokens: int = 0
    finish: Literal["stop", "length"] | None = None


@dataclass
class GenerationJob:
    """Prompts to continue, each n times, in batches. Choice p*n + i is continuation i of prompt p.

    With edits, each prompt is continued alone: the row of an edit is the index of a continuation of its prompt. Raises
    RequestError or CapacityError when it is created with a prompt that cannot be continued.
    """

    served: ServedModel
    prompts: Sequence[Sequence[int]]
    texts: Sequence[str | None]  # of each prompt; None where it is given as token ids
    options: dict[str, Any]
    seed: int | None
    echo: bool = False
    score_only: bool = False
    edits: Sequence[Any] = ()
    n_prompt: int = field(init=False)
    memory: int = field(init=False, default=0)  # of the largest batch, in bytes

    def __post_init__(self):
        self.n_prompt = sum(map(len, self.prompts))
        with prompt_errors():
            for prompts in self._batches():
                if self.score_only:
                    self._check_scored(prompts)
                else:
                    self._stream(prompts, lambda: None)  # checks the prompts without generating
                    self.memory = max(self.memory, self._check_memory(prompts))

    @property
    def lm(self) -> LanguageModel:
        return self.served.language_model

    @property
    def n(self) -> int:
        return self.options["n"]

    @property
    def n_choices(self) -> int:
        return self.n * len(self.prompts)

    def chunks(self, check: CheckCancelled) -> Iterator[Chunk | None]:
        """Generate and yield the chunks of all choices, and None between the forward passes over a long prompt.

        `check` is called before each forward pass.
        """
        for batch in self._batches():
            if self.echo:
                for p in batch:
                    yield from self._echo(p, check)
            if not self.score_only:
                offsets = None
                if self.options["logprobs"] is not None:
                    offsets = [_TokenOffsets(self, p) for p in batch for _ in range(self.n)]
                for event in self._stream(batch, check):
                    yield None if event is None else self._chunk(event, batch[0] * self.n, offsets)

    def _batches(self) -> list[range]:
        """Return the indices of the prompts of each batch: neighbours, as many as a request's memory allows."""
        context, limit = self.lm.config.context_length, self.options["max_tokens"]
        batches, begin, longest = [], 0, 0
        for p, prompt in enumerate(self.prompts):
            length = context if limit is None else min(len(prompt) + limit, context)
            size, longest = (p + 1 - begin) * self.n, max(longest, length)
            n_bytes = size * cached_numbers(self.lm.config, longest) * self._itemsize
            if p > begin and (self.edits or size > BATCH or n_bytes > self.served.request_bytes):
                batches.append(range(begin, p))
                begin, longest = p, length
        return [*batches, range(begin, len(self.prompts))]

    def _check_memory(self, batch: range) -> int:
        """Return the bytes of a batch's keys and values. ApiError if a request may not use as many."""
        n_tokens, n_sequences = self._n_tokens(batch), len(batch) * self.n
        n_bytes = n_sequences * cached_numbers(self.lm.config, n_tokens) * self._itemsize
        if n_tokens > self._most_tokens(batch):
            raise ApiError(
                400, f"the keys and values of {n_sequences} sequences of {n_tokens:,} tokens take "
                f"{format_bytes(n_bytes)}, and a request may use {format_bytes(self.served.request_bytes)}: ask for "
                "fewer tokens or continuations, or start the server with more --cache-memory",
                param="max_tokens", code="too_much_memory",
            )  # fmt: skip
        return n_bytes

    def _n_tokens(self, batch: range) -> int:
        """Return the largest number of tokens of a sequence of a batch, prompt included."""
        longest, limit = max(len(self.prompts[p]) for p in batch), self.options["max_tokens"]
        if limit is None:
            return max(longest + 1, min(self.lm.config.context_length, self._most_tokens(batch)))
        return longest + limit

    def _most_tokens(self, batch: range) -> int:
        """Return the number of tokens per sequence of a batch whose keys and values fit the memory of a request."""
        n_numbers = self.served.request_bytes // (len(batch) * self.n * self._itemsize)
        return tokens_that_fit(self.lm.config, n_numbers)

    @property
    def _itemsize(self) -> int:
        return dtype_of(self.lm.model).itemsize

    def _stream(self, batch: range, check: CheckCancelled) -> Iterator[TokenEvent | None]:
        options = dict(self.options)
        if options["max_tokens"] is None and self._most_tokens(batch) < self.lm.config.context_length:
            options["max_tokens"] = self._n_tokens(batch) - max(len(self.prompts[p]) for p in batch)
        if self.seed is not None:
            options |= {"seed": (self.seed + batch[0] * self.n) % SEEDS}
        if self.edits:
            options |= {"edit": self.edits}
        prompts = [self.prompts[p] for p in batch]
        return self.lm.stream_with_pauses(prompts, before_forward=check, **options)

    def _check_scored(self, batch: range) -> None:
        """Check prompts that are not continued: they may fill the context."""
        config = self.lm.config
        for p in batch:
            check_ids("prompt", self.prompts[p], config.vocab_size)
            if len(self.prompts[p]) > config.context_length:
                raise CapacityError(
                    f"a prompt of {len(self.prompts[p])} tokens does not fit: the model's context holds "
                    f"{config.context_length} tokens"
                )

    def _chunk(self, event: TokenEvent, first: int, offsets: list[_TokenOffsets] | None) -> Chunk:
        tokens: tuple[Token, ...] = ()
        if offsets is not None:
            offset = offsets[event.sequence]
            if event.id is not None:
                tokens = (Token(event.id, event.logprob, event.top, offset.next(event.id)),)
            elif event.end_id is not None:
                tokens = (Token(event.end_id, event.logprob, event.top, offset.finish()),)
        return Chunk(first + event.sequence, event.text, tokens, 1, event.finish)

    def _echo(self, p: int, check: CheckCancelled) -> Iterator[Chunk | None]:
        """Yield the prompt as the first chunk of each of its continuations."""
        ids, tokenizer, text = self.prompts[p], self.lm.tokenizer, self.texts[p]
        if text is None:
            text = tokenizer.decode(ids, skip_special=True) if tokenizer else ""
        tokens: tuple[Token, ...] = ()
        if (top := self.options["logprobs"]) is not None:
            edits = {"edit": self.edits} if self.edits else {}
            scores = ()
            if len(ids) > 1:
                scores = (yield from self.lm.score_with_pauses(ids, top=top, before_forward=check, **edits)).tokens
            offsets = _TokenOffsets(self, p, skip_prompt=False)
            logprobs = [(score.logprob, score.top) for score in scores] or [(None, ())]
            tokens = tuple(Token(id, *score, offsets.next(id)) for id, score in zip(ids, logprobs, strict=True))
        finish = "length" if self.score_only else None
        for i in range(self.n):
            yield Chunk(p * self.n + i, text, tokens, 0, finish)


class _TokenOffsets:
    """Computes the start of each token of a text, in characters from the start of the prompt.

    Control tokens have no width, including those added before a prompt, such as BOS.

    Args:
        skip_prompt: start after the tokens of the prompt.
    """

    def __init__(self, job: GenerationJob, p: int, *, skip_prompt: bool = True):
        tokenizer, self.served = job.lm.tokenizer, job.served
        self.decoder: StreamDecoder | None = tokenizer.stream(skip_special=True) if tokenizer else None
        self.end = 0  # of the text decoded so far
        if skip_prompt:
            for token in job.prompts[p]:
                self.next(token)

    def next(self, token: int) -> int:
        """Decode the next token and return its offset."""
        begin = self.end
        if self.decoder is not None:
            self.end += len(self.decoder.push(token))
        text = self.served.token_text(token)[0]
        return max(begin, self.end - len(text))  # the decoded text may start with a character of earlier tokens

    def finish(self) -> int:
        """Return the offset of an end token, which has no width."""
        return self.end + (len(self.decoder.finish()) if self.decoder is not None else 0)


def make_job(
    served: ServedModel,
    body: OpenAIFields,
    prompts: Sequence[str | list[int]],
    *,
    max_tokens: tuple[str, int | None] = ("max_tokens", None),
    n: int = 1,
    logprobs: tuple[str, int | None] = ("logprobs", None),
    echo: bool = False,
    edits: Sequence[Any] = (),
) -> GenerationJob:
    """Return the job of a request. Raises RequestError for a value that is out of range.

    Args:
        max_tokens, logprobs: (name of the request's field, for errors; value).
    """
    sampling, stops = body.sampling(), body.stop_strings()
    limit_field, limit = max_tokens
    score_only = echo and limit == 0
    if limit is not None and limit < 1 and not score_only:
        more = ", or 0 with echo" if limit_field == "max_tokens" else ""
        raise RequestError(f"{limit_field} must be at least 1{more}, got {limit}", param=limit_field)
    options = {"max_tokens": None if score_only else limit, "stop": stops, "n": n}
    options |= {"min_tokens": body.min_tokens or 0, "ignore_eos": bool(body.ignore_eos)}
    try:
        GenerationRequest([], n=n, logprobs=logprobs[1])
    except RequestError as error:
        if error.param != "logprobs":
            raise
        raise RequestError(str(error).replace("logprobs", logprobs[0]), param=logprobs[0]) from None
    seed = sampling.pop("seed", None)
    ids = [served.encode(prompt) for prompt in prompts]
    texts = [prompt if isinstance(prompt, str) else None for prompt in prompts]
    return GenerationJob(
        served, ids, texts, options | {"logprobs": logprobs[1]} | sampling, seed, echo, score_only, tuple(edits)
    )
