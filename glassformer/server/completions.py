"""OpenAI's routes: models, completions and chat completions. OpenAI's clients work with them."""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from secrets import token_hex, token_urlsafe
from typing import Any

from fastapi import APIRouter, Request, Response

from glassformer.inspect.edits.edit import Edit
from glassformer.inspect.edits.reader import EditReader
from glassformer.server import openapi_docs
from glassformer.server.bodies import ChatBody, CompletionBody, OpenAIFields
from glassformer.server.errors import dump, json_response
from glassformer.server.generation import Chunk, GenerationJob, Token, make_job
from glassformer.server.models import ServedModel, ServedModels
from glassformer.server.queue import Preparation, WorkQueue
from glassformer.server.sse import EventStreamResponse, collect, compute, prepare, sse_event

DONE = b"data: [DONE]\n\n"
MIN_LOGPROB = -9999.0
PADDED_SIZE = 64  # with include_obfuscation, the sizes of chunks are multiples of this many bytes, plus a constant


def routes(models: ServedModels, queue: WorkQueue, preparation: Preparation, edits: EditReader) -> APIRouter:
    """Return the router over these models."""
    router = APIRouter(tags=["OpenAI"])

    @router.post(
        "/v1/completions",
        summary="Continue a text",
        responses=openapi_docs.COMPLETION,
        description=openapi_docs.ABOUT_COMPLETIONS,
    )
    async def complete(body: CompletionBody, request: Request) -> Response:
        served = models[body.model]
        served.check_generates()
        body.check_options()
        parsed_edits = await _read_edits(request, queue, edits, body)

        def make() -> GenerationJob:
            return make_job(
                served,
                body,
                body.prompts(),
                max_tokens=body.token_limit(),
                n=1 if body.n is None else body.n,
                logprobs=("logprobs", body.logprobs),
                echo=bool(body.echo),
                edits=parsed_edits,
            )

        return await _respond(request, queue, body, await prepare(request, preparation, make), _Completion)

    @router.post(
        "/v1/chat/completions", summary="Answer a conversation", responses=openapi_docs.CHAT,
        description=openapi_docs.ABOUT_CHAT,
    )  # fmt: skip
    async def chat(body: ChatBody, request: Request) -> Response:
        served = models[body.model]
        served.check_generates()
        body.check_options()
        parsed_edits = await _read_edits(request, queue, edits, body)

        def make() -> GenerationJob:
            return make_job(
                served,
                body,
                [served.chat_ids([message.as_dict() for message in body.messages], body.template_variables())],
                max_tokens=body.token_limit(),
                n=1 if body.n is None else body.n,
                logprobs=("top_logprobs", body.n_top_logprobs()),
                edits=parsed_edits,
            )

        return await _respond(request, queue, body, await prepare(request, preparation, make), _Chat)

    return router


async def _read_edits(request: Request, queue: WorkQueue, edits: EditReader, body: OpenAIFields) -> Sequence[Edit]:
    """Parse the edits of a request. This runs in the worker thread, since a patch reads a trace."""
    if not body.edits:
        return ()
    return await compute(request, queue, lambda: edits.read(body.edit_dicts()), quick=True)


async def _respond(
    request: Request, queue: WorkQueue, body: OpenAIFields, job: GenerationJob, response: type[_ResponseShape]
) -> Response:
    shape = response(job, body)
    if body.stream:
        return await EventStreamResponse(
            request, queue.submit(job.chunks, memory=job.memory), shape.events, shape.final_events
        ).wait_started()
    chunks = await collect(request, queue, job.chunks, memory=job.memory)
    return json_response(await asyncio.to_thread(shape.complete, chunks))


class _ResponseShape(ABC):
    """A response in OpenAI's format, complete or streamed."""

    prefix, object, chunk_object = "", "", ""

    def __init__(self, job: GenerationJob, body: OpenAIFields):
        self.job, self.served = job, job.served
        options = body.stream_options
        self.with_usage = bool(options and options.include_usage)
        self.always_usage = self.with_usage and bool(options and options.continuous_usage_stats)
        self.pad = bool(options and options.include_obfuscation)
        self.head = {"id": f"{self.prefix}-{token_hex(12)}", "created": int(time.time()), "model": body.model}
        self.head |= {"seed": job.seed}
        self.n_generated = 0
        self.started: set[int] = set()

    @abstractmethod
    def choice(self, chunk: Chunk) -> dict[str, Any]:
        """Return a choice of a complete response."""

    @abstractmethod
    def deltas(self, chunk: Chunk) -> Iterable[dict[str, Any]]:
        """Return a chunk as choices of a stream."""

    def usage(self) -> dict[str, int]:
        n = self.job.n_prompt
        return {"prompt_tokens": n, "completion_tokens": self.n_generated, "total_tokens": n + self.n_generated}

    def complete(self, chunks: list[Chunk]) -> dict[str, Any]:
        """Return the complete response from all chunks."""
        parts: list[list[Chunk]] = [[] for _ in range(self.job.n_choices)]
        for chunk in chunks:
            parts[chunk.index].append(chunk)
        choices = []
        for i, part in enumerate(parts):
            self.n_generated += sum(chunk.n_tokens for chunk in part)
            tokens = tuple(token for chunk in part for token in chunk.tokens)
            choices.append(self.choice(Chunk(i, "".join(chunk.text for chunk in part), tokens, finish=part[-1].finish)))
        return self.head | {"object": self.object, "choices": choices, "usage": self.usage()}

    def events(self, chunk: Chunk) -> Iterator[bytes]:
        self.n_generated += chunk.n_tokens
        if chunk.text or chunk.tokens or chunk.finish:
            for delta in self.deltas(chunk):
                yield self._event([delta], self.usage() if self.always_usage else None)

    def final_events(self) -> Iterator[bytes]:
        if self.with_usage:
            yield self._event([], self.usage())
        yield DONE

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
        value = self.head | {"object": self.chunk_object, "choices": choices}
        value |= {"usage": usage} if self.with_usage else {}
        if self.pad and choices:
            value["obfuscation"] = token_urlsafe(PADDED_SIZE)[: -len(dump(value)) % PADDED_SIZE]
        return sse_event(value)


class _Completion(_ResponseShape):
    prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def choice(self, chunk: Chunk) -> dict[str, Any]:
        logprobs = None if self.job.options["logprobs"] is None else self._logprobs(chunk.tokens)
        return {"index": chunk.index, "text": chunk.text, "logprobs": logprobs, "finish_reason": chunk.finish}

    def deltas(self, chunk: Chunk) -> Iterable[dict[str, Any]]:
        return [self.choice(chunk)]

    def _logprobs(self, tokens: tuple[Token, ...]) -> dict[str, Any]:
        return {
            "tokens": [self.served.token_text(token.id)[0] for token in tokens],
            "token_logprobs": [_json_logprob(token.logprob) for token in tokens],
            "top_logprobs": [None if token.logprob is None else self._top_logprobs(token) for token in tokens],
            "text_offset": [token.offset for token in tokens],
        }

    def _top_logprobs(self, token: Token) -> dict[str, float | None]:
        """Return the most probable tokens and the token itself; of tokens with the same text, the most probable."""
        found: dict[str, float | None] = {}
        for id, logprob in (*token.top, (token.id, token.logprob)):
            found.setdefault(self.served.token_text(id)[0], _json_logprob(logprob))
        return found


class _Chat(_ResponseShape):
    prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, chunk: Chunk) -> dict[str, Any]:
        message = {"role": "assistant", "content": chunk.text, "refusal": None}
        return {"index": chunk.index, "message": message} | self._rest(chunk)

    def deltas(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        head: dict[str, Any] = {"index": chunk.index}
        empty = {"logprobs": None, "finish_reason": None}
        if chunk.index not in self.started:
            self.started.add(chunk.index)
            yield head | {"delta": {"role": "assistant", "content": ""}} | empty
        if chunk.text or chunk.tokens:
            yield head | {"delta": {"content": chunk.text}} | self._rest(chunk) | {"finish_reason": None}
        if chunk.finish:
            yield head | {"delta": {}} | empty | {"finish_reason": chunk.finish}

    def _rest(self, chunk: Chunk) -> dict[str, Any]:
        logprobs = None
        if self.job.options["logprobs"] is not None:
            logprobs = {"content": [self._token(token) for token in chunk.tokens], "refusal": None}
        return {"logprobs": logprobs, "finish_reason": chunk.finish}

    def _token(self, token: Token) -> dict[str, Any]:
        top = [_token_logprob(self.served, id, logprob) for id, logprob in token.top]
        return _token_logprob(self.served, token.id, token.logprob) | {"top_logprobs": top}


def _token_logprob(served: ServedModel, id: int, logprob: float | None) -> dict[str, Any]:
    text, data = served.token_text(id)
    return {"token": text, "bytes": None if data is None else list(data), "logprob": _json_logprob(logprob)}


def _json_logprob(logprob: float | None) -> float | None:
    """Return a log-probability for JSON: at least MIN_LOGPROB, as in OpenAI's API; NaN is null."""
    return None if logprob is None or math.isnan(logprob) else max(logprob, MIN_LOGPROB)
