"""The registry looked at from time to time, aside: what serves, and who may ask."""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

from continual.serve.core.auth import ApiKeyAuth
from continual.serve.core.champions import ChampionServer
from tasks.errors import ContinualError

log = logging.getLogger(__name__)
LOWEST_PRIORITY = 19  # the niceness of what may wait


class RegistryPoller:
    """Looks at the registry for new keys and champions: once, and every `poll` seconds while it is `going_on`."""

    def __init__(self, access: ApiKeyAuth, serving: ChampionServer, *, poll: float) -> None:
        self._access, self._serving, self._poll = access, serving, poll
        self._aside = ThreadPoolExecutor(
            1, "looks", initializer=lower_thread_priority
        )  # a router takes seconds to make

    async def refresh(self) -> bool:
        """Whether other deltas serve than before. Raises what reading the registry raises."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._access.refresh)  # first: a key is revoked, whatever comes after
        return await loop.run_in_executor(self._aside, self._serving.refresh)

    async def is_stale(self) -> bool:
        """Whether others should serve than do, and keys looked at. Raises what reading the registry raises."""
        await asyncio.to_thread(self._access.refresh)
        return await asyncio.to_thread(self._serving.is_stale)

    @asynccontextmanager
    async def polling(self) -> AsyncIterator[None]:
        """Begin with a look, and look again until the block ends, whatever goes wrong."""
        await self.refresh()
        again = asyncio.create_task(self._again())
        yield
        again.cancel()
        with suppress(asyncio.CancelledError):
            await again
        self._aside.shutdown(wait=False, cancel_futures=True)

    async def _again(self) -> None:
        while True:
            await asyncio.sleep(self._poll)
            try:
                await self.refresh()
            except ContinualError as error:
                log.warning("the registry could not be looked at, what was there serves on: %s", error)
            except Exception:
                log.exception("looking at the registry failed, what was there serves on")


def lower_thread_priority() -> None:
    """Let this thread work when no other has anything to do, where threads have priorities of their own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
