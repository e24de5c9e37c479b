"""Every refusal in one shape, OpenAI's: {"error": {"message", "type", "param", "code"}}, with the status that fits."""

from __future__ import annotations

import logging
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

LONGEST_VALUE = 80  # characters of a refused value that are said back
KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class ErrorDetail(BaseModel):
    message: str = Field(description="What is wrong, which value, what is allowed.")
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="The field that is wrong, where it is one.", examples=["temperature"])
    code: str | None = Field(description="For programs.", examples=["context_length_exceeded"])


class ErrorBody(BaseModel):
    error: ErrorDetail


@contextmanager
def of_prompt() -> Iterator[None]:
    """What does not fit is the prompt, in OpenAI's words for it."""
    try:
        yield
    except CapacityError as error:
        raise ApiError(400, str(error), param="prompt", code="context_length_exceeded") from None
    except RequestError as error:
        if error.param not in ("text", "source"):
            raise
        raise RequestError(str(error), param="prompt") from None


class ApiError(GlassformerError):
    """A refusal with a status of its own."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(dump(value), status, headers, "application/json")


def shape(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The one shape of an error."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or CODES.get(status)}}


def refusal(status: int, message: str, param: str | None = None, code: str | None = None, **headers: str) -> Response:
    """An error as a response; an underscore in a header's name stands for a hyphen."""
    return answer(shape(status, message, param, code), status, {k.replace("_", "-"): v for k, v in headers.items()})


def described(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status and the body of an error that work on a request raised. What nobody foresaw is logged, not shown."""
    if isinstance(error, ApiError):
        return error.status, shape(error.status, str(error), error.param, error.code)
    if isinstance(error, NotFoundError):
        return 404, shape(404, str(error), error.param, error.code)
    if isinstance(error, RequestError):
        return 400, shape(400, str(error), error.param)
    if isinstance(error, CapacityError):
        return 400, shape(400, str(error), code="too_large")
    if isinstance(error, TokenizerError | DataError):
        return 400, shape(400, str(error))
    if isinstance(error, GlassformerError):
        return 500, shape(500, str(error))
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error)):
        return 503, shape(503, "not enough memory for this request: ask for less", code="out_of_memory")
    if isinstance(error, RuntimeError) and "out of memory" in str(error):
        return 503, shape(503, "not enough memory on the device for this request: ask for less", code="out_of_memory")
    log.error("a request failed in a way that nobody foresaw", exc_info=error)
    return 500, shape(500, f"an error of the server's own ({type(error).__name__}); its log says more")


def install(app: FastAPI) -> None:
    """Let every error of the app come out in the one shape."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        message, param = explained(error.errors())
        return refusal(400, message, param)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        said = {
            400: "the body cannot be read as JSON: it is nested too deep, or has a number too long",
            404: f"there is nothing at {request.url.path}",
            405: f"{request.method} is not served at {request.url.path}",
        }
        headers = dict(error.headers or {})
        return answer(shape(error.status_code, said.get(error.status_code, error.detail)), error.status_code, headers)

    @app.exception_handler(GlassformerError)
    @app.exception_handler(Exception)
    async def any_other(_: Request, error: Exception) -> Response:
        status, body = described(error)
        return answer(body, status)


def explained(errors: Sequence[Any]) -> tuple[str, str | None]:
    """What the first field that pydantic refused should have been, as (message, field)."""
    first = errors[0]
    place = [part for part in first["loc"] if part not in ("body", "query", "path")]
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['ctx']['error']}, at character {first['loc'][-1]}", None
    if not place:
        return f"the body must be a JSON object with the content type application/json: {first['msg'].lower()}", None
    if first["type"] == "extra_forbidden":
        return f"unknown field {_path(place)!r}", _path(place)
    if first["type"] == "missing":
        return f"{_path(place)} is missing", _path(place)
    if first["type"] == "value_error":
        return f"{_path(place)}: {first['ctx']['error']}", _path(place)
    ways = [[part for part in one["loc"] if part not in ("body", "query", "path")] for one in errors]
    alike = [(way, one) for way, one in zip(ways, errors, strict=True) if way[:1] == place[:1]]
    wants = list(dict.fromkeys(one["msg"].removeprefix("Input should be ") for _, one in alike))
    where = _path([parts[0] for parts in takewhile(_same, zip(*(way for way, _ in alike), strict=False))])
    if len(wants) > 1:  # one of several types
        return f"{where} must be {', or '.join(wants)}", where
    return f"{where} must be {wants[0]}, got {_short(first.get('input'))}", where


def _same(parts: tuple[Any, ...]) -> bool:
    return all(part == parts[0] for part in parts)


def _path(place: Sequence[Any]) -> str:
    """("messages", 0, "role") as messages[0].role."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."
