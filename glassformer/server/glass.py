"""The glass's routes: traces, what can be seen of them, and of a model."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from fastapi import APIRouter, Request, Response

from glassformer.errors import RequestError
from glassformer.generate.request import TokenEvent
from glassformer.inspect.present.router import in_rows, seen, told
from glassformer.inspect.present.router import in_short as short_of
from glassformer.inspect.present.router import names as names_of
from glassformer.inspect.sweep.sweep import Sweep, Swept
from glassformer.inspect.sweep.sweep import sweep as sweep_of
from glassformer.inspect.trace import slices
from glassformer.inspect.trace.trace import Trace
from glassformer.inspect.views.registry import VIEWS, ViewSpec
from glassformer.inspect.views.result import plain
from glassformer.server import openapi_docs as answers
from glassformer.server.bodies import SweepBody, TraceBody, VectorBody
from glassformer.server.edits import EditReader
from glassformer.server.errors import ApiError, answer, of_prompt
from glassformer.server.models import ServedModel, ServedModels
from glassformer.server.queue import Check, Queue
from glassformer.server.sse import Events, all_of, event, result_of
from glassformer.server.trace_store import StoredTrace, TraceStore

FOREVER = "private, max-age=31536000, immutable"


def routes(models: ServedModels, queue: Queue, traces: TraceStore, edits: EditReader) -> APIRouter:
    """The routes over these models and traces."""
    router = APIRouter(tags=["Glass"])

    async def look(request: Request, function: Callable[[], Any], *used: StoredTrace) -> Any:
        """What a quick look at traces finds."""

        def looked() -> Any:
            try:
                return function()
            finally:
                for entry in used:
                    traces.used(entry)

        return await result_of(request, queue, looked, quick=True)

    @router.post(
        "/v1/traces",
        summary="Trace a text",
        description=answers.ABOUT_TRACES,
        status_code=201,
        responses=answers.TRACE,
    )
    async def make(body: TraceBody, request: Request) -> Response:
        served = models[body.model]
        if served.kind != "decoder":
            return await read_whole(body, served, request)
        ids = await asyncio.to_thread(body.ids, served)
        changes = await look(request, lambda: edits.read(body.changes())) if body.edits else ()
        options = body.writing() | {"read": body.read or (), "edit": changes, "max_tokens": body.max_tokens}
        if body.max_tokens:
            options["logprobs"] = body.top if body.stream else 0

        def work(check: Check) -> Iterator[TokenEvent | StoredTrace]:
            with of_prompt():
                for one in served.writer.trace_stream(ids, before_forward=check, budget=traces.limit, **options):
                    yield one if isinstance(one, TokenEvent) else traces.put(served.name, one)

        if body.stream:
            return await Events(
                request, queue.submit(work), _Written(served, len(ids)).events, tuple, error="error"
            ).begun()
        *pieces, entry = await all_of(request, queue, work)
        assert isinstance(entry, StoredTrace)
        logprobs = [piece.logprob for piece in pieces if isinstance(piece, TokenEvent) and piece.id is not None]
        said = await asyncio.to_thread(described, entry, logprobs)
        return answer(said, 201, {"location": f"/v1/traces/{entry.id}"})

    async def read_whole(body: TraceBody, served: ServedModel, request: Request) -> Response:
        """A trace of a model that reads a source, or of an encoder: it comes at once."""
        prompt, options = body.reading(served)
        options["edit"] = await look(request, lambda: edits.read(body.changes())) if body.edits else ()

        def work(check: Check) -> Iterator[StoredTrace]:
            pace = {} if served.kind == "encoder" else {"before_forward": check}
            with of_prompt():
                yield traces.put(served.name, served.lm.trace(prompt, budget=traces.limit, **pace, **options))  # pyright: ignore[reportAttributeAccessIssue]

        if body.stream:
            told = lambda entry: [event(described(entry), "trace")]  # noqa: E731
            return await Events(request, queue.submit(work), told, tuple, error="error").begun()
        (entry,) = await all_of(request, queue, work)
        return answer(await asyncio.to_thread(described, entry), 201, {"location": f"/v1/traces/{entry.id}"})

    @router.get("/v1/traces", summary="The kept traces", responses=answers.TRACES)
    async def list_traces() -> Response:
        return answer({"object": "list", "data": [in_short(entry) for entry in traces.all()], **traces.state})

    @router.get("/v1/traces/{id}", summary="One trace", responses=answers.ONE_TRACE)
    async def get_trace(id: str) -> Response:
        return answer(await asyncio.to_thread(described, traces.get(id)))

    @router.delete("/v1/traces/{id}", summary="Forget a trace", responses=answers.DELETED)
    async def delete_trace(id: str) -> Response:
        traces.remove(id)
        return answer({"id": id, "deleted": True})

    @router.get("/v1/traces/{id}/names", summary="The points that a trace has", responses=answers.NAMES)
    async def names(id: str) -> Response:
        return answer(names_of(traces.get(id).trace, id))

    @router.get(
        "/v1/traces/{id}/tensors/{name}",
        summary="A slice of a tensor",
        description=answers.ABOUT_TENSORS,
        responses=answers.TENSOR,
    )
    async def tensor(
        request: Request, id: str, name: str, slice: str = "", pool: int | None = None, dtype: slices.Kind = "f32"
    ) -> Response:
        _only(request, "slice", "pool", "dtype")
        entry = traces.get(id)
        slices.check_pool(pool)
        tag = f'"{hashlib.sha256(f"{id} {name} {slice} {pool} {dtype}".encode()).hexdigest()[:32]}"'
        headers = {"etag": tag, "cache-control": FOREVER}
        if tag in request.headers.get("if-none-match", ""):
            return Response(None, 304, headers)
        data = await look(request, lambda: slices.answer(entry.trace, name, slice=slice, pool=pool, dtype=dtype), entry)
        return Response(data, 200, headers, "application/octet-stream")

    @router.post(
        "/v1/sweeps", summary="One edit after another", description=answers.ABOUT_SWEEPS, responses=answers.SWEEP
    )
    async def sweep(body: SweepBody, request: Request) -> Response:
        entry = traces.get(body.trace)
        how = body.model_dump(exclude={"trace", "source"})
        source = None if body.source is None else traces.get(body.source).trace

        def work(_: Check) -> Iterator[Sweep | Swept]:
            found = sweep_of(entry.trace, source=source, **how)
            yield found
            yield from found
            traces.used(entry)

        return await Events(request, queue.submit(work), _swept, lambda: [event({}, "done")], error="error").begun()

    @router.post("/v1/vectors", summary="Name a vector for edits", status_code=201, responses=answers.VECTOR)
    async def vector(body: VectorBody) -> Response:
        return answer({"vector": edits.store.put(torch.tensor(body.values)), "shape": [len(body.values)]}, 201)

    async def rows(request: Request, view: ViewSpec, used: list[StoredTrace], given: dict[str, Any]) -> Response:
        """A look that comes row by row, as events."""

        def work(_: Check) -> Iterator[bytes]:
            try:
                for name, value in in_rows(view, used[0].trace, given):
                    yield event(value, name)
            finally:
                for entry in used:
                    traces.used(entry)

        one = lambda data: [data]  # noqa: E731
        return await Events(request, queue.submit(work, quick=True), one, tuple, error="error").begun()

    def of_trace(view: ViewSpec) -> Callable:
        async def see(request: Request, id: str) -> Response:
            used = [traces.get(id)]

            def find(other: str) -> Trace:
                used.append(traces.get(other))
                return used[-1].trace

            query = _query(request)
            if view.rows is not None and _streamed(query.pop("stream", "false")):
                return await rows(request, view, used, view.read(query, find))
            given = view.read(query, find)
            data = await look(request, lambda: seen(view, used[0].trace, given), *used)
            return Response(data, media_type="application/json")

        return see

    def of_model(view: ViewSpec) -> Callable:
        async def see(request: Request, model: str) -> Response:
            served = models[model]
            given = view.read(_query(request))
            data = await look(request, lambda: seen(view, served.lm, given))
            return Response(data, media_type="application/json")

        return see

    for view in VIEWS.values():
        path, make_route = (
            ("/v1/traces/{id}", of_trace) if view.of == "trace" else ("/v1/models/{model:path}", of_model)
        )
        router.add_api_route(
            f"{path}/views/{view.name}",
            make_route(view),
            methods=["GET"],
            summary=view.meaning,
            description=answers.ABOUT_ROWS if view.rows else None,
            openapi_extra={"parameters": answers.parameters(view)},
            responses=answers.VIEW,
            name=f"{view.of}_{view.name}",
        )

    @router.get("/v1/traces/{id}/views/{view}", include_in_schema=False)
    async def no_view(id: str, view: str) -> Response:
        traces.get(id)
        raise _no_view("trace", view)

    @router.get("/v1/models/{model:path}/views/{view}", include_in_schema=False)
    async def no_view_of_model(model: str, view: str) -> Response:
        models[model]
        raise _no_view("model", view)

    return router


def _swept(one: Sweep | Swept) -> list[bytes]:
    """A sweep's beginning, or one of its rows, as an event."""
    if isinstance(one, Swept):
        row = {name: getattr(one, name) for name in ("layer", "head", "position", "value", "change", "done", "total")}
        return [event(plain(row) | {"edit": one.edit.json}, "row")]
    about = {name: getattr(one, name) for name in ("position", "target", "rival", "base", "metric")}
    return [event(plain(about) | {"total": len(one)}, "begin")]


def _no_view(of: str, name: str) -> ApiError:
    known = [view.name for view in VIEWS.values() if view.of == of]
    if name in VIEWS:
        return ApiError(404, f"{name!r} is a view of a {VIEWS[name].of}, not of a {of}", param="view")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return ApiError(
        404, f"a {of} has no view {name[:64]!r}; the nearest is {near!r}", param="view", code="view_not_found"
    )


def _query(request: Request) -> dict[str, str]:
    """The parameters of a view. RequestError for one that is given twice."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in found:
            raise RequestError(f"{name} is given twice", param=name)
        found[name] = value
    return found


def _streamed(text: str) -> bool:
    if text not in ("true", "false"):
        raise RequestError(f"stream must be true or false, got {text[:40]!r}", param="stream")
    return text == "true"


def _only(request: Request, *known: str) -> None:
    for name in _query(request):
        if name not in known:
            raise RequestError(f"unknown parameter {name[:64]!r}; known: {', '.join(known)}", param=name[:64])


class _Written:
    """A text as it is written, as events."""

    def __init__(self, served: ServedModel, n_prompt: int):
        self.served, self.position = served, n_prompt
        self.logprobs: list[float | None] = []

    def events(self, one: TokenEvent | StoredTrace) -> Iterator[bytes]:
        if isinstance(one, StoredTrace):
            yield event(described(one, self.logprobs), "trace")
        elif one.id is not None:
            token = _token(self.served, one.id, one.logprob)
            top = [_token(self.served, id, logprob) for id, logprob in one.top]
            yield event(token | {"added": one.text, "top": top, "position": self.position}, "token")
            self.position += 1
            self.logprobs.append(one.logprob)


def _token(served: ServedModel, id: int, logprob: float | None) -> dict[str, Any]:
    return {"id": id, "text": served.spelled(id)[0], "logprob": plain(logprob)}


def in_short(entry: StoredTrace) -> dict[str, Any]:
    """A trace without its tokens."""
    return short_of(entry.trace, entry.id, entry.model, entry.created, entry.bytes)


def described(entry: StoredTrace, logprobs: list[float | None] = []) -> dict[str, Any]:  # noqa: B006 (it is only read)
    """A trace as its route tells it. `logprobs`: of what was written, where they are known; `summary` has them all."""
    return in_short(entry) | told(entry.trace, logprobs)
