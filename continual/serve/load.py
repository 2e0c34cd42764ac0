"""`GET /v1/load`: what the server does at this moment, and what it did in the last minute."""

from fastapi import APIRouter
from pydantic import BaseModel

from continual.serve.desk import RequestAdmission
from continual.serve.faults import openapi_error_responses
from continual.serve.recent import RollingCounter


class LoadStatus(BaseModel):
    """tasks: that are served · waiting: inputs of all requests that wait · wait_seconds: how long one more would ·
    inputs_by_second: how many were answered in each of the last 60 seconds, oldest first · inputs_per_second: their
    mean, since the start if that was later · on_device, in_memory: deltas · seconds: since the start.
    """

    backbone: str
    tasks: int
    waiting: int
    wait_seconds: float
    inputs_per_second: float
    inputs_by_second: list[int]
    on_device: int
    in_memory: int
    seconds: float


def load_routes(desk: RequestAdmission, answered: RollingCounter) -> APIRouter:
    """The operation, for an application that has this desk and counts its answers."""
    router = APIRouter(tags=["the server"])

    @router.get("/v1/load", responses=openapi_error_responses(401))
    async def load() -> LoadStatus:
        """How much waits and is answered, and where deltas lie."""
        serving, counts, running = desk.serving, answered.by_second(), answered.uptime
        places = serving.places
        return LoadStatus(
            backbone=serving.backbone.name,
            tasks=len(serving.champions),
            waiting=len(desk.batcher),
            wait_seconds=desk.batcher.estimated_wait,
            inputs_per_second=sum(counts) / min(len(counts), max(running, 1.0)),
            inputs_by_second=counts,
            on_device=len(places["device"]),
            in_memory=len(places["memory"]),
            seconds=running,
        )

    return router
