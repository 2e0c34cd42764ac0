"""`POST /v1/predict`: texts answered by the tasks that are named, or by those that the router chooses."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from continual.inference.predictor import Prediction
from continual.serve.core.admission import RequestAdmission
from continual.serve.core.champions import InferenceRequest
from continual.serve.core.error_responses import openapi_error_responses


def _whole(text: str) -> str:
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ValueError("half a surrogate pair is no text; send whole characters")
    return text


BoundedString = Annotated[str, AfterValidator(_whole)]  # JSON may hold strings that no encoding takes


class PredictRow(BaseModel):
    """A text, or a pair of texts. task: by whose delta it is answered; without it the router chooses."""

    model_config = ConfigDict(extra="forbid")

    text: BoundedString | tuple[BoundedString, BoundedString]
    task: BoundedString | None = None


class PredictRequest(BaseModel):
    """rows: what is to be answered, each by itself · at_least: of routed rows, name all tasks of this probability.

    Each task that is named answers the row, so that their number has a bound: a hundred.
    """

    model_config = ConfigDict(extra="forbid")

    rows: Annotated[list[PredictRow], Field(min_length=1)]
    at_least: Annotated[float | None, Field(ge=0.01, le=1)] = None


class PredictResponse(BaseModel):
    """One prediction per row, in order; `error` says of a row why it has no answer."""

    predictions: list[Prediction]


def predict_routes(desk: RequestAdmission) -> APIRouter:
    """The operation, for an application that has this desk."""
    router = APIRouter(tags=["answers"])

    @router.post(
        "/v1/predict",
        response_model=PredictResponse,
        responses=openapi_error_responses(401, 404, 409, 413, 422, 429, 503, 504),
    )
    async def predict(question: PredictRequest, request: Request) -> Response:
        """Answer texts: each by its task's delta, or by that of the task which the router chooses."""
        found = await desk.submit(
            request, [InferenceRequest(row.text, row.task, question.at_least) for row in question.rows]
        )
        body = PredictResponse.model_construct(predictions=found).model_dump_json()
        return Response(body, media_type="application/json")

    return router
