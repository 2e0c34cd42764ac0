"""A Ray Serve replica: one backbone and the application of `continual serve` around it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass

from ray import serve
from ray.serve.schema import ReplicaRank
from starlette.types import Message, Receive, Scope

from continual.cluster import RegistryProbe
from continual.serve.application import create_app
from continual.serve.config import ServerConfig
from continual.serve.core.refresh import RegistryPoller
from continual.serve.replicated.affinity import AFFINITY_GROUPS
from continual.serve.replicated.rolling_refresh import POLL
from registry.errors import RegistryError


@dataclass(frozen=True)
class ReplicaResponse:
    """The whole HTTP response of one replica.

    Attributes:
        replica: The replica's name.
        status: The HTTP status.
        headers: The headers, as ASGI has them.
        body: The body.
    """

    replica: str
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Replica:
    """One replica of the server.

    It refreshes from the registry when it starts and when `refresh` is called, but does not poll. Ray
    Serve calls its methods by name, through a handle: renaming them takes `gateway` and `rolling_refresh` as well.

    Args:
        config: Settings of the server.
        probe: Identifies the registry and the blobs that are meant.
        replica_count: Number of replicas.

    Raises:
        InputError: The replica's node reaches another registry or other blobs than `probe` identifies.
    """

    def __init__(self, config: ServerConfig, probe: RegistryProbe, replica_count: int) -> None:
        self._resources, self._replica_count = ExitStack(), replica_count
        server = self._resources.enter_context(config.open_champions())
        probe.verify(server.registry)
        server.refresh()
        self._fingerprint = server.backbone.fingerprint
        self._app = create_app(server, local=config.local, limits=config.limits)
        self._poller: RegistryPoller = self._app.state.poller
        self.name: str = serve.get_replica_context().replica_tag

    async def stream_response(self, scope: Scope, body: bytes) -> AsyncIterator[list[Message]]:
        """Yield the ASGI messages of the response to a request, as many at a time as are ready.

        Closing the iterator cancels the request.

        Args:
            scope: The request's ASGI scope.
            body: The request's whole body.
        """
        messages = asyncio.Queue[Message | None]()
        app_task = asyncio.create_task(self._app(scope, _receive_whole(body), messages.put))
        app_task.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                ready = [message]
                while not messages.empty() and (message := messages.get_nowait()) is not None:
                    ready.append(message)
                yield ready
                if app_task.done() and messages.empty():
                    break
            await app_task
        finally:
            app_task.cancel()

    async def response(self, scope: Scope, body: bytes) -> ReplicaResponse:
        """Return the whole response to a request, with the replica's name."""
        head, *parts = [message async for ready in self.stream_response(scope, body) for message in ready]
        return ReplicaResponse(self.name, head["status"], head["headers"], b"".join(part["body"] for part in parts))

    async def fingerprint(self) -> str:
        """Return the fingerprint of this replica's backbone."""
        return self._fingerprint

    async def check_health(self) -> None:
        """Do nothing: Ray Serve replaces a replica in which this call does not return in time."""

    async def is_stale(self) -> str | None:
        """Refresh keys only; return the replica's name if the registry has other champions, else None.

        Raises:
            RegistryError: The registry cannot be read, or does not answer in time.
            DatabaseUnavailable: The database cannot be reached.
        """
        try:
            return self.name if await asyncio.wait_for(self._poller.is_stale(), POLL) else None
        except TimeoutError as error:
            raise RegistryError(f"the registry did not answer within {POLL:g} s; see that it can be reached") from error

    async def refresh(self, name: str) -> bool:
        """Refresh champions and keys if `name` is this replica's; return whether the champions changed."""
        return name == self.name and await self._poller.refresh()

    async def reconfigure(self, user_config: None, rank: ReplicaRank) -> None:
        """Claim the affinity groups of this replica's rank.

        Ray Serve calls it at the start and when ranks change.
        """
        for group in range(AFFINITY_GROUPS):
            await self.group(str(rank.rank + group * self._replica_count))

    @serve.multiplexed(max_num_models_per_replica=AFFINITY_GROUPS)  # type: ignore[untyped-decorator]
    async def group(self, name: str) -> str:
        """Return `name`.

        Ray Serve takes a group for a model to load here, but its deltas are loaded when they are needed.
        """
        return name


def _receive_whole(body: bytes) -> Receive:
    """Return the ASGI `receive` of a request whose body is here and whose client stays connected."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        for message in messages:
            return message
        never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        return await never  # until the request is cancelled

    return receive
