"""The inspection routes over HTTP: traces, their views and tensors, views of models, sweeps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from glassformer.inspect.present.describe import describe_trace
from glassformer.inspect.present.paths import cache_key
from glassformer.inspect.present.router import ROUTES, Event, Route, Router
from glassformer.inspect.trace.trace import Trace
from glassformer.server import openapi_docs
from glassformer.server.bodies import SweepBody, TraceBody, VectorBody
from glassformer.server.errors import json_response, prompt_errors
from glassformer.server.models import ServedModels
from glassformer.server.queue import CheckCancelled, Preparation, WorkQueue
from glassformer.server.sse import EventStreamResponse, collect, prepare, sse_event
from glassformer.server.trace_store import StoredTrace, TraceStore

CACHE_FOREVER = "private, max-age=31536000, immutable"


class ServerRouter(Router):
    """The served models, and the stored traces."""

    def __init__(self, served: ServedModels, store: TraceStore):
        super().__init__()
        self.served, self.store = served, store

    def models(self) -> list[dict[str, Any]]:
        return [served.description for served in self.served.all.values()]

    def model(self, name: str) -> Any:
        return self.served[name].lm

    def trace(self, id: str) -> Trace:
        return self.store.get(id).trace

    def add(self, trace: Trace, model: str) -> str:
        return self.store.put(model, trace).id

    def describe(self, id: str) -> dict[str, Any]:
        return describe_entry(self.store.get(id))


def describe_entry(entry: StoredTrace) -> dict[str, Any]:
    """Return a stored trace as JSON values."""
    return describe_trace(entry.trace, entry.id, entry.model, created=entry.created, n_bytes=entry.bytes)


def routes(api: ServerRouter, queue: WorkQueue, preparation: Preparation) -> APIRouter:
    """Return the HTTP routes: those in ROUTES, and those that create and delete traces, sweeps and vectors."""
    router = APIRouter(tags=["Inspection"])
    store = api.store

    def stream(
        request: Request, events: Callable[[CheckCancelled], Iterator[Event | None]], *, quick: bool = False
    ) -> Any:
        job = queue.submit(events, quick=quick)
        return EventStreamResponse(
            request, job, lambda event: [sse_event(event[1], event[0])], tuple, error_event="error"
        ).wait_started()

    @router.post(
        "/v1/traces",
        summary="Trace a text",
        description=openapi_docs.ABOUT_TRACES,
        status_code=201,
        responses=openapi_docs.TRACE,
    )
    async def create_trace(body: TraceBody, request: Request) -> Response:
        served = api.served[body.model]
        lm: Any = served.lm
        decoder = served.kind == "decoder"
        if decoder:
            prompt = await prepare(request, preparation, lambda: body.prompt_ids(served))
            options = body.generation_options() | {"capture": body.capture or (), "max_tokens": body.max_tokens}
            if body.max_tokens:
                options["logprobs"] = body.top if body.stream else 0
        else:
            prompt, options = body.trace_arguments(served)

        def work(check: CheckCancelled) -> Iterator[Event | None]:
            arguments = options | {
                "budget": store.limit,
                "edit": api.edits.read(body.edit_dicts()) if body.edits else (),
            }
            if served.kind != "encoder":
                arguments["before_forward"] = check
            with prompt_errors():
                items = lm.trace_with_pauses(prompt, **arguments) if decoder else iter([lm.trace(prompt, **arguments)])
                yield from api.trace_events(served.name, lm, len(prompt), items)

        if body.stream:
            return await stream(request, work)
        _, trace = (await collect(request, queue, work))[-1]
        return json_response(trace, 201, {"location": f"/v1/traces/{trace['id']}"})

    @router.get("/v1/traces", summary="The stored traces", responses=openapi_docs.TRACES)
    async def list_traces() -> Response:
        return json_response(
            {"object": "list", "data": [describe_entry(entry) for entry in store.all()], **store.state}
        )

    @router.delete("/v1/traces/{id}", summary="Delete a trace", responses=openapi_docs.DELETED)
    async def delete_trace(id: str) -> Response:
        store.remove(id)
        return json_response({"id": id, "deleted": True})

    @router.post(
        "/v1/sweeps",
        summary="Measure one edit after another",
        description=openapi_docs.ABOUT_SWEEPS,
        responses=openapi_docs.SWEEP,
    )
    async def sweep(body: SweepBody, request: Request) -> Response:
        entry = store.get(body.trace)

        def work(_: CheckCancelled) -> Iterator[Event]:
            yield from api.sweep_events(body.model_dump())
            store.update_size(entry)

        return await stream(request, work)

    @router.post("/v1/vectors", summary="Store a vector for edits", status_code=201, responses=openapi_docs.VECTOR)
    async def store_vector(body: VectorBody) -> Response:
        return json_response(api.store_vector(body.values), 201)

    def endpoint(route: Route) -> Callable[[Request], Any]:
        async def respond(request: Request) -> Response:
            reply = route.open(api, request.url.query, **request.path_params)
            headers = {}
            if reply.immutable:
                key = cache_key(f"{request.url.path}?{request.url.query}")
                headers = {"etag": f'"{hashlib.sha256(key.encode()).hexdigest()[:32]}"', "cache-control": CACHE_FOREVER}
                if headers["etag"] in request.headers.get("if-none-match", ""):
                    return Response(None, 304, headers)
            entries = [store.get(id) for id in reply.traces]

            def update_sizes_after(work: Callable[[], Iterator[Any]]) -> Callable[[CheckCancelled], Iterator[Any]]:
                def run(_: CheckCancelled) -> Iterator[Any]:
                    try:
                        yield from work()
                    finally:
                        for entry in entries:
                            store.update_size(entry)

                return run

            if reply.events is not None:
                return await stream(request, update_sizes_after(reply.events), quick=True)
            (data,) = await collect(request, queue, update_sizes_after(lambda: iter([reply.body()])), quick=True)
            return Response(data, 200, headers, reply.media_type)

        return respond

    for route in ROUTES:
        router.add_api_route(
            route.path,
            endpoint(route),
            methods=["GET"],
            include_in_schema=bool(route.summary),
            name=route.path,
            **openapi_docs.describe_route(route),
        )
    return router
