"""The FastAPI app: guard, routes and error handlers. Creating it starts only the threads of the queues."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi

from glassformer.errors import ConfigError
from glassformer.server import completions, errors, glass, openapi_docs
from glassformer.server.errors import json_response
from glassformer.server.guard import MAX_BODY, Guard
from glassformer.server.models import CACHE_BYTES, AnyModel, ServedModels
from glassformer.server.page import BuiltPage
from glassformer.server.queue import Preparation, WorkQueue
from glassformer.server.trace_store import TraceStore

VERSION = version("glassformer")


@dataclass(frozen=True)
class Settings:
    """Settings of a server.

    key: the API key that every route requires, or None. hosts: host names that are allowed in addition to localhost and
    IP addresses. max_body: the maximum size of a request in bytes. trace_bytes: the memory for stored traces in bytes.
    cache_bytes: the memory for the keys and values of running requests in bytes; one request may use half of it.
    chat_template: the name of the chat template of models that have several.
    """

    key: str | None = None
    hosts: tuple[str, ...] = ()
    max_body: int = MAX_BODY
    trace_bytes: int = 2**30
    cache_bytes: int = CACHE_BYTES
    chat_template: str = "default"

    def __post_init__(self):
        if self.key is not None and not (
            self.key.isascii() and self.key.isprintable() and self.key.strip() == self.key
        ):
            raise ConfigError("the API key must be printable ASCII without leading or trailing spaces")
        if self.key == "":
            raise ConfigError("the API key is empty: give one, or leave it out")
        for name in ("trace_bytes", "cache_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


def make_app(models: Iterable[tuple[str, AnyModel]], settings: Settings = Settings()) -> FastAPI:
    """Return the app for these (name, model) pairs. `app.state.queue` runs all model work."""
    served = ServedModels(models, settings.cache_bytes // 2, settings.chat_template)
    queue = WorkQueue(settings.cache_bytes)
    page, traces = BuiltPage(), TraceStore(settings.trace_bytes)
    api, preparation = glass.ServerRouter(served, traces), Preparation()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()
        preparation.close()

    app = FastAPI(
        title="Glassformer",
        version=VERSION,
        description=openapi_docs.DESCRIPTION,
        docs_url=None,  # FastAPI's pages load scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        responses=openapi_docs.ERRORS,
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )
    app.state.queue, app.state.models, app.state.page = queue, served, page
    app.state.preparation = preparation
    errors.install_error_handlers(app)
    app.add_middleware(Guard, key=settings.key, hosts=settings.hosts, is_page=page.has, max_body=settings.max_body)

    @app.get(
        "/health",
        tags=["Server"],
        summary="State of the server, and which implementations run",
        responses=openapi_docs.HEALTH,
    )
    async def health() -> Response:
        return json_response(
            {
                "status": "ok",
                "version": VERSION,
                "models": list(served.all),
                "choices": [
                    {"model": name, "what": choice.what, "value": choice.value, "because": choice.because}
                    for name, one in served.all.items()
                    for choice in one.lm.choices
                ],
                "queue": queue.state,
                "cache": {"bytes": queue.reserved, "limit": settings.cache_bytes},
                "traces": traces.state,
            }
        )

    app.include_router(completions.routes(served, queue, preparation, api.edits))
    app.include_router(glass.routes(api, queue, preparation))

    @app.get("/v1/models/{model:path}", tags=["OpenAI"], summary="One served model", responses=openapi_docs.ONE_MODEL)
    async def one_model(model: str) -> Response:
        return json_response(served[model].description)

    page.install(app)
    app.openapi = lambda: _openapi(app, settings)
    return app


def _openapi(app: FastAPI, settings: Settings) -> dict:
    """Return the OpenAPI document, with the API key, and without status 422, which is 400 here."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path in found["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(unused, None)
        if settings.key is not None:
            found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            found["security"] = [{"key": []}]
        app.openapi_schema = found
    return app.openapi_schema
