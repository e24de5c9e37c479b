"""What the OpenAPI document says about answers: one example of each, and the errors that every route may give."""

from __future__ import annotations

import inspect
import re
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from glassformer.inspect.present.router import Route
from glassformer.inspect.present.slices import Kind
from glassformer.server.errors import ErrorBody

DESCRIPTION = """A Transformer language model whose every number can be seen, over HTTP.

**OpenAI's routes** (`/v1/models`, `/v1/completions`, `/v1/chat/completions`) work with OpenAI's own clients. A field
that is not served is refused by its name; nothing is accepted and ignored.

**The glass** (`/v1/traces`, views, tensors, sweeps): a trace holds what one text did inside a model. Every view of it
is numbers of that model on that text, with a `receipt` that says which line of Python returns the same, and which
identity it was checked against, with its error.

One request computes at a time; the others wait in line, and a look at a trace goes in between. A client that leaves
stops its work before the next pass of the model. Errors have one shape, `{"error": {message, type, param, code}}`.

With an API key, every route needs `Authorization: Bearer KEY`.
"""

ABOUT_WRITING = """Continue one or several texts, each `n` times. Where no `max_tokens` is given, until the model ends
the text or its context is full; what does not fit is refused with the numbers (`context_length_exceeded`).

`logprobs` are nats of the model's own distribution, before any stage of sampling. With `echo`, the prompt's tokens have
theirs too (the first has none), and `max_tokens: 0` only scores it. The answer's `seed` gives the same text again."""

ABOUT_CHAT = """Answer in a conversation, by the model's own chat template. What a message says never becomes a control
token. A model without a template is refused here: use `/v1/completions`."""

ABOUT_TRACES = """Read a text in one pass, or write on from it first (`max_tokens`), and keep what the pass left: the
residual before each block, keys and values, and what `read` names. All else is computed again from that when it is
asked for, each value with the error of an identity that ties it to the pass.

A model that reads a source (an encoder-decoder, a recurrent one) takes the source as `prompt`, and a `target`, or it
writes one, the likeliest token each time; the answer has the tokens of both, and `tokens` are what its decoder read.

Traces are kept in memory, the least recently used go when they do not fit; their ids then say so. The log-probability
of a prompt's tokens is not here but in the view `summary`.

With `stream`, events: `token` {id, text, added, logprob, top, position} for each token written, then `trace`; `error`
where it fails on the way."""

ABOUT_TENSORS = """The numbers of a point: 4 bytes with the length of a header (little-endian), the header as JSON, then
the numbers (little-endian, rows last axis first).

`slice` takes a place (`3`), places (`0:256`) or all (`:`) of each axis; `pool` gives at most so many cells along the
last two axes, each the largest of those it stands for; `dtype` is `f32` (exact), `f16` or `u8` (value = zero + scale ·
byte), and the header's `bound` says how far any number may be off. A trace never changes: an answer may be kept."""

ABOUT_ROWS = """With `stream=true`, events: a `row` as soon as it is computed, then `done`, which is the whole view;
`error` where it fails on the way. A client that leaves stops the work before the next row."""

ABOUT_SWEEPS = """Try an edit at every head, layer, position or cell (layer and position) of a trace, each by itself,
and see what it does to a difference of two logits (`target`, `rival`), or to the whole distribution (KL); of an encoder
to a text's vector, unless a position is named. `attention` is the encoder's, or cross, of a model that reads a source.

Events: `begin` {metric, base, position, target, rival, total}, then a `row` {layer, head, position, value, change,
done, total, edit} for each as it comes, `done`; `error` where it fails on the way."""


def one(
    example: Any, description: str = "As asked.", media: str = "application/json"
) -> dict[int | str, dict[str, Any]]:
    """A good answer by an example of it."""
    return {200: {"description": description, "content": {media: {"example": example}}}}


def stream(example: str) -> dict[str, Any]:
    """A stream of events by an example of it."""
    return {"text/event-stream": {"schema": {"type": "string"}, "example": example}}


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "A field is unknown, missing, out of range or of the wrong type."},
    401: {"model": ErrorBody, "description": "The API key is missing or wrong."},
    403: {"model": ErrorBody, "description": "Asked by a page of another origin, or under a foreign name."},
    404: {"model": ErrorBody, "description": "There is no such model, trace, view or tensor (any more)."},
    413: {"model": ErrorBody, "description": "The body is too large."},
    429: {"model": ErrorBody, "description": "Too many requests are waiting."},
    503: {"model": ErrorBody, "description": "Not enough memory, or the server is shutting down."},
}
MODEL = {
    "id": "stories", "object": "model", "created": 1767225600, "owned_by": "glassformer", "context_length": 512,
    "parameters": 411264, "chat": False, "source": "stories", "example_text": None,
}  # fmt: skip
MODELS = one({"object": "list", "data": [MODEL]})
ONE_MODEL = one(MODEL)
USAGE = {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}
HEAD = {"created": 1767225600, "model": "stories", "seed": 1}
COMPLETION = one(
    {"id": "cmpl-1", **HEAD, "object": "text_completion", "usage": USAGE}
    | {"choices": [{"index": 0, "text": " got a key.", "logprobs": None, "finish_reason": "length"}]}
)
CHAT = one(
    {"id": "chatcmpl-1", **HEAD, "object": "chat.completion", "usage": USAGE}
    | {
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "In Quito.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ]
    }
)
COMPLETION[200]["content"] |= stream(
    'data: {"object":"text_completion","choices":[{"text":" got"}]}\n\ndata: [DONE]\n\n'
)
CHAT[200]["content"] |= stream(
    'data: {"object":"chat.completion.chunk","choices":[{"delta":{"content":"In"}}]}\n\ndata: [DONE]\n\n'
)
HEALTH = one(
    {
        "status": "ok",
        "version": "0.1.0",
        "models": ["stories"],
        "choices": [{"model": "stories", "what": "device", "value": "cpu", "because": "it is the fastest one here"}],
        "queue": {"running": 0, "waiting": 0},
        "traces": {"count": 0, "bytes": 0, "limit": 1073741824},
    }
)
TOKEN = {"id": 61, "text": " key", "bytes": [32, 107, 101, 121], "start": 18, "end": 22, "logprob": -1.52}
SHORT = {
    "id": "5f0c7b1f6a0e4d2b9c3a1e7d", "object": "trace", "model": "stories", "kind": "decoder", "created": 1767225600,
    "n_tokens": 9, "n_prompt": 8, "edits": [], "bytes": 86528, "finish": "length", "seed": 1,
}  # fmt: skip
WHOLE = SHORT | {"text": "One day Mia got a key", "tokens": [TOKEN]}
TRACE: dict[int | str, dict[str, Any]] = {201: {"description": "The trace.", "content": {
    "application/json": {"example": WHOLE},
    **stream('event: token\ndata: {"id":61,"text":" key","position":8}\n\nevent: trace\ndata: {"id":"5f0c7b1f"}\n\n'),
}}}  # fmt: skip
ONE_TRACE = one(WHOLE)
TRACES = one({"object": "list", "data": [SHORT], "count": 1, "bytes": 86528, "limit": 1073741824})
DELETED = one({"id": SHORT["id"], "deleted": True})
NAMES = one({"id": SHORT["id"], "points": [{"name": "blocks.0.attn.q", "axes": ["T", "H", "Dh"], "shape": [9, 4, 16]}]})
STREAM = {"name": "stream", "in": "query", "required": False, "schema": {"type": "boolean", "default": False}}
VIEW = one(
    {
        "receipt": {
            "python": 't["blocks.0.attn.q"][3]',
            "identity": "max |k_rot - k_rot captured|",
            "error": 2.4e-07,
        }
    }
)
TENSOR: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Header and numbers.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    304: {"description": "Unchanged, as it always is: the ETag is of what was asked for."},
}
SWEEP: dict[int | str, dict[str, Any]] = {200: {"description": "Events.", "content": stream(
    'event: row\ndata: {"layer":0,"head":1,"value":0.31,"change":-2.4,"done":1,"total":16}\n\nevent: done\ndata: {}\n\n'
)}}  # fmt: skip
FOCUS = one(
    {"layer": 2, "head": 1, "query": 7, "key": 3, "because": "adds 2.31 to logit(' key') - logit(' shell'), ..."}
)
VECTOR: dict[int | str, dict[str, Any]] = {
    201: {
        "description": "Its name.",
        "content": {"application/json": {"example": {"vector": "9f86d0...", "shape": [2]}}},
    }
}
JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


def describe_route(route: Route) -> dict[str, Any]:
    """Return what `add_api_route` documents of a route of the inspection API."""
    about = {"summary": route.summary, "responses": VIEW} | SPECIAL.get(route.path, {})
    query = about.pop("query", [])
    if route.view is not None:
        query = [parameter(one) for one in route.view.parameters.values()] + ([STREAM] if route.view.rows else [])
        if route.view.rows:
            about["description"] = ABOUT_ROWS
    path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)", route.path)
    ]
    return about | {"openapi_extra": {"parameters": path + query}}


def parameter(one: inspect.Parameter) -> dict[str, Any]:
    """A view's parameter, for the document."""
    required = one.default is one.empty
    schema = _schema(one.annotation) | ({} if required or one.default is None else {"default": one.default})
    return {"name": one.name, "in": "query", "required": required, "schema": schema}


def _schema(kind: Any) -> dict[str, Any]:
    origin, options = get_origin(kind), [option for option in get_args(kind) if option is not NoneType]
    if origin is Literal:
        return {"type": "string", "enum": options}
    if origin is tuple:
        return {"type": "string", "description": "Several, with commas between them."}
    if origin is not None:
        return _schema(options[0])
    return {"type": JSON_TYPES.get(kind, "string")}


SPECIAL: dict[str, dict[str, Any]] = {
    "/v1/models": {"responses": MODELS},
    "/v1/traces/{id}": {"responses": ONE_TRACE},
    "/v1/traces/{id}/focus": {"responses": FOCUS},
    "/v1/traces/{id}/names": {"responses": NAMES},
    "/v1/traces/{id}/tensors/{name}": {
        "description": ABOUT_TENSORS,
        "responses": TENSOR,
        "query": [
            {"name": "slice", "in": "query", "required": False, "schema": {"type": "string", "default": ""}},
            {"name": "pool", "in": "query", "required": False, "schema": {"type": "integer"}},
            {
                "name": "dtype", "in": "query", "required": False,
                "schema": {"type": "string", "enum": list(get_args(Kind)), "default": "f32"},
            },
        ],
    },
}  # fmt: skip
