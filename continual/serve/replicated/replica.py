"""One replica: a backbone and the application of `continual serve` around it, asked by a handle of Ray Serve."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve.schema import ReplicaRank
from starlette.types import Message, Scope

from continual.errors import InputError
from continual.serve.application import application
from continual.serve.looking import Looking
from continual.serve.recipe import Recipe
from continual.serve.replicated.groups import GROUPS
from continual.serve.serving import Serving
from registry import identity, shown


@dataclass(frozen=True)
class Answer:
    """What a replica answers to a request, whole."""

    replica: str
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Replica:
    """A replica. It looks at the registry when it begins, and again when it is told to.

    Raises InputError, where its node reaches another registry than that of the recipe, or other blobs.
    """

    def __init__(self, recipe: Recipe, registry: str, count: int) -> None:
        """registry: the identity of the one that is meant · count: how many replicas there are."""
        self._open, self._count = ExitStack(), count
        serving = self._open.enter_context(recipe.serving())
        _same(serving, recipe, registry)
        serving.refresh()
        self._app = application(serving, local=recipe.local, limits=recipe.limits)
        self._looking: Looking = self._app.state.looking
        self.name: str = serve.get_replica_context().replica_tag

    async def answered(self, scope: Scope, body: bytes) -> AsyncIterator[list[Message]]:
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

    async def whole(self, scope: Scope, body: bytes) -> Answer:
        """The same at once, and who says it."""
        head, *parts = [message async for ready in self.answered(scope, body) for message in ready]
        return Answer(self.name, head["status"], head["headers"], b"".join(part["body"] for part in parts))

    async def behind(self) -> str | None:
        """The replica's name where other champions should serve than do; keys are those of this moment afterwards."""
        return self.name if await self._looking.behind() else None

    async def take_up(self, name: str) -> bool:
        """Serve the champions of this moment, if this is the replica of that name; whether they are others."""
        return name == self.name and await self._looking.once()

    async def reconfigure(self, user_config: None, rank: ReplicaRank) -> None:
        """Have Ray Serve send requests of this rank's groups here: at the beginning, and when ranks change."""
        for group in range(GROUPS):
            await self.group(str(rank.rank + group * self._count))

    @serve.multiplexed(max_num_models_per_replica=GROUPS)  # type: ignore[untyped-decorator]
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


def _same(serving: Serving, recipe: Recipe, wanted: str) -> None:
    """Raises InputError, where this node reaches another registry than it should, or its blobs are not there."""
    at, registry = shown(recipe.registry, recipe.registry), serving.registry
    if identity(registry) != wanted:
        raise InputError(
            f"at {at} a replica finds another registry; put it where all nodes reach it: PostgreSQL, or a file system "
            "that they share"
        )
    for champion in registry.champions(serving.backbone.fingerprint)[:1]:
        if not registry.blobs.exists(champion.digest):
            raise InputError(
                f"at {shown(recipe.blobs, recipe.blobs)} a replica does not find the blobs of the registry at {at}; "
                "put them where all nodes reach them: an object store (CONTINUAL_BLOBS_URL), or a shared file system"
            )
