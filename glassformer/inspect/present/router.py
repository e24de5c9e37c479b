"""A model and its traces, asked by path: the answers that the server gives, where there is no server.

    /v1/models                          /v1/models/{model}/views/{view}?...
    /v1/traces/{id}                     /v1/traces/{id}/views/{view}?...
    /v1/traces/{id}/names
    /v1/traces/{id}/tensors/{name}?slice=3,7,:&pool=48&dtype=u8

A report bakes them into a file, a notebook sends them through its own channel; the server's routes call the same
functions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from glassformer.errors import GlassformerError, RequestError
from glassformer.inspect.present import slices
from glassformer.inspect.trace.offsets import spans
from glassformer.inspect.trace.seq2seq import GeneratedTarget
from glassformer.inspect.trace.trace import Language, Trace
from glassformer.inspect.views.registry import VIEWS, ViewSpec, find_view
from glassformer.inspect.views.result import dump, plain


def seen(view: ViewSpec, subject: Any, given: dict[str, Any]) -> bytes:
    """What a view shows, as JSON."""
    return dump(plain(view.function(subject, **given)))


def in_rows(view: ViewSpec, subject: Any, given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A view that comes row by row: ("row", each as soon as it is computed), then ("done", the whole view)."""
    assert view.rows is not None
    rows = view.rows(subject, **given)
    while True:
        try:
            yield "row", plain(next(rows))
        except StopIteration as end:
            yield "done", plain(end.value)
            return


def told(trace: Trace, logprobs: Sequence[float | None] = ()) -> dict[str, Any]:
    """A trace's text and tokens, and its source's where there is one.

    `logprobs`: of what was written, where they are known; the view `summary` has all.
    """
    said = _texts(trace, trace.ids, trace.tokens, [None] * trace.n_prompt + list(logprobs))
    if isinstance(trace, GeneratedTarget):
        said["source"] = _texts(trace, trace.source.ids, trace.source.tokens)
        said["target"] = _texts(trace, trace.target, trace.target_tokens)
    return said


def _texts(
    trace: Trace, ids: Sequence[int], texts: Sequence[str], logprobs: Sequence[float | None] = ()
) -> dict[str, Any]:
    """A text of a trace, and its tokens."""
    tokenizer = trace.lm.tokenizer
    text, places = spans(tokenizer, ids)
    tokens = []
    for i, (id, own, (start, end)) in enumerate(zip(ids, texts, places, strict=True)):
        data = None if tokenizer is None else list(tokenizer.token_bytes(id))
        logprob = plain(logprobs[i]) if i < len(logprobs) else None
        tokens.append({"id": id, "text": own, "bytes": data, "start": start, "end": end, "logprob": logprob})
    return {"text": text, "tokens": tokens}


def in_short(trace: Trace, id: str, model: str, created: int = 0, n_bytes: int = 0) -> dict[str, Any]:
    """A trace without its tokens."""
    return {
        "id": id,
        "object": "trace",
        "model": model,
        "kind": trace.kind,
        "created": created,
        "n_tokens": len(trace.ids),
        "n_prompt": trace.n_prompt,
        "edits": [edit.json for edit in trace.edits],
        "bytes": n_bytes,
        "finish": trace.finish,
        "seed": trace.seed,
    }


def names(trace: Trace, id: str) -> dict[str, Any]:
    """The points that a trace has."""
    points = [{"name": name, "axes": trace.axes(name), "shape": trace.shape(name)} for name in trace.names()]
    return {"id": id, "points": points}


def error_of(error: GlassformerError) -> dict[str, Any]:
    """A refusal in the one shape."""
    param = error.param if isinstance(error, RequestError) else None
    return {
        "error": {"message": str(error), "type": "invalid_request_error", "param": param, "code": None}
    }  # fmt: skip


class TraceRouter:
    """One model under a name, and traces of it under ids."""

    def __init__(self, lm: Language, name: str):
        self.lm, self.name, self.traces = lm, name, dict[str, Trace]()
        self._number = itertools.count()

    def add(self, trace: Trace) -> str:
        """Its id: the one that it has, or a new one."""
        for id, known in self.traces.items():
            if known is trace:
                return id
        id = f"t{next(self._number)}"
        self.traces[id] = trace
        return id

    def trace(self, id: str) -> Trace:
        """RequestError where there is none of this id."""
        if id not in self.traces:
            raise RequestError(f"there is no trace {id[:64]!r}", param="id")
        return self.traces[id]

    def described(self, id: str, logprobs: Sequence[float | None] = ()) -> dict[str, Any]:
        trace = self.trace(id)
        return in_short(trace, id, self.name, 0, trace.bytes) | told(trace, logprobs)

    def get(self, path: str) -> bytes:
        """JSON, or a slice of a tensor as `slices.py` packs it. RequestError says why there is none."""
        where, _, query = path.partition("?")
        given = dict(parse_qsl(query, keep_blank_values=True))
        match [unquote(part) for part in where.strip("/").split("/")]:
            case ["v1", "models"]:
                return dump({"object": "list", "data": [{"id": self.name, "object": "model"}]})
            case ["v1", "models", *name, "views", view] if "/".join(name) == self.name:
                return self._seen("model", view, self.lm, given)
            case ["v1", "traces", id]:
                return dump(self.described(id))
            case ["v1", "traces", id, "names"]:
                return dump(plain(names(self.trace(id), id)))
            case ["v1", "traces", id, "views", view]:
                return self._seen("trace", view, self.trace(id), given)
            case ["v1", "traces", id, "tensors", name]:
                return slices.answer(self.trace(id), name, **slices.read_options(given))
        raise RequestError(f"there is nothing at {where[:100]}")

    def rows(self, path: str) -> Iterator[tuple[str, Any]]:
        """A view of a trace row by row. RequestError says why there is none, or that it comes at once."""
        where, _, query = path.partition("?")
        match [unquote(part) for part in where.strip("/").split("/")]:
            case ["v1", "traces", id, "views", name] if find_view(name).rows is not None:
                view, given = find_view(name), dict(parse_qsl(query, keep_blank_values=True))
                given.pop("stream", None)
                return in_rows(view, self.trace(id), view.read(given, self.trace))
        raise RequestError(f"there are no rows at {where[:100]}")

    def _seen(self, of: str, name: str, subject: Any, given: dict[str, str]) -> bytes:
        view = find_view(name)
        if view.of != of:
            raise RequestError(f"{name!r} is a view of a {view.of}, not of a {of}", param="view")
        return seen(view, subject, view.read(given, self.trace))


def path_of_model(name: str, view: str, **given: Any) -> str:
    return f"/v1/models/{quote(name, safe='')}/views/{view}{_query(given)}"


def path_of_trace(id: str, view: str, **given: Any) -> str:
    return f"/v1/traces/{id}/views/{view}{_query(given)}"


def path_of_tensor(id: str, name: str, **given: Any) -> str:
    return f"/v1/traces/{id}/tensors/{name}{_query(given)}"


def key_of(path: str) -> str:
    """A path told apart by what it asks for: parameters in order, defaults left out. The page has the same function."""
    where, _, query = path.partition("?")
    usual = DEFAULTS.get(where.rsplit("/", 1)[-1], {}) if "/views/" in where else DEFAULTS["tensor"]
    given = sorted(f"{name}={value}" for name, value in parse_qsl(query, keep_blank_values=True))
    left = [one for one in given if one not in {f"{name}={value}" for name, value in usual.items()}]
    return f"{unquote(where)}?{'&'.join(left)}"


def spelled(value: Any) -> str:
    """A parameter's value as an address has it, and as `View.read` reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(spelled, value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _query(given: dict[str, Any]) -> str:
    parts = [f"{name}={quote(spelled(value), safe='')}" for name, value in given.items() if value is not None]
    return "?" + "&".join(parts) if parts else ""


DEFAULTS: dict[str, dict[str, str]] = {
    name: {
        p.name: spelled(p.default)
        for p in view.parameters.values()
        if p.default is not p.empty and p.default is not None
    }
    for name, view in VIEWS.items()
} | {"tensor": {"dtype": "f32", "slice": ""}}
