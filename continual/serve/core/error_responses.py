"""HTTP responses for errors: OpenAI's JSON shape, and a status that says which side is at fault."""

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from continual.errors import Closing, GenerationError, NoDelta, ServiceUnavailable, TooBusy, TooLarge, TooLate
from continual.serve.core.admission import UNREADABLE, ClientDisconnected
from registry import quote
from registry.errors import DatabaseUnavailable, NotFound, SchemaError
from registry.redaction import MAX_QUOTED
from tasks.errors import ContinualError, InputError

STATUS_BY_ERROR: Mapping[type[ContinualError], int] = {  # the first class that an error is an instance of counts
    DatabaseUnavailable: 503,
    SchemaError: 503,
    NotFound: 404,
    NoDelta: 409,
    TooLarge: 413,
    InputError: 422,
    TooBusy: 429,
    TooLate: 504,
    Closing: 503,
    ContinualError: 503,  # of the registry or of a delta: the request is right
}
MAX_MESSAGE = 2000  # characters; a message also lists known names
CLIENT_CLOSED_REQUEST = 499  # nginx's status for its log; no client reads the response

log = logging.getLogger(__name__)


class ErrorBody(BaseModel):
    """The description of one error.

    Attributes:
        message: The reason, and the next step.
        type: The name of the error's class, or the phrase of the HTTP status.
        param: The field of the request that is wrong, if it is one.
        code: Always null; part of OpenAI's shape.
    """

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """The body of every response to a request that failed."""

    error: ErrorBody


def error_response(status: int, message: str, *, type: str, param: str | None = None, **headers: str) -> Response:
    """Return the response that reports an error.

    The body is ASCII, since a message may quote half a surrogate pair, which UTF-8 cannot encode.

    Args:
        status: The HTTP status.
        message: The reason, and the next step.
        type: The name of the error.
        param: The field of the request that is wrong, if it is one.
        **headers: Headers of the response.
    """
    body = json.dumps({"error": ErrorBody(message=message[:MAX_MESSAGE], type=type, param=param).model_dump()})
    return Response(body, status, headers, media_type="application/json")


def install_error_handlers(app: FastAPI) -> None:
    """Have an application answer every exception with `error_response`."""
    app.add_exception_handler(ContinualError, _continual_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnected, _client_disconnected)
    app.add_exception_handler(Exception, _internal_error)


def openapi_error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` argument of a route that may fail with these statuses."""
    return {status: {"model": ErrorResponse, "description": HTTPStatus(status).phrase} for status in statuses}


async def _continual_error(request: Request, error: Exception) -> Response:
    status = next(status for error_class, status in STATUS_BY_ERROR.items() if isinstance(error, error_class))
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, TooBusy) else {}
    message = str(error)
    if status == STATUS_BY_ERROR[ContinualError] and not isinstance(error, (ServiceUnavailable, GenerationError)):
        log.error("%s %s: %s", request.method, quote(request.url.path), error)
        message = UNREADABLE  # the error's own message may quote SQL, hosts and paths
    return error_response(status, message, type=type(error).__name__, **headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    location = field_path(first["loc"], error.body, missing=first["type"] == "missing")
    return error_response(422, f"{location}: {first['msg']}", type="InputError", param=location)


def field_path(location: Sequence[int | str], body: Any, *, missing: bool) -> str:
    """Return the path of a field in the request, such as `body.rows.0.text`, each part at most 200 characters long.

    Pydantic's location also names the alternatives of a union that it tried, and the validators in them, which are not
    part of the request: only parts that lead into the body are kept.

    Args:
        location: Pydantic's location of an error.
        body: The body.
        missing: The last part names a field that the body lacks.
    """
    source, *parts = location
    path = []
    for i, part in enumerate(parts):
        if source != "body" or (missing and i == len(parts) - 1):
            path.append(part)
        elif (inner := _item(body, part)) is not _ABSENT:
            path.append(part)
            body = inner
    return ".".join(str(part)[:MAX_QUOTED] for part in (source, *path))


_ABSENT = object()


def _item(body: object, part: int | str) -> object:
    """Return the value at a key or an index of a JSON value; `_ABSENT` where it has none."""
    if isinstance(body, dict):
        return body.get(part, _ABSENT)
    return body[part] if isinstance(body, list) and isinstance(part, int) and part < len(body) else _ABSENT


def http_error_response(error: HTTPException) -> Response:
    """Return the response that reports an error of a status."""
    return error_response(
        error.status_code, str(error.detail), type=HTTPStatus(error.status_code).phrase, **error.headers or {}
    )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return http_error_response(error)


async def _client_disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _internal_error(request: Request, error: Exception) -> Response:
    # Starlette raises the error again after this response, so that the server logs it.
    return error_response(500, "the server failed; its log says why", type="InternalError")
