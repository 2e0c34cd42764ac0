"""One replica: a backbone and the application of `continual serve` around it, asked by a handle of Ray Serve."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve.schema import ReplicaRank
from starlette.types import Message, Scope

from continual.cluster import RegistryProbe
from continual.serve.application import create_app
from continual.serve.config import ServerConfig
from continual.serve.core.refresh import RegistryPoller
from continual.serve.replicated.affinity import AFFINITY_GROUPS
from continual.serve.replicated.rolling_refresh import POLL
from registry.errors import RegistryError


@dataclass(frozen=True)
class ReplicaResponse:
    """What a replica answers to a request, whole."""

    replica: str
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Replica:
    """A replica. It looks at the registry when it begins, and again when it is told to.

    Raises InputError, where its node reaches another registry than that of the recipe, or other blobs.
    """

    def __init__(self, recipe: ServerConfig, proof: RegistryProbe, count: int) -> None:
        """proof: of the registry that is meant · count: how many replicas there are."""
        self._open, self._count = ExitStack(), count
        serving = self._open.enter_context(recipe.open_champions())
        proof.verify(serving.registry)
        serving.refresh()
        self._fingerprint = serving.backbone.fingerprint
        self._app = create_app(serving, local=recipe.local, limits=recipe.limits)
        self._looking: RegistryPoller = self._app.state.looking
        self.name: str = serve.get_replica_context().replica_tag

    async def stream_response(self, scope: Scope, body: bytes) -> AsyncIterator[list[Message]]:
        """What the application says to a request, as ASGI's messages, as many at a time as there are.

        To let go of the iterator is to leave: what still waits is not answered.
        """
        said = asyncio.Queue[Message | None]()
        answering = asyncio.create_task(self._app(scope, _given(body), said.put))
        answering.add_done_callback(lambda _: said.put_nowait(None))
        try:
            while (message := await said.get()) is not None:
                ready = [message]
                while not said.empty() and (message := said.get_nowait()) is not None:
                    ready.append(message)
                yield ready
                if answering.done() and said.empty():
                    break
            await answering
        finally:
            answering.cancel()

    async def response(self, scope: Scope, body: bytes) -> ReplicaResponse:
        """The same at once, and who says it."""
        head, *parts = [message async for ready in self.stream_response(scope, body) for message in ready]
        return ReplicaResponse(self.name, head["status"], head["headers"], b"".join(part["body"] for part in parts))

    async def fingerprint(self) -> str:
        """That of the backbone which this replica holds."""
        return self._fingerprint

    async def check_health(self) -> None:
        """To be run is enough: Ray Serve replaces a replica that does not come to it."""

    async def is_stale(self) -> str | None:
        """The replica's name where other champions should serve than do; keys are those of this moment afterwards.

        Raises RegistryError and what reading the registry raises.
        """
        try:
            return self.name if await asyncio.wait_for(self._looking.is_stale(), POLL) else None
        except TimeoutError as error:
            raise RegistryError(f"the registry did not answer within {POLL:g} s; see that it can be reached") from error

    async def refresh(self, name: str) -> bool:
        """Serve the champions of this moment, if this is the replica of that name; whether they are others."""
        return name == self.name and await self._looking.refresh()

    async def reconfigure(self, user_config: None, rank: ReplicaRank) -> None:
        """Have Ray Serve send requests of this rank's groups here: at the beginning, and when ranks change."""
        for group in range(AFFINITY_GROUPS):
            await self.group(str(rank.rank + group * self._count))

    @serve.multiplexed(max_num_models_per_replica=AFFINITY_GROUPS)  # type: ignore[untyped-decorator]
    async def group(self, name: str) -> str:
        """Nothing is to be loaded for a group: its deltas come when they are asked for."""
        return name


def _given(body: bytes) -> Any:
    """ASGI's `receive` of a request that came as a whole, whose client stays."""
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        for part in parts:
            return part
        never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        return await never  # until the request is let go of

    return receive
