"""How the server is: for who starts it, who balances loads, and who watches."""

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.responses import JSONResponse, PlainTextResponse, Response

from continual.serve.core.admission import RequestAdmission
from continual.serve.core.auth import ADMIN, READ, ApiKeyAuth
from continual.serve.core.champions import ChampionServer
from continual.serve.core.error_responses import error_response, openapi_error_responses
from continual.serve.core.metrics import RollingCounter, ServerMetrics
from continual.serve.core.refresh import RegistryPoller


def health_routes(
    serving: ChampionServer, access: ApiKeyAuth, looking: RegistryPoller, metrics: ServerMetrics
) -> APIRouter:
    """The operations, of which the first two need no key."""
    router = APIRouter(tags=["the server"])
    read, admin = [Depends(access.require_role(READ))], [Depends(access.require_role(ADMIN))]

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @router.get("/readyz", responses=openapi_error_responses(503))
    async def readyz() -> Response:
        """Whether anything can be answered."""
        if serving.champions:
            return JSONResponse({"status": "ok", "tasks": len(serving.champions)})
        return error_response(503, f"nothing is learned on backbone {serving.backbone.name!r} yet", type="NoDelta")

    @router.get("/metrics", dependencies=read, responses=openapi_error_responses(401), response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """The numbers of this server, as Prometheus reads them."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @router.post("/v1/refresh", dependencies=admin, responses=openapi_error_responses(401, 403, 503))
    async def refresh() -> dict[str, bool]:
        """Look at the registry at once; whether other deltas serve than before."""
        return {"changed": await looking.refresh()}

    return router


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
