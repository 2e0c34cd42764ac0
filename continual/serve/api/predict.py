"""`POST /v1/predict`: answer texts by the tasks that they name, or by those that the router chooses."""

import json
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response

from continual.inference.input_rows import answer_columns
from continual.inference.predictor import Prediction
from continual.serve.core.admission import RequestAdmission
from continual.serve.core.bodies import bounded_route
from continual.serve.core.champions import InferenceRequest
from continual.serve.core.error_responses import openapi_error_responses


def _without_surrogates(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PydanticCustomError("surrogate", "half a surrogate pair is no text; send whole characters")
    return text


BoundedString = Annotated[str, AfterValidator(_without_surrogates)]  # JSON can hold strings that UTF-8 cannot encode


class PredictRow(BaseModel):
    """One input; further columns are handed back with the answer.

    Attributes:
        text: A text, or a pair of texts.
        task: The task whose delta answers; without it the router chooses.
    """

    model_config = ConfigDict(extra="allow")

    text: BoundedString | tuple[BoundedString, BoundedString]
    task: BoundedString | None = None


class PredictRequest(BaseModel):
    """The body of `POST /v1/predict`.

    Attributes:
        rows: The inputs, each answered by itself.
        among: Tasks among which the router chooses for rows without a task; by default all.
        at_least: List in `possible` all tasks that the router gives at least this probability, with their answers.
            Each of them answers the row, so the least allowed value, 0.01, bounds their number by a hundred.
    """

    model_config = ConfigDict(extra="forbid")

    rows: Annotated[list[PredictRow], Field(min_length=1, fail_fast=True)]
    among: Annotated[list[BoundedString], Field(min_length=1)] | None = None
    at_least: Annotated[float | None, Field(ge=0.01, le=1)] = None


class PredictResponse(BaseModel):
    """One prediction per row, in order, with the row's further columns; one without an answer has an `error`."""

    predictions: list[Prediction]


def predict_routes(admission: RequestAdmission) -> APIRouter:
    """Return the route of predictions."""
    router = APIRouter(tags=["answers"], route_class=bounded_route(rows=admission.limits.rows))

    @router.post(
        "/v1/predict",
        response_model=PredictResponse,
        responses=openapi_error_responses(401, 404, 409, 413, 422, 429, 503, 504),
    )
    async def predict(body: PredictRequest, request: Request) -> Response:
        """Answer each text by the delta of its task, or of the task that the router chooses."""
        columns = [answer_columns(row.model_extra or {}, where=f"body.rows.{i}") for i, row in enumerate(body.rows)]
        among = None if body.among is None else tuple(dict.fromkeys(body.among))
        inputs = [InferenceRequest(row.text, row.task, body.at_least, among) for row in body.rows]
        predictions = await admission.submit(request, inputs)
        answers = [replace(answer, columns=more).to_json() for answer, more in zip(predictions, columns, strict=True)]
        # ASCII, since columns may hold half a surrogate pair, which UTF-8 cannot encode.
        return Response(json.dumps({"predictions": answers}), media_type="application/json")

    return router
