"""A generation request: checked before it is queued, then decoded in the worker thread.

body -> GenerationJob (token ids and options; raises RequestError) -> queue -> Chunk, Chunk, ... -> OpenAI's format
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from glassformer.errors import RequestError
from glassformer.generate.request import GenerationRequest, TokenEvent, TopTokens
from glassformer.models.language_model import LanguageModel
from glassformer.server.bodies import SamplingFields
from glassformer.server.errors import prompt_errors
from glassformer.server.models import ServedModel
from glassformer.server.queue import CheckCancelled
from glassformer.text.stream_decoder import StreamDecoder

SEEDS = 1 << 63


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
    """Text to append to choice `index`. tokens: only when log-probabilities are requested."""

    index: int
    text: str
    tokens: tuple[Token, ...] = ()
    n_tokens: int = 0
    finish: Literal["stop", "length"] | None = None


@dataclass
class GenerationJob:
    """Prompts to continue sequentially, each n times. Choice p*n + i is continuation i of prompt p.

    Raises RequestError or CapacityError when it is created with a prompt that cannot be continued.
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

    def __post_init__(self):
        self.n_prompt = sum(map(len, self.prompts))
        with prompt_errors():
            for p in range(len(self.prompts)):
                self._stream(p, lambda: None)  # checks the prompt without generating

    @property
    def lm(self) -> LanguageModel:
        return self.served.language_model

    @property
    def n(self) -> int:
        return self.options["n"]

    @property
    def n_choices(self) -> int:
        return self.n * len(self.prompts)

    def chunks(self, check: CheckCancelled) -> Iterator[Chunk]:
        """Generate and yield the chunks of all choices. `check` is called before each forward pass."""
        for p in range(len(self.prompts)):
            if self.echo:
                yield from self._echo(p)
            if not self.score_only:
                offsets = (
                    [_TokenOffsets(self, p) for _ in range(self.n)] if self.options["logprobs"] is not None else None
                )
                for event in self._stream(p, check):
                    yield self._chunk(event, p, offsets)

    def _stream(self, p: int, check: CheckCancelled) -> Iterator[TokenEvent]:
        options: dict[str, Any] = self.options | ({"max_tokens": 1} if self.score_only else {})
        if self.seed is not None:
            options |= {"seed": (self.seed + p * self.n) % SEEDS}
        if self.edits:
            options |= {"edit": self.edits}
        return self.lm.stream(self.prompts[p], before_forward=check, **options)

    def _chunk(self, event: TokenEvent, p: int, offsets: list[_TokenOffsets] | None) -> Chunk:
        tokens: tuple[Token, ...] = ()
        if offsets is not None and event.id is not None:
            tokens = (Token(event.id, event.logprob, event.top, offsets[event.sequence].next(event.id)),)
        return Chunk(p * self.n + event.sequence, event.text, tokens, int(event.id is not None), event.finish)

    def _echo(self, p: int) -> Iterator[Chunk]:
        """Yield the prompt as the first chunk of each of its continuations."""
        ids, tokenizer, text = self.prompts[p], self.lm.tokenizer, self.texts[p]
        if text is None:
            text = tokenizer.decode(ids, skip_special=True) if tokenizer else ""
        tokens: tuple[Token, ...] = ()
        if (top := self.options["logprobs"]) is not None:
            edits = {"edit": self.edits} if self.edits else {}
            scores = self.lm.score(ids, top=top, **edits).tokens if len(ids) > 1 else ()
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


def make_job(
    served: ServedModel,
    body: SamplingFields,
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
    try:
        GenerationRequest([], logprobs=logprobs[1])
    except RequestError as error:
        raise RequestError(str(error).replace("logprobs", logprobs[0]), param=logprobs[0]) from None
    seed = sampling.pop("seed", None)
    ids = [served.language_model.encode(prompt) for prompt in prompts]
    texts = [prompt if isinstance(prompt, str) else None for prompt in prompts]
    return GenerationJob(
        served, ids, texts, options | {"logprobs": logprobs[1]} | sampling, seed, echo, score_only, tuple(edits)
    )
