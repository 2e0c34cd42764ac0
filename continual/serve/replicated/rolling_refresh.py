"""New champions, which one replica after another takes up while the others answer."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

POLL = 30.0  # seconds in which a replica should have looked at the registry
REFRESH = 120.0  # seconds in which one should serve new champions: a router may be made meanwhile

log = logging.getLogger(__name__)


class RollingRefresh:
    """Has all replicas look for new keys and champions: once, and every `poll` seconds while it is `going_on`."""

    def __init__(self, handle: Any, *, poll: float) -> None:
        self._handle, self._poll = handle, poll
        self._turn = asyncio.Lock()

    async def refresh_all(self) -> bool:
        """Whether any replica served others before; when this returns, those of this moment serve.

        Raises the first failure of a replica, when all have had their turn.
        """
        behind, failed = await self._every("behind", seconds=2 * POLL)
        changed, later = await self._taken_up(behind)
        for failure in (*failed, *later):
            raise failure
        return changed

    @asynccontextmanager
    async def polling(self) -> AsyncIterator[None]:
        """Look again and again until the block ends, whatever goes wrong."""
        again = asyncio.create_task(self._again())
        yield
        again.cancel()
        with suppress(asyncio.CancelledError):
            await again

    async def _again(self) -> None:
        taking_up: asyncio.Task[Any] | None = None
        while True:
            await asyncio.sleep(self._poll)
            behind, _ = await self._every("behind", seconds=2 * POLL)  # keys too, while others are taken up
            if behind and (taking_up is None or taking_up.done()):
                taking_up = asyncio.create_task(self._taken_up(behind))

    async def _taken_up(self, replicas: Iterable[str]) -> tuple[bool, list[Exception]]:
        async with self._turn:
            said = [await self._every("take_up", name, seconds=REFRESH) for name in replicas]
        return any(changed for changed, _ in said), [failure for _, failed in said for failure in failed]

    async def _every(self, method: str, *given: str, seconds: float) -> tuple[list[Any], list[Exception]]:
        """What replicas answer that is not nothing, and how some failed, which the log says too."""
        try:
            asked = self._handle.broadcast(method, *given)
            found = await asked.results_async(timeout_s=seconds, return_exceptions=True)
        except Exception as error:  # no replica is there at this moment, or one does not answer
            found = [error]
        failed = [one for one in found if isinstance(one, Exception)]
        for failure in failed:
            log.warning("a replica could not look at the registry, what was there serves on: %s", failure)
        return [one for one in found if one and not isinstance(one, Exception)], failed
