"""The application: every learned task of one backbone behind HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI

from continual.serve.api import openai, page, predict, registry, status
from continual.serve.core.admission import Limits, RequestAdmission
from continual.serve.core.auth import READ, ApiKeyAuth
from continual.serve.core.champions import ChampionServer
from continual.serve.core.error_responses import install_error_handlers, openapi_error_responses
from continual.serve.core.metrics import ServerMetrics
from continual.serve.core.middleware import LOCAL_HOSTS, HostAndSizeMiddleware
from continual.serve.core.refresh import RegistryPoller

POLL_SECONDS = 2.0  # seconds between two looks at the registry


def create_app(
    serving: ChampionServer, *, local: bool = True, limits: Limits | None = None, poll: float = POLL_SECONDS
) -> FastAPI:
    """An ASGI application that answers with what `serving` has.

    local: only this machine reaches it, so that no key is needed as long as the registry has none · poll: seconds
    between two looks at the registry for new champions and keys.
    """
    limits, metrics = limits or Limits(), ServerMetrics()
    access, desk = ApiKeyAuth(serving.registry, open=local), RequestAdmission(serving, limits, metrics)
    looking = RegistryPoller(access, serving, poll=poll)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with looking.polling():
            yield
        await asyncio.to_thread(desk.batcher.close)

    app = FastAPI(
        title="continual",
        summary="Every learned task behind one endpoint",
        version=version("continual"),
        lifespan=lifespan,
        docs_url=None,  # pages with scripts of another site's
        redoc_url=None,
        responses=openapi_error_responses(400),
    )
    app.state.looking = looking  # for those who say themselves when to look
    app.add_middleware(
        HostAndSizeMiddleware, hosts=LOCAL_HOSTS if local else (), bytes=limits.bytes, count=metrics.count_request
    )
    install_error_handlers(app)
    app.include_router(page.page_routes())
    app.include_router(status.health_routes(serving, access, looking, metrics))
    shown = (predict.predict_routes(desk), openai.openai_routes(desk), registry.registry_routes(serving.registry))
    for router in (*shown, status.load_routes(desk, metrics.recent)):
        app.include_router(router, dependencies=[Depends(access.require_role(READ))])
    return app
