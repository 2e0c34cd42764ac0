"""`POST /v1/predict`: texts answered by the tasks that are named, or by those that the router chooses."""

import json
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticSerializationError
from starlette.requests import Request
from starlette.responses import Response

from continual.predict import Prediction
from continual.serve.desk import Desk
from continual.serve.faults import described
from continual.serve.serving import Ask
from tasks import Text


class Row(BaseModel):
    """A text, or a pair of texts. task: by whose delta it is answered; without it the router chooses."""

    model_config = ConfigDict(extra="forbid")

    text: Text
    task: str | None = None


class Question(BaseModel):
    """rows: what is to be answered, each by itself · at_least: of routed rows, name all tasks of this probability."""

    model_config = ConfigDict(extra="forbid")

    rows: Annotated[list[Row], Field(min_length=1)]
    at_least: Annotated[float | None, Field(ge=0, le=1)] = None


class Answered(BaseModel):
    """One prediction per row, in order; `error` says of a row why it has no answer."""

    predictions: list[Prediction]


def routes(desk: Desk) -> APIRouter:
    """The operation, for an application that has this desk."""
    router = APIRouter(tags=["answers"])

    @router.post("/v1/predict", response_model=Answered, responses=described(401, 404, 409, 413, 422, 429, 503, 504))
    async def predict(question: Question, request: Request) -> Response:
        """Answer texts: each by its task's delta, or by that of the task which the router chooses."""
        found = await desk.answers(request, [Ask(row.text, row.task, question.at_least) for row in question.rows])
        return Response(_written(found), media_type="application/json")

    return router


def _written(predictions: Sequence[Prediction]) -> str:
    answered = Answered.model_construct(predictions=predictions)
    try:
        return answered.model_dump_json()
    except PydanticSerializationError:  # a text holds half a surrogate pair, which JSON has by its escape alone
        return json.dumps(answered.model_dump())
