"""Convert every error to OpenAI's format: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from glassformer.errors import CapacityError, DataError, GlassformerError, NotFoundError, RequestError, TokenizerError
from glassformer.inspect.views.result import dump

log = logging.getLogger("glassformer.server")

MAX_VALUE_LENGTH = 80  # characters of a rejected value in a message
ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
ERROR_CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class ErrorDetail(BaseModel):
    message: str = Field(description="What is wrong, the value given, and what is allowed.")
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="The field that is wrong, if it is a single one.", examples=["temperature"])
    code: str | None = Field(description="An identifier for programs.", examples=["context_length_exceeded"])


class ErrorBody(BaseModel):
    error: ErrorDetail


@contextmanager
def prompt_errors() -> Iterator[None]:
    """Attribute errors about length or text to the field `prompt`, with OpenAI's error code."""
    try:
        yield
    except CapacityError as error:
        raise ApiError(400, str(error), param="prompt", code="context_length_exceeded") from None
    except RequestError as error:
        if error.param not in ("text", "source"):
            raise
        raise RequestError(str(error), param="prompt") from None


class ApiError(GlassformerError):
    """An error with an HTTP status."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(dump(value), status, headers, "application/json")


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return the body of an error response."""
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or ERROR_CODES.get(status)}}


def error_response(
    status: int, message: str, param: str | None = None, code: str | None = None, **headers: str
) -> Response:
    """Return an error response. An underscore in a header's keyword stands for a hyphen."""
    return json_response(
        error_body(status, message, param, code), status, {k.replace("_", "-"): v for k, v in headers.items()}
    )


def status_and_body(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the body for an exception. Unexpected exceptions are logged, not shown."""
    if isinstance(error, ApiError):
        return error.status, error_body(error.status, str(error), error.param, error.code)
    if isinstance(error, NotFoundError):
        return 404, error_body(404, str(error), error.param, error.code)
    if isinstance(error, RequestError):
        return 400, error_body(400, str(error), error.param)
    if isinstance(error, CapacityError):
        return 400, error_body(400, str(error), code="too_large")
    if isinstance(error, TokenizerError | DataError):
        return 400, error_body(400, str(error))
    if isinstance(error, GlassformerError):
        return 500, error_body(500, str(error))
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error)):
        return 503, error_body(
            503, "not enough memory for this request: use a shorter prompt or fewer tokens", code="out_of_memory"
        )
    if isinstance(error, RuntimeError) and "out of memory" in str(error):
        return 503, error_body(
            503, "not enough device memory for this request: use a shorter prompt or fewer tokens", code="out_of_memory"
        )
    log.error("unexpected error in a request", exc_info=error)
    return 500, error_body(500, f"internal error ({type(error).__name__}); see the server's log")


def install_error_handlers(app: FastAPI) -> None:
    """Register handlers that convert every error of the app."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        message, param = validation_message(error.errors())
        return error_response(400, message, param)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        messages = {
            400: "the body cannot be parsed as JSON: it must be UTF-8, uncompressed, and not nested deeply",
            404: f"{request.url.path} does not exist",
            405: f"{request.method} is not allowed at {request.url.path}",
        }
        headers = dict(error.headers or {})
        return json_response(
            error_body(error.status_code, messages.get(error.status_code, error.detail)), error.status_code, headers
        )

    @app.exception_handler(GlassformerError)
    @app.exception_handler(Exception)
    async def any_other(_: Request, error: Exception) -> Response:
        status, body = status_and_body(error)
        return json_response(body, status)


def validation_message(errors: Sequence[Any]) -> tuple[str, str | None]:
    """Return (message, field) for the first field that pydantic rejected."""
    first = errors[0]
    path = [part for part in first["loc"] if part not in ("body", "query", "path")]
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['ctx']['error']}, at character {first['loc'][-1]}", None
    if not path:
        return f"the body must be a JSON object with the content type application/json: {first['msg'].lower()}", None
    if first["type"] == "extra_forbidden":
        return f"unknown field {_format_path(path)!r}", _format_path(path)
    if first["type"] == "missing":
        return f"{_format_path(path)} is missing", _format_path(path)
    if first["type"] == "value_error":
        return f"{_format_path(path)}: {first['ctx']['error']}", _format_path(path)
    paths = [[part for part in e["loc"] if part not in ("body", "query", "path")] for e in errors]
    same_field = [(other, e) for other, e in zip(paths, errors, strict=True) if other[:1] == path[:1]]
    wants = list(dict.fromkeys(e["msg"].removeprefix("Input should be ") for _, e in same_field))
    where = _format_path(
        [parts[0] for parts in takewhile(_all_equal, zip(*(other for other, _ in same_field), strict=False))]
    )
    for _, e in same_field:
        if e["type"] in ("too_long", "string_too_long"):
            size, what = len(e["input"]), "characters" if e["type"] == "string_too_long" else "items"
            return f"{where} has {size:,} {what}; at most {e['ctx']['max_length']:,} are allowed", where
    if len(wants) > 1:  # one of several types
        return f"{where} must be {', or '.join(wants)}", where
    return f"{where} must be {wants[0]}, got {_abbreviate(first.get('input'))}", where


def _all_equal(parts: tuple[Any, ...]) -> bool:
    return all(part == parts[0] for part in parts)


def _format_path(path: Sequence[Any]) -> str:
    """Format ("messages", 0, "role") as messages[0].role."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _abbreviate(value: Any) -> str:
    """Return a rejected value for a message. Only its start is formatted: it may have a million items."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = shown.maxlist = shown.maxdict = MAX_VALUE_LENGTH
    shown.maxlevel = 2
    text = shown.repr(value)
    return text if len(text) <= MAX_VALUE_LENGTH else text[:MAX_VALUE_LENGTH] + "..."
