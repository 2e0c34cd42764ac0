"""Errors as answers: one JSON shape, that of OpenAI's, and the status that says whose fault it is."""

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

STATUS_BY_ERROR: Mapping[type[ContinualError], int] = {  # the first that an error is one of
    NotFound: 404,
    NoDelta: 409,
    TooLarge: 413,
    InputError: 422,
    TooBusy: 429,
    TooLate: 504,
    Closing: 503,
    ContinualError: 503,  # of the registry, or of a delta: what was asked is right
}
CLIENT_CLOSED_REQUEST = 499  # as proxies log it; nobody reads the answer

log = logging.getLogger(__name__)


class ErrorBody(BaseModel):
    """What went wrong. type: the name of the error · param: the field that was wrong, where there is one."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """The body of every answer that is none."""

    error: ErrorBody


def error_response(status: int, message: str, *, type: str, param: str | None = None, **headers: str) -> Response:
    """The answer that says what went wrong; in ASCII, since a message may quote half a surrogate pair."""
    body = json.dumps({"error": ErrorBody(message=message, type=type, param=param).model_dump()})
    return Response(body, status, headers, media_type="application/json")


def install_error_handlers(app: FastAPI) -> None:
    """Let an application answer so, whatever is raised in it."""
    app.add_exception_handler(ContinualError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnected, _left)
    app.add_exception_handler(Exception, _unknown)


def openapi_error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: the statuses that an operation may answer with instead."""
    return {status: {"model": ErrorResponse, "description": HTTPStatus(status).phrase} for status in statuses}


async def _known(request: Request, error: Exception) -> Response:
    status = next(status for kind, status in STATUS_BY_ERROR.items() if isinstance(error, kind))
    again = {"retry-after": str(error.retry_after)} if isinstance(error, TooBusy) else {}
    if status == STATUS_BY_ERROR[ContinualError] and not isinstance(error, Closing):
        log.error("%s %s: %s", request.method, request.url.path, error)
    return error_response(status, str(error), type=type(error).__name__, **again)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return error_response(422, f"{where}: {first['msg']}", type="InputError", param=where)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(
        error.status_code, str(error.detail), type=HTTPStatus(error.status_code).phrase, **error.headers or {}
    )


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _unknown(request: Request, error: Exception) -> Response:
    return error_response(
        500, "the server failed; its log says why", type="InternalError"
    )  # which the server adds to its log
