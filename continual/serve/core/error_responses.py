"""HTTP responses for errors: OpenAI's JSON shape, and a status that says which side is at fault."""

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from continual.errors import Closing, NoDelta, TooBusy, TooLarge, TooLate
from continual.serve.core.admission import ClientDisconnected
from registry.errors import NotFound
from tasks.errors import ContinualError, InputError

STATUS_BY_ERROR: Mapping[type[ContinualError], int] = {  # the first class that an error is an instance of counts
    NotFound: 404,
    NoDelta: 409,
    TooLarge: 413,
    InputError: 422,
    TooBusy: 429,
    TooLate: 504,
    Closing: 503,
    ContinualError: 503,  # of the registry or of a delta: the request is right
}
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
    body = json.dumps({"error": ErrorBody(message=message, type=type, param=param).model_dump()})
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
    if status == STATUS_BY_ERROR[ContinualError] and not isinstance(error, Closing):
        log.error("%s %s: %s", request.method, request.url.path, error)
    return error_response(status, str(error), type=type(error).__name__, **headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    location = ".".join(map(str, first["loc"]))
    return error_response(422, f"{location}: {first['msg']}", type="InputError", param=location)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(
        error.status_code, str(error.detail), type=HTTPStatus(error.status_code).phrase, **error.headers or {}
    )


async def _client_disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _internal_error(request: Request, error: Exception) -> Response:
    # Starlette raises the error again after this response, so that the server logs it.
    return error_response(500, "the server failed; its log says why", type="InternalError")
