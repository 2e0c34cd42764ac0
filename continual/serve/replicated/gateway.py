"""The gateway: checks the key of each request, reads its body and forwards it to a replica that Ray Serve chooses.

Ray Serve's own HTTP proxy does not read bodies, so it could not route requests by their task.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from continual.errors import ReplicaLost, TooBusy, TooLate
from continual.serve.core.admission import (
    ClientDisconnected,
    Limits,
    request_timeout,
    wait_for_answer,
    wait_for_disconnect,
)
from continual.serve.core.auth import OPEN_PATHS, ApiKeyAuth, ApiKeyMiddleware
from continual.serve.core.error_responses import install_error_handlers
from continual.serve.core.middleware import LOCAL_HOSTS, HostAndSizeMiddleware
from continual.serve.replicated.affinity import affinity_group
from continual.serve.replicated.merged_metrics import MERGED_PATHS
from continual.serve.replicated.replica import ReplicaResponse
from continual.serve.replicated.rolling_refresh import RollingRefresh
from tasks.errors import ContinualError, InputError

FORWARDED_KEYS = (  # of a request's ASGI scope: all but the objects of this process, which cannot be pickled
    "type",
    "asgi",
    "http_version",
    "server",
    "client",
    "scheme",
    "method",
    "root_path",
    "path",
    "raw_path",
    "query_string",
    "headers",
)
REFRESH_PATH = "/v1/refresh"


def create_gateway(handle: Any, auth: ApiKeyAuth, *, local: bool, limits: Limits, poll: float, groups: int) -> FastAPI:
    """Build the ASGI application that answers by replicas.

    Args:
        handle: Ray Serve's handle of the replicas.
        auth: The valid keys; replicas check them again.
        local: As for `create_app`.
        limits: As for `create_app`.
        poll: As for `create_app`, in seconds.
        groups: Number of affinity groups; the tasks of one group go to the same replica if it is not full.
    """
    rolling_refresh = RollingRefresh(handle, auth, poll=poll)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with rolling_refresh.polling():
            yield

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(ApiKeyMiddleware, auth=auth)
    app.add_middleware(
        HostAndSizeMiddleware, hosts=LOCAL_HOSTS if local else (), bytes=limits.bytes, count=lambda path, status: None
    )
    install_error_handlers(app)
    app.mount("/", ForwardingApp(handle, rolling_refresh, limits=limits, groups=groups))
    return app


class ForwardingApp:
    """An ASGI application that forwards requests to replicas and streams their responses back.

    Args:
        handle: Ray Serve's handle of the replicas.
        rolling_refresh: Answers `POST /v1/refresh`.
        limits: Its `seconds` and `rows` apply: seconds that a request may wait for the start of its response.
        groups: Number of affinity groups.
    """

    def __init__(self, handle: Any, rolling_refresh: RollingRefresh, *, limits: Limits, groups: int) -> None:
        self._handle, self._rolling_refresh = handle, rolling_refresh
        self._seconds, self._rows, self._groups = limits.seconds, limits.rows, groups
        self._turn = asyncio.Lock()  # one body is parsed at a time, and the loop goes on between two

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; every error is raised before the response starts.

        Raises:
            TooBusy: Too many requests wait for a replica.
            TooLate: There was no answer within the request's timeout.
            ReplicaLost: The replica died.
            ClientDisconnected: The client has gone.
        """
        request = Request(scope, receive)
        path = scope["path"]  # the path of `request.url` would depend on the header `host`
        try:
            body = b"" if path in OPEN_PATHS else await request.body()  # anybody may send those, and they read none
        except ClientDisconnect as error:
            raise ClientDisconnected from error
        replica_scope = {key: scope[key] for key in FORWARDED_KEYS if key in scope}
        with _translated_errors():
            if path in MERGED_PATHS and request.method == "GET":
                await (await self._merge(path, replica_scope))(scope, receive, send)
            elif path == REFRESH_PATH and request.method == "POST":
                await (await self._refresh(replica_scope, body))(scope, receive, send)
            else:
                await self._forward(request, replica_scope, body, send)

    async def _forward(self, request: Request, replica_scope: dict[str, Any], body: bytes, send: Send) -> None:
        async with self._turn:
            await asyncio.sleep(0)
            group = affinity_group(replica_scope["path"], body, groups=self._groups, rows=self._rows)
        handle = self._handle.options(stream=True, multiplexed_model_id=group)
        messages = handle.stream_response.remote(replica_scope, body)
        try:
            await self._send_all(request, messages, send)
        except BaseException:
            messages.cancel()  # the client has gone or waited for too long: the replica need not answer
            raise

    async def _send_all(self, request: Request, messages: AsyncIterator[list[Message]], send: Send) -> None:
        try:
            seconds = request_timeout(request, max_seconds=self._seconds)
        except InputError:
            seconds = self._seconds  # the replica reports the wrong header
        disconnect = asyncio.create_task(wait_for_disconnect(request))
        disconnect.add_done_callback(_retrieve_error)  # of a body that was not read here, and is too large
        try:
            ready = await _next_messages(messages, disconnect, seconds)
            await _send_messages(ready, send)
            while _has_more(ready[-1]):
                ready = await _next_messages(messages, disconnect, None)
                await _send_messages(ready, send)
        finally:
            disconnect.cancel()

    async def _refresh(self, replica_scope: dict[str, Any], body: bytes) -> Response:
        """Refresh all replicas, after one of them has checked the key; report whether any champions changed."""
        first: ReplicaResponse = await asyncio.wait_for(
            self._handle.response.remote(replica_scope, body), self._seconds
        )
        if first.status != 200:
            return _http_response(first)
        changed = await self._rolling_refresh.refresh_all()
        return JSONResponse({"changed": changed or json.loads(first.body)["changed"]})

    async def _merge(self, path: str, replica_scope: dict[str, Any]) -> Response:
        """Merge the responses of all replicas; if one refuses, return its refusal."""
        broadcast = self._handle.broadcast("response", replica_scope, b"")
        results = await broadcast.results_async(timeout_s=self._seconds, return_exceptions=True)
        responses = [result for result in results if isinstance(result, ReplicaResponse)]
        if not responses:
            raise results[0]
        if refusal := next((response for response in responses if response.status != 200), None):
            return _http_response(refusal)
        return _http_response(replace(responses[0], body=MERGED_PATHS[path](responses)))


def _http_response(response: ReplicaResponse) -> Response:
    headers = {key.decode(): value.decode() for key, value in response.headers if key != b"content-length"}
    return Response(response.body, response.status, headers)


async def _send_messages(messages: list[Message], send: Send) -> None:
    for message in messages:
        await send(message)


def _has_more(message: Message) -> bool:
    """Return whether the response goes on after this message."""
    return bool(message.get("more_body", message["type"] == "http.response.start"))


async def _next_messages(
    messages: AsyncIterator[list[Message]], disconnect: "asyncio.Task[None]", seconds: float | None
) -> list[Message]:
    """Return the next messages, at least one, unless the client disconnects or the time runs out."""
    coming: asyncio.Future[list[Message]] = asyncio.ensure_future(anext(messages))
    coming.add_done_callback(_retrieve_error)
    try:
        return await wait_for_answer(coming, disconnect, seconds)
    finally:
        coming.cancel()


def _retrieve_error(done: "asyncio.Future[Any]") -> None:
    """Retrieve the error of a future that nobody may await any more: asyncio would log it."""
    if not done.cancelled():
        done.exception()


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Raise errors of Ray Serve as the errors that clients know."""
    try:
        yield
    except BackPressureError as error:
        raise TooBusy(
            f"{error.args[0]} requests wait for a replica, and so many may; ask again in 1 s, or send fewer at once",
            retry_after=1,
        ) from error
    except (RayActorError, DeploymentUnavailableError) as error:
        raise ReplicaLost("the replica that was asked is gone; ask again, another one answers") from error
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, ContinualError) else error) from None
    except TimeoutError as error:
        raise TooLate("a replica did not answer in time; ask again, one that does not live is replaced") from error
