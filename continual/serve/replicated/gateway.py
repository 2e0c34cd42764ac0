"""The face of all replicas: takes requests in as a whole and hands each to a replica that Ray Serve chooses.

Ray Serve's own HTTP proxy sees no body, so it could not tell of which task a request is.
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
from continual.serve.core.admission import ClientDisconnected, Limits, request_timeout, wait_for_disconnect
from continual.serve.core.error_responses import install_error_handlers
from continual.serve.core.middleware import LOCAL_HOSTS, HostAndSizeMiddleware
from continual.serve.replicated.affinity import affinity_group
from continual.serve.replicated.merged_metrics import MERGED_PATHS
from continual.serve.replicated.replica import ReplicaResponse
from continual.serve.replicated.rolling_refresh import RollingRefresh
from tasks.errors import ContinualError, InputError

FORWARDED_HEADERS = (  # of a request, what a replica is told: all but what belongs to this process
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
REFRESH = "/v1/refresh"


def create_gateway(handle: Any, *, local: bool, limits: Limits, poll: float, groups: int) -> FastAPI:
    """An ASGI application that answers by the replicas behind `handle`.

    local, limits, poll: as of `application` · groups: of tasks, each of which goes to a replica of its own if it can.
    """
    turns = RollingRefresh(handle, poll=poll)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with turns.polling():
            yield

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(
        HostAndSizeMiddleware, hosts=LOCAL_HOSTS if local else (), bytes=limits.bytes, count=lambda path, status: None
    )
    install_error_handlers(app)
    app.mount("/", ForwardingApp(handle, turns, seconds=limits.seconds, groups=groups))
    return app


class ForwardingApp:
    """Hands requests to replicas, and their answers back as they come."""

    def __init__(self, handle: Any, turns: RollingRefresh, *, seconds: float, groups: int) -> None:
        self._handle, self._turns, self._seconds, self._groups = handle, turns, seconds, groups

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Raises TooBusy, TooLate, ReplicaLost, and ClientLeft, all before anything is said."""
        request = Request(scope, receive)
        try:
            body = await request.body()
        except ClientDisconnect as error:
            raise ClientDisconnected from error
        told = {key: scope[key] for key in FORWARDED_HEADERS if key in scope}
        path = request.url.path
        with _named():
            if path in MERGED_PATHS and request.method == "GET":
                await (await self._merged(path, told))(scope, receive, send)
                return
            if path == REFRESH and request.method == "POST":
                await (await self._refreshed(told, body))(scope, receive, send)
                return
            group = affinity_group(path, body, groups=self._groups)
            asked = self._handle.options(stream=True, multiplexed_model_id=group)
            answer = asked.answered.remote(told, body)
            try:
                await self._pass_on(request, answer, send)
            except BaseException:
                answer.cancel()  # whoever has left, or waited for too long, is not answered
                raise

    async def _pass_on(self, request: Request, answer: AsyncIterator[list[Message]], send: Send) -> None:
        try:
            seconds = request_timeout(request, most=self._seconds)
        except InputError:
            seconds = self._seconds  # which the replica refuses
        leaving = asyncio.create_task(wait_for_disconnect(request))
        try:
            await _say(ready := await _next(answer, leaving, seconds), send)
            while _more(ready[-1]):
                await _say(ready := await _next(answer, leaving, None), send)
        finally:
            leaving.cancel()

    async def _refreshed(self, told: dict[str, Any], body: bytes) -> Response:
        """Whether any replica serves others than before, once all have looked; the first says who may ask."""
        first: ReplicaResponse = await asyncio.wait_for(self._handle.whole.remote(told, body), self._seconds)
        if first.status != 200:
            return _response(first)
        changed = await self._turns.refresh_all()
        return JSONResponse({"changed": changed or json.loads(first.body)["changed"]})

    async def _merged(self, path: str, told: dict[str, Any]) -> Response:
        """What all replicas say, as one; where one refuses, its refusal."""
        asked = self._handle.broadcast("whole", told, b"")
        found = await asked.results_async(timeout_s=self._seconds, return_exceptions=True)
        answers = [answer for answer in found if isinstance(answer, ReplicaResponse)]
        if not answers:
            raise found[0]
        refused = next((answer for answer in answers if answer.status != 200), None)
        return _response(refused) if refused else _response(replace(answers[0], body=MERGED_PATHS[path](answers)))


def _response(answer: ReplicaResponse) -> Response:
    headers = {key.decode(): value.decode() for key, value in answer.headers if key != b"content-length"}
    return Response(answer.body, answer.status, headers)


async def _say(ready: list[Message], send: Send) -> None:
    for message in ready:
        await send(message)


def _more(said: Message) -> bool:
    """Whether an answer goes on after this message of it."""
    return bool(said.get("more_body", said["type"] == "http.response.start"))


async def _next(
    answer: AsyncIterator[list[Message]], leaving: "asyncio.Task[None]", seconds: float | None
) -> list[Message]:
    """What is said next, at least one message. Raises ClientLeft, TooLate, and what Ray Serve raises."""
    coming: asyncio.Future[list[Message]] = asyncio.ensure_future(anext(answer))
    coming.add_done_callback(lambda done: done.cancelled() or done.exception())  # let go of, it fails for nobody
    try:
        await asyncio.wait((coming, leaving), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if coming.done():
            return coming.result()
        if leaving.done():
            raise ClientDisconnected
        raise TooLate(f"there was no answer within {seconds:g} s; wait for longer, or send fewer at once")
    finally:
        coming.cancel()


@contextmanager
def _named() -> Iterator[None]:
    """Errors of Ray Serve by the names that clients know."""
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
