"""A request to write, made ready: checked before it waits, then written in the worker thread, chunk by chunk.

body -> Writing (ids, options; every refusal is raised here) -> queue -> Chunk, Chunk, ... -> OpenAI's shapes
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
    """A token of an answer. logprob: None for a prompt's first. offset: in characters, from the prompt's beginning."""

    id: int
    logprob: float | None
    top: TopTokens
    offset: int


@dataclass(frozen=True)
class Chunk:
    """What is added to choice `index`: text, and `tokens` where log-probabilities were asked for."""

    index: int
    text: str
    tokens: tuple[Token, ...] = ()
    n_tokens: int = 0
    finish: Literal["stop", "length"] | None = None


@dataclass
class GenerationJob:
    """Prompts to continue, one after the other, each n times. Choice p*n + i is continuation i of prompt p."""

    served: ServedModel
    prompts: Sequence[Sequence[int]]
    texts: Sequence[str | None]  # of each prompt as it was given; None: as ids
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
                self._pieces(p, lambda: None)  # refuses what cannot be written

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
        """Write. A model's pass comes after each `check`."""
        for p in range(len(self.prompts)):
            if self.echo:
                yield from self._echo(p)
            if not self.score_only:
                places = [_Places(self, p) for _ in range(self.n)] if self.options["logprobs"] is not None else None
                for piece in self._pieces(p, check):
                    yield self._chunk(piece, p, places)

    def _pieces(self, p: int, check: CheckCancelled) -> Iterator[TokenEvent]:
        options: dict[str, Any] = self.options | ({"max_tokens": 1} if self.score_only else {})
        if self.seed is not None:
            options |= {"seed": (self.seed + p * self.n) % SEEDS}
        if self.edits:
            options |= {"edit": self.edits}
        return self.lm.stream(self.prompts[p], before_forward=check, **options)

    def _chunk(self, piece: TokenEvent, p: int, places: list[_Places] | None) -> Chunk:
        tokens: tuple[Token, ...] = ()
        if places is not None and piece.id is not None:
            tokens = (Token(piece.id, piece.logprob, piece.top, places[piece.sequence].take(piece.id)),)
        return Chunk(p * self.n + piece.sequence, piece.text, tokens, int(piece.id is not None), piece.finish)

    def _echo(self, p: int) -> Iterator[Chunk]:
        """The prompt itself, for each of its continuations."""
        ids, tokenizer = self.prompts[p], self.lm.tokenizer
        given = self.texts[p]
        text = given if given is not None else tokenizer.decode(ids, skip_special=True) if tokenizer else ""
        tokens: tuple[Token, ...] = ()
        if (top := self.options["logprobs"]) is not None:
            edits = {"edit": self.edits} if self.edits else {}
            scores = self.lm.score(ids, top=top, **edits).tokens if len(ids) > 1 else ()
            places = _Places(self, p, read=False)
            found = [(one.logprob, one.top) for one in scores] or [(None, ())]
            tokens = tuple(Token(id, *one, places.take(id)) for id, one in zip(ids, found, strict=True))
        finish = "length" if self.score_only else None
        for i in range(self.n):
            yield Chunk(p * self.n + i, text, tokens, 0, finish)


class _Places:
    """Where each token of an answer begins, in characters from the beginning of the prompt. Control tokens of a prompt
    have no width; neither has what a prompt is given before it, such as a BOS."""

    def __init__(self, writing: GenerationJob, p: int, *, read: bool = True):
        tokenizer, self.served = writing.lm.tokenizer, writing.served
        self.decoder: StreamDecoder | None = tokenizer.stream(skip_special=True) if tokenizer else None
        self.at = 0
        if read:
            for token in writing.prompts[p]:
                self.take(token)

    def take(self, token: int) -> int:
        begin = self.at
        if self.decoder is not None:
            self.at += len(self.decoder.push(token))
        text = self.served.token_text(token)[0]
        return max(begin, self.at - len(text))  # what was half a character before it may have come with it


def ready(
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
    """A request to write, checked. Names beside values are those by which the client knows them."""
    sampling, stops = body.sampling(), body.stop_strings()
    named, limit = max_tokens
    score_only = echo and limit == 0
    if limit is not None and limit < 1 and not score_only:
        more = ", or 0 with echo" if named == "max_tokens" else ""
        raise RequestError(f"{named} must be a whole number from 1{more}, got {limit}", param=named)
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
