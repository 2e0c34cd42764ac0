"""Routes on the server itself: health, readiness, metrics, refresh and load."""

import asyncio

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from continual.errors import TooLate
from continual.serve.core.admission import RequestAdmission, request_timeout
from continual.serve.core.auth import ApiKeyAuth
from continual.serve.core.champions import ChampionServer
from continual.serve.core.error_responses import error_response, openapi_error_responses
from continual.serve.core.metrics import RollingCounter, ServerMetrics
from continual.serve.core.refresh import RegistryPoller


class LoadStatus(BaseModel):
    """The body of `GET /v1/load`.

    Attributes:
        backbone: The backbone's name.
        tasks: Number of tasks that are served.
        waiting: Inputs of all requests that wait, or whose answers are being written.
        wait_seconds: Seconds that one more input would wait.
        inputs_per_second: Mean of `inputs_by_second`, or since the start if that is later.
        inputs_by_second: Inputs answered in each of the last 60 seconds, oldest first.
        on_device: Number of deltas on the device.
        in_memory: Number of deltas in the host's memory.
        seconds: Seconds since the start.
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


def health_routes(
    server: ChampionServer, auth: ApiKeyAuth, poller: RegistryPoller, metrics: ServerMetrics, *, seconds: float
) -> APIRouter:
    """Return the routes `/healthz` and `/readyz`, which need no key, `/metrics` and `/v1/refresh`.

    Args:
        server: The champions.
        auth: Checks that a refresh is requested by a key of role `admin`.
        poller: Refreshes on request.
        metrics: The metrics to export.
        seconds: Seconds that a request may wait for a refresh, which goes on without it.
    """
    router = APIRouter(tags=["the server"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Answer 200 while the process is alive."""
        return {"status": "ok"}

    @router.get("/readyz", responses=openapi_error_responses(503))
    async def readyz() -> Response:
        """Answer 200 if at least one task is served, 503 otherwise."""
        if server.champions:
            return JSONResponse({"status": "ok", "tasks": len(server.champions)})
        return error_response(503, f"nothing is learned on backbone {server.backbone.name!r} yet", type="NoDelta")

    @router.get("/metrics", responses=openapi_error_responses(401), response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Return the server's metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @router.post(
        "/v1/refresh",
        dependencies=[Depends(auth.require_admin)],
        responses=openapi_error_responses(401, 403, 422, 503, 504),
    )
    async def refresh(request: Request) -> dict[str, bool]:
        """Refresh champions and keys from the registry at once; return whether the champions changed."""
        timeout = request_timeout(request, max_seconds=seconds)
        refreshing = asyncio.ensure_future(poller.refresh())
        refreshing.add_done_callback(lambda done: done.cancelled() or done.exception())  # else asyncio logs it
        try:
            return {"changed": await asyncio.wait_for(asyncio.shield(refreshing), timeout)}
        except TimeoutError:
            raise TooLate(f"the refresh did not end within {timeout:g} s; it goes on without this request") from None

    return router


def load_routes(admission: RequestAdmission, recent: RollingCounter) -> APIRouter:
    """Return the route `/v1/load`.

    Args:
        admission: The queue and the champions.
        recent: Inputs answered per second over the last minute.
    """
    router = APIRouter(tags=["the server"])

    @router.get("/v1/load", responses=openapi_error_responses(401))
    async def load() -> LoadStatus:
        """Return the length of the queue, the rate of answers, and where deltas are cached."""
        server, counts, uptime = admission.server, recent.by_second(), recent.uptime
        places = server.places
        return LoadStatus(
            backbone=server.backbone.name,
            tasks=len(server.champions),
            waiting=len(admission.batcher),
            wait_seconds=admission.batcher.estimated_wait,
            inputs_per_second=sum(counts) / min(len(counts), max(uptime, 1.0)),
            inputs_by_second=counts,
            on_device=len(places["device"]),
            in_memory=len(places["memory"]),
            seconds=uptime,
        )

    return router
