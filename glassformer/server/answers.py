"""What the OpenAPI document says about answers: one example of each, and the errors that every route may give."""

from __future__ import annotations

from typing import Any

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
    "parameters": 411264, "chat": False, "source": "stories",
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
