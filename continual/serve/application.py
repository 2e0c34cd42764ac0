"""The ASGI application: every learned task of one backbone behind HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from continual.serve.api import docs, openai, page, predict, registry, status
from continual.serve.core.admission import Limits, RequestAdmission
from continual.serve.core.auth import ApiKeyAuth, ApiKeyMiddleware
from continual.serve.core.champions import ChampionServer
from continual.serve.core.error_responses import install_error_handlers, openapi_error_responses
from continual.serve.core.metrics import ServerMetrics
from continual.serve.core.middleware import LOCAL_HOSTS, HostAndSizeMiddleware
from continual.serve.core.refresh import RegistryPoller
from continual.settings import DISTRIBUTION

POLL_SECONDS = 2.0  # seconds between two refreshes from the registry


def create_app(
    server: ChampionServer, *, local: bool = True, limits: Limits | None = None, poll: float = POLL_SECONDS
) -> FastAPI:
    """Build the ASGI application that answers with the champions of a server.

    `app.state.poller` is the `RegistryPoller`, for callers that refresh by themselves instead of by the lifespan.

    Args:
        server: The champions on their backbone.
        local: Only this machine can reach the application: no key is needed until the first one is added, and
            requests must name a local host.
        limits: Bounds on requests; None for the defaults of `Limits`.
        poll: Seconds between two refreshes of champions and keys from the registry.
    """
    limits, metrics = limits or Limits(), ServerMetrics()
    auth, admission = ApiKeyAuth(server.registry, open=local), RequestAdmission(server, limits, metrics)
    poller = RegistryPoller(auth, server, poll=poll)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with poller.polling():
            yield
        await asyncio.to_thread(admission.batcher.close)

    app = FastAPI(
        title="continual",
        summary="Every learned task behind one endpoint",
        version=version(DISTRIBUTION),
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from another site; `docs_routes` has one that does not
        redoc_url=None,
        responses=openapi_error_responses(400),
    )
    app.state.poller = poller
    app.add_middleware(ApiKeyMiddleware, auth=auth)
    app.add_middleware(  # the outermost: it also counts what the keys refuse
        HostAndSizeMiddleware, hosts=LOCAL_HOSTS if local else (), bytes=limits.bytes, count=metrics.count_request
    )
    install_error_handlers(app)
    app.include_router(page.page_routes())
    app.include_router(status.health_routes(server, auth, poller, metrics, seconds=limits.seconds))
    routers = (
        predict.predict_routes(admission),
        openai.openai_routes(admission),
        registry.registry_routes(server.registry, admission.reader),
        status.load_routes(admission, metrics.recent),
    )
    for router in (*routers, docs.docs_routes(app.openapi)):
        app.include_router(router)
    return app
