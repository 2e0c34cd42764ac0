"""How the server is: for who starts it, who balances loads, and who watches."""

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse, PlainTextResponse, Response

from continual.serve.access import ADMIN, READ, Access
from continual.serve.faults import described, fault
from continual.serve.looking import Looking
from continual.serve.metrics import Metrics
from continual.serve.serving import Serving


def routes(serving: Serving, access: Access, looking: Looking, metrics: Metrics) -> APIRouter:
    """The operations, of which the first two need no key."""
    router = APIRouter(tags=["the server"])
    read, admin = [Depends(access.needs(READ))], [Depends(access.needs(ADMIN))]

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @router.get("/readyz", responses=described(503))
    async def readyz() -> Response:
        """Whether anything can be answered."""
        if serving.champions:
            return JSONResponse({"status": "ok", "tasks": len(serving.champions)})
        return fault(503, f"nothing is learned on backbone {serving.backbone.name!r} yet", type="NoDelta")

    @router.get("/metrics", dependencies=read, responses=described(401), response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """The numbers of this server, as Prometheus reads them."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @router.post("/v1/refresh", dependencies=admin, responses=described(401, 403, 503))
    async def refresh() -> dict[str, bool]:
        """Look at the registry at once; whether other deltas serve than before."""
        return {"changed": await looking.once()}

    return router
