"""The application: every learned task of one backbone behind HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI

from continual.serve import answering, health, load, openai, page, reading
from continual.serve.access import READ, Access
from continual.serve.desk import Desk, Limits
from continual.serve.faults import described, install
from continual.serve.gate import LOCAL, Gate
from continual.serve.looking import Looking
from continual.serve.metrics import Metrics
from continual.serve.serving import Serving

POLL = 2.0  # seconds between two looks at the registry


def application(serving: Serving, *, local: bool = True, limits: Limits | None = None, poll: float = POLL) -> FastAPI:
    """An ASGI application that answers with what `serving` has.

    local: only this machine reaches it, so that no key is needed as long as the registry has none · poll: seconds
    between two looks at the registry for new champions and keys.
    """
    limits, metrics = limits or Limits(), Metrics()
    access, desk = Access(serving.registry, open=local), Desk(serving, limits, metrics)
    looking = Looking(access, serving, poll=poll)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with looking.going_on():
            yield
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
    app.state.looking = looking  # for those who say themselves when to look
    app.add_middleware(Gate, hosts=LOCAL if local else (), bytes=limits.bytes, count=metrics.requested)
    install(app)
    app.include_router(page.routes())
    app.include_router(health.routes(serving, access, looking, metrics))
    shown = (answering.routes(desk), openai.routes(desk), reading.routes(serving.registry))
    for router in (*shown, load.routes(desk, metrics.recent)):
        app.include_router(router, dependencies=[Depends(access.needs(READ))])
    return app
