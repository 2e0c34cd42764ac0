"""New champions, which one replica after another takes up while the others answer."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

log = logging.getLogger(__name__)


class Turns:
    """Has all replicas look for new keys and champions: once, and every `poll` seconds while it is `going_on`."""

    def __init__(self, handle: Any, *, poll: float) -> None:
        self._handle, self._poll = handle, poll
        self._turn = asyncio.Lock()

    async def once(self) -> bool:
        """Whether any replica served others before; when this returns, those of this moment serve."""
        return await self._taken_up(await self._every("behind"))

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Look again and again until the block ends, whatever goes wrong."""
        again = asyncio.create_task(self._again())
        yield
        again.cancel()
        with suppress(asyncio.CancelledError):
            await again

    async def _again(self) -> None:
        taking_up: asyncio.Task[bool] | None = None
        while True:
            await asyncio.sleep(self._poll)
            behind = await self._every("behind")  # while others are taken up too, since keys are looked at by this
            if behind and (taking_up is None or taking_up.done()):
                taking_up = asyncio.create_task(self._taken_up(behind))

    async def _taken_up(self, replicas: Sequence[str]) -> bool:
        async with self._turn:
            changed = [await self._every("take_up", name) for name in replicas]
        return any(changed)

    async def _every(self, method: str, *given: str) -> list[Any]:
        """What replicas answer that is not nothing; one that fails, or dies, says so in the log."""
        try:
            found = await self._handle.broadcast(method, *given).results_async(return_exceptions=True)
        except Exception as error:  # no replica is there at this moment
            found = [error]
        for failed in found:
            if isinstance(failed, Exception):
                log.warning("a replica could not look at the registry, what was there serves on: %s", failed)
        return [one for one in found if one and not isinstance(one, Exception)]
