"""Descriptions and example responses for the OpenAPI document."""

from __future__ import annotations

import inspect
import re
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from glassformer.inspect.present.router import Route
from glassformer.inspect.present.slices import Kind
from glassformer.server.errors import ErrorBody

DESCRIPTION = """A Transformer language model over HTTP: text generation, and inspection of every activation.

**The OpenAI routes** (`/v1/models`, `/v1/completions`, `/v1/chat/completions`) work with OpenAI's clients. A field that
is not supported is rejected with an error that names it, unless it cannot change the text or its value is null.

**The inspection routes** (`/v1/traces`, views, tensors, sweeps): a trace holds what a model computed on one text. Every
view has a `receipt`: a line of Python that returns the same numbers, the identity that was used to check them, and the
error of that check.

The forward passes of up to eight requests are interleaved, and others wait; views are computed between two forward
passes. When a client disconnects, its request is cancelled before the next forward pass. All errors have the shape
`{"error": {message, type, param, code}}`.

With an API key, every route needs `Authorization: Bearer KEY`.
"""

ABOUT_COMPLETIONS = """Continue one or several prompts, each `n` times. Without `max_tokens`, generation ends with
the end token or the context; a prompt that does not fit is rejected (`context_length_exceeded`).

`logprobs` are in nats, of the model's distribution before sampling. They include the end token, which has no text; with
`echo`, also the prompt's tokens (except the first). `echo` with `max_tokens: 0` scores the prompt only. The response's
`seed` reproduces the text."""

ABOUT_CHAT = """Answer a conversation with the model's chat template. Text in a message never becomes a control token.
Models without a chat template are rejected: use `/v1/completions`."""

ABOUT_TRACES = """Trace a text, or a text continued by `max_tokens` generated tokens. The trace stores the input of each
block, keys and values, and the tap points in `capture`. Other values are recomputed on request; each response has the
error of the check of the recomputed values.

For an encoder-decoder or recurrent model, the prompt is the source. Without `target`, the target is generated greedily.
The response has the tokens of both; `tokens` are the decoder's input.

Traces are stored in memory; the least recently used ones are evicted, and later requests for them fail with the code
`trace_gone`. The view `summary` has the log-probabilities of the prompt's tokens.

With `stream`, the events are `token` {id, text, added, logprob, top, position} for each generated token, then `trace`;
or `error`, if the request fails."""

ABOUT_TENSORS = """The values of a tap point: the length of the header in 4 bytes (little-endian), the header as
JSON, then the numbers (little-endian, row-major).

`slice` has an index (`3`), a range (`0:256`) or all (`:`) for each axis. `pool` max-pools the last two axes to at
most this many cells. `dtype` is `f32` (exact), `f16` or `u8` (value = zero + scale · byte); the header's `bound` is the
largest error. A trace is immutable, so responses can be cached."""

ABOUT_VIEW_STREAM = """With `stream=true`, the events are `row` for each part of the view as it is computed, then `done`
with the complete view; or `error`, if the request fails. When the client disconnects, the computation is cancelled
before the next row."""

ABOUT_SWEEPS = """Apply the same edit at every head, layer, position or cell (layer and position) of a trace, one at a
time, and measure its effect on a difference of two logits (`target`, `rival`), on the complete distribution (KL), or,
for an encoder-only model without `position`, on the text's embedding. For an encoder-decoder, `attention` selects
`attn` (decoder), `encoder` or `cross`.

Events: `begin` {metric, base, position, target, rival, total}, `row` {layer, head, position, value, change, done,
total, edit} for each edit, then `done`; or `error`, if the request fails."""


def response(
    example: Any, description: str = "The response.", media: str = "application/json"
) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of a response, with an example."""
    return {200: {"description": description, "content": {media: {"example": example}}}}


def stream(example: str) -> dict[str, Any]:
    """Return the OpenAPI description of an event stream, with an example."""
    return {"text/event-stream": {"schema": {"type": "string"}, "example": example}}


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "A field is unknown, missing, out of range or of the wrong type."},
    401: {"model": ErrorBody, "description": "The API key is missing or wrong."},
    403: {"model": ErrorBody, "description": "The request comes from a page of another origin, or names another host."},
    404: {"model": ErrorBody, "description": "The model, trace, view or tensor does not exist."},
    413: {"model": ErrorBody, "description": "The body is too large."},
    429: {"model": ErrorBody, "description": "Too many requests are waiting."},
    503: {"model": ErrorBody, "description": "Not enough memory, or the server is shutting down."},
}
MODEL = {
    "id": "stories", "object": "model", "created": 1767225600, "owned_by": "glassformer", "context_length": 512,
    "parameters": 411264, "chat": False, "source": "stories", "example_text": None,
}  # fmt: skip
MODELS = response({"object": "list", "data": [MODEL]})
ONE_MODEL = response(MODEL)
USAGE = {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}
HEAD = {"created": 1767225600, "model": "stories", "seed": 1}
COMPLETION = response(
    {"id": "cmpl-1", **HEAD, "object": "text_completion", "usage": USAGE}
    | {"choices": [{"index": 0, "text": " got a key.", "logprobs": None, "finish_reason": "length"}]}
)
CHAT = response(
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
HEALTH = response(
    {
        "status": "ok",
        "version": "0.1.0",
        "models": ["stories"],
        "choices": [
            {
                "model": "stories",
                "what": "device",
                "value": "cpu",
                "because": "the fastest available device",
            }
        ],
        "queue": {"running": 0, "waiting": 0},
        "cache": {"bytes": 0, "limit": 4294967296},
        "traces": {"count": 0, "bytes": 0, "limit": 1073741824},
    }
)
TOKEN = {"id": 61, "text": " key", "bytes": [32, 107, 101, 121], "start": 18, "end": 22, "logprob": -1.52}
SHORT = {
    "id": "5f0c7b1f6a0e4d2b9c3a1e7d", "object": "trace", "model": "stories", "kind": "decoder", "created": 1767225600,
    "n_tokens": 9, "n_prompt": 8, "edits": [], "bytes": 86528, "finish": "length", "seed": 1,
}  # fmt: skip
FULL = SHORT | {"text": "One day Mia got a key", "tokens": [TOKEN]}
TRACE: dict[int | str, dict[str, Any]] = {201: {"description": "The trace.", "content": {
    "application/json": {"example": FULL},
    **stream('event: token\ndata: {"id":61,"text":" key","position":8}\n\nevent: trace\ndata: {"id":"5f0c7b1f"}\n\n'),
}}}  # fmt: skip
ONE_TRACE = response(FULL)
TRACES = response({"object": "list", "data": [SHORT], "count": 1, "bytes": 86528, "limit": 1073741824})
DELETED = response({"id": SHORT["id"], "deleted": True})
NAMES = response(
    {"id": SHORT["id"], "points": [{"name": "blocks.0.attn.q", "axes": ["T", "H", "Dh"], "shape": [9, 4, 16]}]}
)
STREAM = {"name": "stream", "in": "query", "required": False, "schema": {"type": "boolean", "default": False}}
VIEW = response({"receipt": {"python": 't["blocks.0.attn.q"][3]', "identity": "max |new - stored|", "error": 2.4e-07}})
TENSOR: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The header and the numbers.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    304: {"description": "Not modified. The tensors of a trace never change."},
}
SWEEP: dict[int | str, dict[str, Any]] = {200: {"description": "Events.", "content": stream(
    'event: row\ndata: {"layer":0,"head":1,"value":0.31,"change":-2.4,"done":1,"total":16}\n\nevent: done\ndata: {}\n\n'
)}}  # fmt: skip
FOCUS = response(
    {"layer": 2, "head": 1, "query": 7, "key": 3, "because": "adds 2.31 to logit(' key') - logit(' shell'), ..."}
)
VECTOR: dict[int | str, dict[str, Any]] = {
    201: {
        "description": "The vector's SHA-256.",
        "content": {"application/json": {"example": {"vector": "9f86d0...", "shape": [2]}}},
    }
}
JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


def describe_route(route: Route) -> dict[str, Any]:
    """Return the documentation of an inspection route as arguments of `add_api_route`."""
    docs = {"summary": route.summary, "responses": VIEW} | ROUTE_DOCS.get(route.path, {})
    query = docs.pop("query", [])
    if route.view is not None:
        query = [parameter(p) for p in route.view.parameters.values()] + ([STREAM] if route.view.rows else [])
        if route.view.rows:
            docs["description"] = ABOUT_VIEW_STREAM
    path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)", route.path)
    ]
    return docs | {"openapi_extra": {"parameters": path + query}}


def parameter(p: inspect.Parameter) -> dict[str, Any]:
    """Return the OpenAPI description of a view's parameter."""
    required = p.default is p.empty
    schema = _schema(p.annotation) | ({} if required or p.default is None else {"default": p.default})
    return {"name": p.name, "in": "query", "required": required, "schema": schema}


def _schema(kind: Any) -> dict[str, Any]:
    origin, options = get_origin(kind), [option for option in get_args(kind) if option is not NoneType]
    if origin is Literal:
        return {"type": "string", "enum": options}
    if origin is tuple:
        return {"type": "string", "description": "Several values, separated by commas."}
    if origin is not None:
        return _schema(options[0])
    return {"type": JSON_TYPES.get(kind, "string")}


ROUTE_DOCS: dict[str, dict[str, Any]] = {
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
