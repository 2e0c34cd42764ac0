"""Polling the registry in the background for new champions and API keys."""

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

LOWEST_PRIORITY = 19  # niceness

log = logging.getLogger(__name__)


def lower_thread_priority() -> None:
    """Give the calling thread the lowest priority, on systems where threads have priorities of their own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)


class RegistryPoller:
    """Refreshes API keys and champions from the registry: on request, and periodically inside `polling`.

    Args:
        auth: The API keys to refresh.
        server: The champions to refresh.
        poll: Seconds between two refreshes.
    """

    def __init__(self, auth: ApiKeyAuth, server: ChampionServer, *, poll: float) -> None:
        self._auth, self._server, self._poll = auth, server, poll
        # A thread of its own at low priority: building a router takes seconds.
        self._background = ThreadPoolExecutor(1, "looks", initializer=lower_thread_priority)

    async def refresh(self) -> bool:
        """Refresh keys and champions; return whether the champions changed.

        Raises:
            RegistryError: The registry cannot be read.
            DatabaseUnavailable: The database cannot be reached.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._auth.refresh)  # first: a revoked key must not wait for a router
        return await loop.run_in_executor(self._background, self._server.refresh)

    async def is_stale(self) -> bool:
        """Refresh keys only; return whether the registry has other champions than those that answer.

        Raises:
            RegistryError: The registry cannot be read.
            DatabaseUnavailable: The database cannot be reached.
        """
        await asyncio.to_thread(self._auth.refresh)
        return await asyncio.to_thread(self._server.is_stale)

    @asynccontextmanager
    async def polling(self) -> AsyncIterator[None]:
        """Refresh once, then every `poll` seconds until the block ends; only the first refresh may fail."""
        await self.refresh()
        loop_task = asyncio.create_task(self._poll_forever())
        yield
        loop_task.cancel()
        with suppress(asyncio.CancelledError):
            await loop_task
        self._background.shutdown(wait=False, cancel_futures=True)

    async def _poll_forever(self) -> None:
        while True:
            await asyncio.sleep(self._poll)
            try:
                await self.refresh()
            except ContinualError as error:
                log.warning("the registry could not be read; the present champions go on serving: %s", error)
            except Exception:
                log.exception("reading the registry failed; the present champions go on serving")
