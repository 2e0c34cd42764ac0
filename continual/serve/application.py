"""The application: every learned task of one backbone behind HTTP."""

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version

from fastapi import Depends, FastAPI
from starlette.responses import JSONResponse, PlainTextResponse, Response

from continual.errors import ContinualError
from continual.serve import answering, load, openai, page, reading
from continual.serve.access import ADMIN, READ, Access
from continual.serve.desk import Desk, Limits
from continual.serve.faults import described, fault, install
from continual.serve.gate import LOCAL, Gate
from continual.serve.metrics import Metrics
from continual.serve.run import yield_to_others
from continual.serve.serving import Serving

POLL = 2.0  # seconds between two looks at the registry

log = logging.getLogger(__name__)


def application(serving: Serving, *, local: bool = True, limits: Limits | None = None, poll: float = POLL) -> FastAPI:
    """An ASGI application that answers with what `serving` has.

    local: only this machine reaches it, so that no key is needed as long as the registry has none · poll: seconds
    between two looks at the registry for new champions and keys.
    """
    limits, metrics = limits or Limits(), Metrics()
    access, desk = Access(serving.registry, open=local), Desk(serving, limits, metrics)

    aside = ThreadPoolExecutor(1, "looks", initializer=yield_to_others)  # a router takes seconds to make

    async def look() -> bool:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, access.refresh)  # first: a key is revoked, whatever becomes of the champions
        return await loop.run_in_executor(aside, serving.refresh)

    async def look_again() -> None:
        while True:
            await asyncio.sleep(poll)
            try:
                await look()
            except ContinualError as error:
                log.warning("the registry could not be looked at, what was there serves on: %s", error)
            except Exception:
                log.exception("looking at the registry failed, what was there serves on")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await look()
        looking = asyncio.create_task(look_again())
        yield
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        aside.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(desk.batcher.close)

    app = FastAPI(
        title="continual",
        summary="Every learned task behind one endpoint",
        version=version("continual"),
        lifespan=lifespan,
        docs_url=None,  # pages with scripts of another site's
        redoc_url=None,
        responses=described(400),
    )
    app.add_middleware(Gate, hosts=LOCAL if local else (), bytes=limits.bytes, count=metrics.requested)
    install(app)
    read, admin = [Depends(access.needs(READ))], [Depends(access.needs(ADMIN))]
    app.include_router(page.routes())
    shown = (answering.routes(desk), openai.routes(desk), reading.routes(serving.registry))
    for router in (*shown, load.routes(desk, metrics.recent)):
        app.include_router(router, dependencies=read)

    @app.get("/healthz", tags=["the server"])
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["the server"], responses=described(503))
    async def readyz() -> Response:
        """Whether anything can be answered."""
        if serving.champions:
            return JSONResponse({"status": "ok", "tasks": len(serving.champions)})
        return fault(503, f"nothing is learned on backbone {serving.backbone.name!r} yet", type="NoDelta")

    @app.get(
        "/metrics",
        tags=["the server"],
        dependencies=read,
        responses=described(401),
        response_class=PlainTextResponse,
    )
    async def prometheus() -> Response:
        """The numbers of this server, as Prometheus reads them."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.post("/v1/refresh", tags=["the server"], dependencies=admin, responses=described(401, 403, 503))
    async def refresh() -> dict[str, bool]:
        """Look at the registry at once; whether other deltas serve than before."""
        return {"changed": await look()}

    return app
