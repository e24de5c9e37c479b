"""The inspection API: one table of routes for the server, notebooks and reports.

    GET  /v1/models                             the models
    GET  /v1/models/{model}/views/{view}        a view of a model
    GET  /v1/traces/{id}                        the text and tokens of a trace
    GET  /v1/traces/{id}/focus                  the layer, head, query and key to show first
    GET  /v1/traces/{id}/names                  the points of a trace
    GET  /v1/traces/{id}/tensors/{name}         a slice of a tensor, see present/slices.py
    GET  /v1/traces/{id}/views/{view}           a view of a trace; with ?stream=true as events
    POST /v1/traces, /v1/sweeps, /v1/vectors    events, or the last one's data

A `Router` finds models and traces. The server's has many models and a bounded trace store; `LocalRouter` has one model
and a dictionary. HTTP sends responses over a socket, a notebook over its comm; a report stores them under `cache_key`.
"""

from __future__ import annotations

import difflib
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any
from urllib.parse import unquote

import torch

from glassformer.errors import NotFoundError, RequestError
from glassformer.generate.request import TokenEvent
from glassformer.inspect.edits.edit import MAX_NUMBER
from glassformer.inspect.edits.reader import EditReader
from glassformer.inspect.present import slices
from glassformer.inspect.present.describe import describe_points, describe_text, describe_trace
from glassformer.inspect.present.paths import parse_query
from glassformer.inspect.sweep.sweep import sweep
from glassformer.inspect.trace.trace import Language, Trace, token_text
from glassformer.inspect.views.focus import focus
from glassformer.inspect.views.registry import VIEWS, ViewSpec
from glassformer.inspect.views.result import dump, plain

Event = tuple[str, Any]  # a name, and its data as JSON values
FOCUS = ViewSpec("trace", focus)


@dataclass(frozen=True)
class Reply:
    """The response to a valid GET request, not computed yet.

    body: computes the response. events: computes it in parts, if the request has `stream=true`. traces: the ids of the
    traces that it uses. immutable: whether the same path always returns the same bytes.
    """

    body: Callable[[], bytes]
    events: Callable[[], Iterator[Event]] | None = None
    traces: tuple[str, ...] = ()
    media_type: str = "application/json"
    immutable: bool = False


class Router(ABC):
    """Models by name, traces by id, and the routes over them."""

    def __init__(self):
        self.edits = EditReader(self.trace)

    @abstractmethod
    def models(self) -> list[dict[str, Any]]:
        """Describe all models."""

    @abstractmethod
    def model(self, name: str) -> Language:
        """Return the model with this name; raise NotFoundError if it does not exist."""

    @abstractmethod
    def trace(self, id: str) -> Trace:
        """Return the trace with this id; raise NotFoundError if it does not exist."""

    @abstractmethod
    def add(self, trace: Trace, model: str) -> str:
        """Store a trace of the model with this name; return its id."""

    @abstractmethod
    def describe(self, id: str) -> dict[str, Any]:
        """Return a trace's metadata."""

    def describe_all(self, id: str, logprobs: Sequence[float | None] = ()) -> dict[str, Any]:
        """Return a trace's metadata, text and tokens."""
        return self.describe(id) | describe_text(self.trace(id), logprobs)

    def open(self, path: str) -> Reply:
        """Validate a GET request; raise RequestError or NotFoundError if it is invalid."""
        where, _, query = path.partition("?")
        for route in ROUTES:
            if found := route.pattern.fullmatch(where):
                return route.open(self, query, **{k: unquote(v) for k, v in found.groupdict().items()})
        raise NotFoundError(f"unknown path {where[:100]}")

    def get(self, path: str) -> bytes:
        """Return the response to a GET request."""
        return self.open(path).body()

    def sweep_events(self, body: Mapping[str, Any]) -> Iterator[Event]:
        """Run a sweep; yield the event "begin", a "row" for each edit, and "done"."""
        options = dict(body)
        trace, source = self.trace(str(options.pop("trace", ""))), options.pop("source", None)
        if source is not None:
            options["align"] = options.get("align") or "start"
        found = sweep(trace, source=None if source is None else self.trace(source), **options)
        about = {name: getattr(found, name) for name in ("position", "target", "rival", "base", "metric")}
        yield "begin", plain(about) | {"total": len(found)}
        for one in found:
            names = ("layer", "head", "position", "value", "change", "done", "total")
            yield "row", plain({name: getattr(one, name) for name in names}) | {"edit": one.edit.json}
        yield "done", {}

    def trace_events(
        self, name: str, lm: Language, n_prompt: int, items: Iterable[TokenEvent | Trace | None]
    ) -> Iterator[Event | None]:
        """Store the trace at the end of `items`; yield a "token" event per generated token, then "trace".

        Pauses (None) are passed on.
        """
        logprobs: list[float | None] = []

        def token(id: int, logprob: float | None) -> dict[str, Any]:
            return {"id": id, "text": token_text(lm.tokenizer, id), "logprob": plain(logprob)}

        for one in items:
            if one is None:
                yield None
            elif isinstance(one, Trace):
                yield "trace", self.describe_all(self.add(one, name), logprobs)
            elif one.id is not None:
                rest = {"added": one.text, "top": [token(*top) for top in one.top]}
                yield "token", token(one.id, one.logprob) | rest | {"position": n_prompt + len(logprobs)}
                logprobs.append(one.logprob)

    def store_vector(self, values: Sequence[float]) -> dict[str, Any]:
        """Store a vector, which edits reference by its SHA-256. RequestError for a number beyond float32."""
        vector = torch.tensor(values, dtype=torch.float64)
        if ((vector.abs() > MAX_NUMBER) & vector.isfinite()).any():
            raise RequestError(f"the numbers of a vector are float32: at most {MAX_NUMBER:g}", param="values")
        return {"vector": self.edits.store.put(vector), "shape": [len(values)]}


class LocalRouter(Router):
    """A router of one model and its traces, with the ids "t0", "t1", ..., in this process."""

    def __init__(self, lm: Language, name: str):
        super().__init__()
        self.lm, self.name, self.traces = lm, name, dict[str, Trace]()
        self._ids = (f"t{i}" for i in itertools.count())

    def models(self) -> list[dict[str, Any]]:
        return [{"id": self.name, "object": "model"}]

    def model(self, name: str) -> Language:
        if name != self.name:
            raise NotFoundError(f"unknown model {name[:100]!r}; the model is {self.name!r}", param="model")
        return self.lm

    def trace(self, id: str) -> Trace:
        if id not in self.traces:
            raise NotFoundError(f"unknown trace {id[:64]!r}", param="id", code="trace_not_found")
        return self.traces[id]

    def add(self, trace: Trace, model: str = "") -> str:
        known = (id for id, one in self.traces.items() if one is trace)
        id = next(known, None) or next(self._ids)
        self.traces[id] = trace
        return id

    def describe(self, id: str) -> dict[str, Any]:
        trace = self.trace(id)
        return describe_trace(trace, id, self.name, n_bytes=trace.bytes)


# ---- the routes


@dataclass(frozen=True)
class Route:
    """A GET route. `handler` takes the router, the query and the path's parameters. No summary: undocumented."""

    path: str
    handler: Callable[..., Reply]
    summary: str = ""
    view: ViewSpec | None = None

    def open(self, router: Router, query: str, **parameters: str) -> Reply:
        """Validate a request: its query string, and the values of the path's parameters."""
        return self.handler(router, parse_query(query), **parameters)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\{(\w+)(:path)?\}", lambda m: f"(?P<{m[1]}>{'.+' if m[2] else '[^/]+'})", self.path))


def _models(router: Router, query: dict[str, str]) -> Reply:
    _reject_parameters(query)
    return Reply(lambda: dump({"object": "list", "data": router.models()}))


def _trace(router: Router, query: dict[str, str], id: str) -> Reply:
    _reject_parameters(query)
    router.trace(id)
    return Reply(lambda: dump(router.describe_all(id)), traces=(id,))


def _names(router: Router, query: dict[str, str], id: str) -> Reply:
    _reject_parameters(query)
    trace = router.trace(id)
    return Reply(lambda: dump(describe_points(trace, id)), traces=(id,))


def _tensor(router: Router, query: dict[str, str], id: str, name: str) -> Reply:
    trace, options = router.trace(id), slices.read_options(query)
    body = partial(slices.encode_slice, trace, name, **options)
    return Reply(body, traces=(id,), media_type="application/octet-stream", immutable=True)


def _model_view(view: ViewSpec, router: Router, query: dict[str, str], model: str) -> Reply:
    lm = router.model(model)
    options = view.read(query)
    return Reply(lambda: dump(plain(view.function(lm, **options))))


def _trace_view(view: ViewSpec, router: Router, query: dict[str, str], id: str) -> Reply:
    ids, trace = [id], router.trace(id)

    def find(other: str) -> Trace:
        ids.append(other)
        return router.trace(other)

    stream = query.pop("stream", "false") if view.rows is not None else "false"
    if stream not in ("true", "false"):
        raise RequestError(f"stream must be true or false, got {stream[:40]!r}", param="stream")
    options = view.read(query, find)
    return Reply(
        lambda: dump(plain(view.function(trace, **options))),
        (lambda: _view_events(view, trace, options)) if stream == "true" else None,
        tuple(ids),
    )


def _view_events(view: ViewSpec, trace: Trace, options: dict[str, Any]) -> Iterator[Event]:
    """Compute a view in parts; yield a "row" event for each part, then "done" with the complete view."""
    assert view.rows is not None
    rows = view.rows(trace, **options)
    while True:
        try:
            yield "row", plain(next(rows))
        except StopIteration as end:
            yield "done", plain(end.value)
            return


def _unknown_trace_view(router: Router, query: dict[str, str], id: str, view: str) -> Reply:
    router.trace(id)
    raise _unknown_view("trace", view)


def _unknown_model_view(router: Router, query: dict[str, str], model: str, view: str) -> Reply:
    router.model(model)
    raise _unknown_view("model", view)


def _unknown_view(subject: str, name: str) -> NotFoundError:
    if name in VIEWS:
        return NotFoundError(f"{name!r} is a view of a {VIEWS[name].of}, not of a {subject}", param="view")
    known = [view.name for view in VIEWS.values() if view.of == subject]
    (near,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    message = f"a {subject} has no view {name[:64]!r}; the nearest is {near!r}"
    return NotFoundError(message, param="view", code="view_not_found")


def _reject_parameters(query: Mapping[str, str]) -> None:
    """Raise RequestError if a request without parameters has one."""
    for name in query:
        raise RequestError(f"unknown parameter {name[:64]!r}: this route has no parameters", param=name[:64])


def _view_route(view: ViewSpec) -> Route:
    subject, handler = (
        ("/v1/traces/{id}", _trace_view) if view.of == "trace" else ("/v1/models/{model:path}", _model_view)
    )
    return Route(f"{subject}/views/{view.name}", partial(handler, view), view.meaning, view)


ROUTES = (
    Route("/v1/models", _models, "The models"),
    Route("/v1/traces/{id}", _trace, "One trace"),
    Route("/v1/traces/{id}/focus", partial(_trace_view, FOCUS), FOCUS.meaning, FOCUS),
    Route("/v1/traces/{id}/names", _names, "The points of a trace"),
    Route("/v1/traces/{id}/tensors/{name}", _tensor, "A slice of a tensor"),
    *map(_view_route, VIEWS.values()),
    Route("/v1/traces/{id}/views/{view}", _unknown_trace_view),
    Route("/v1/models/{model:path}/views/{view}", _unknown_model_view),
)
