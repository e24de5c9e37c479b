"""OpenAI's routes: models, completions, chat, in OpenAI's own shapes, so that OpenAI's own clients work."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from glassformer.inspect.edits.edit import Edit
from glassformer.inspect.edits.reader import EditReader
from glassformer.server import openapi_docs as answers
from glassformer.server.bodies import ChatBody, CompletionBody, OpenAIFields
from glassformer.server.errors import answer
from glassformer.server.generation import Chunk, GenerationJob, Token, ready
from glassformer.server.models import ServedModel, ServedModels
from glassformer.server.queue import Queue
from glassformer.server.sse import Events, all_of, event, result_of

DONE = b"data: [DONE]\n\n"
IMPOSSIBLE = -9999.0


def routes(models: ServedModels, queue: Queue, edits: EditReader) -> APIRouter:
    """The routes over these models."""
    router = APIRouter(tags=["OpenAI"])

    @router.post(
        "/v1/completions", summary="Continue a text", responses=answers.COMPLETION, description=answers.ABOUT_WRITING
    )
    async def complete(body: CompletionBody, request: Request) -> Response:
        served = models[body.model]
        served.check_writes()
        body.check_stream()
        changes = await _changes(request, queue, edits, body)

        def prepare() -> GenerationJob:
            return ready(
                served,
                body,
                body.prompts(),
                max_tokens=("max_tokens", body.max_tokens),
                n=1 if body.n is None else body.n,
                logprobs=("logprobs", body.logprobs),
                echo=bool(body.echo),
                edits=changes,
            )

        return await _written(request, queue, body, await asyncio.to_thread(prepare), _Completion)

    @router.post(
        "/v1/chat/completions", summary="Answer a conversation", responses=answers.CHAT,
        description=answers.ABOUT_CHAT,
    )  # fmt: skip
    async def chat(body: ChatBody, request: Request) -> Response:
        served = models[body.model]
        served.check_writes()
        body.check_stream()
        changes = await _changes(request, queue, edits, body)

        def prepare() -> GenerationJob:
            return ready(
                served,
                body,
                [served.chat_ids([message.plain() for message in body.messages])],
                max_tokens=body.limit(),
                n=1 if body.n is None else body.n,
                logprobs=("top_logprobs", body.top()),
                edits=changes,
            )

        return await _written(request, queue, body, await asyncio.to_thread(prepare), _Chat)

    return router


async def _changes(request: Request, queue: Queue, edits: EditReader, body: OpenAIFields) -> Sequence[Edit]:
    """A request's edits. They are read where traces are computed, for a patch takes from one."""
    if not body.edits:
        return ()
    return await result_of(request, queue, lambda: edits.read(body.changes()), quick=True)


async def _written(
    request: Request, queue: Queue, body: OpenAIFields, writing: GenerationJob, kind: type[_Shape]
) -> Response:
    shape = kind(writing, body)
    if body.stream:
        return await Events(request, queue.submit(writing.chunks), shape.events, shape.last_events).begun()
    chunks = await all_of(request, queue, writing.chunks)
    return answer(await asyncio.to_thread(shape.whole, chunks))


class _Shape(ABC):
    """An answer as OpenAI writes it, whole or in chunks."""

    prefix, object, chunk_object = "", "", ""

    def __init__(self, writing: GenerationJob, body: OpenAIFields):
        self.writing, self.served = writing, writing.served
        self.with_usage = body.stream_options is not None and body.stream_options.include_usage
        self.head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
        self.head |= {"seed": writing.seed}
        self.n_written = 0
        self.begun: set[int] = set()

    @abstractmethod
    def choice(self, chunk: Chunk) -> dict[str, Any]:
        """A choice of a whole answer."""

    @abstractmethod
    def deltas(self, chunk: Chunk) -> Iterable[dict[str, Any]]:
        """A chunk as choices of a stream."""

    def usage(self) -> dict[str, int]:
        n = self.writing.n_prompt
        return {"prompt_tokens": n, "completion_tokens": self.n_written, "total_tokens": n + self.n_written}

    def whole(self, chunks: list[Chunk]) -> dict[str, Any]:
        """The answer from all its chunks."""
        parts: list[list[Chunk]] = [[] for _ in range(self.writing.n_choices)]
        for chunk in chunks:
            parts[chunk.index].append(chunk)
        choices = []
        for i, those in enumerate(parts):
            self.n_written += sum(chunk.n_tokens for chunk in those)
            tokens = tuple(token for chunk in those for token in chunk.tokens)
            choices.append(self.choice(Chunk(i, "".join(c.text for c in those), tokens, finish=those[-1].finish)))
        return self.head | {"object": self.object, "choices": choices, "usage": self.usage()}

    def events(self, chunk: Chunk) -> Iterator[bytes]:
        self.n_written += chunk.n_tokens
        if chunk.text or chunk.tokens or chunk.finish:
            for delta in self.deltas(chunk):
                yield self._event([delta], None)

    def last_events(self) -> Iterator[bytes]:
        if self.with_usage:
            yield self._event([], self.usage())
        yield DONE

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
        counted = {"usage": usage} if self.with_usage else {}
        return event(self.head | {"object": self.chunk_object, "choices": choices} | counted)


class _Completion(_Shape):
    prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def choice(self, chunk: Chunk) -> dict[str, Any]:
        logprobs = None if self.writing.options["logprobs"] is None else self._logprobs(chunk.tokens)
        return {"index": chunk.index, "text": chunk.text, "logprobs": logprobs, "finish_reason": chunk.finish}

    def deltas(self, chunk: Chunk) -> Iterable[dict[str, Any]]:
        return [self.choice(chunk)]

    def _logprobs(self, tokens: tuple[Token, ...]) -> dict[str, Any]:
        return {
            "tokens": [self.served.spelled(token.id)[0] for token in tokens],
            "token_logprobs": [_number(token.logprob) for token in tokens],
            "top_logprobs": [
                None if token.logprob is None else {self.served.spelled(id)[0]: _number(p) for id, p in token.top}
                for token in tokens
            ],
            "text_offset": [token.offset for token in tokens],
        }


class _Chat(_Shape):
    prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, chunk: Chunk) -> dict[str, Any]:
        message = {"role": "assistant", "content": chunk.text, "refusal": None}
        return {"index": chunk.index, "message": message} | self._rest(chunk)

    def deltas(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        head: dict[str, Any] = {"index": chunk.index}
        nothing = {"logprobs": None, "finish_reason": None}
        if chunk.index not in self.begun:
            self.begun.add(chunk.index)
            yield head | {"delta": {"role": "assistant", "content": ""}} | nothing
        if chunk.text or chunk.tokens:
            yield head | {"delta": {"content": chunk.text}} | self._rest(chunk) | {"finish_reason": None}
        if chunk.finish:
            yield head | {"delta": {}} | nothing | {"finish_reason": chunk.finish}

    def _rest(self, chunk: Chunk) -> dict[str, Any]:
        logprobs = None
        if self.writing.options["logprobs"] is not None:
            logprobs = {"content": [self._token(token) for token in chunk.tokens], "refusal": None}
        return {"logprobs": logprobs, "finish_reason": chunk.finish}

    def _token(self, token: Token) -> dict[str, Any]:
        top = [_spelled(self.served, id, logprob) for id, logprob in token.top]
        return _spelled(self.served, token.id, token.logprob) | {"top_logprobs": top}


def _spelled(served: ServedModel, id: int, logprob: float | None) -> dict[str, Any]:
    text, data = served.spelled(id)
    return {"token": text, "bytes": None if data is None else list(data), "logprob": _number(logprob)}


def _number(logprob: float | None) -> float | None:
    """A log-probability as JSON can say it: what is impossible is IMPOSSIBLE, as OpenAI writes it; NaN is null."""
    return None if logprob is None or math.isnan(logprob) else max(logprob, IMPOSSIBLE)
