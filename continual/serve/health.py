"""How the server is: for who starts it, who balances loads, and who watches."""

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse, PlainTextResponse, Response

from continual.serve.access import ADMIN, READ, ApiKeyAuth
from continual.serve.faults import error_response, openapi_error_responses
from continual.serve.looking import RegistryPoller
from continual.serve.metrics import ServerMetrics
from continual.serve.serving import ChampionServer


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
