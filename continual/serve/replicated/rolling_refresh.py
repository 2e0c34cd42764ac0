"""Rolling refresh: one replica after another takes up new champions while the others answer."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

from continual.serve.core.auth import ApiKeyAuth

POLL = 30.0  # seconds for a replica to compare its champions with the registry's, or to read the keys
REFRESH = 120.0  # seconds for a replica to take up new champions: it may build a router

log = logging.getLogger(__name__)


class RollingRefresh:
    """Refreshes keys here and in all replicas, and their champions: on request, and periodically inside `polling`.

    Args:
        handle: Ray Serve's handle of the replicas.
        auth: The keys that the gateway checks.
        poll: Seconds between two refreshes.
    """

    def __init__(self, handle: Any, auth: ApiKeyAuth, *, poll: float) -> None:
        self._handle, self._auth, self._poll = handle, auth, poll
        self._lock = asyncio.Lock()

    async def refresh_all(self) -> bool:
        """Refresh all replicas, one after another; return whether the champions of any changed.

        Raises:
            Exception: The first failure, of a replica or here, after all replicas had their turn.
        """
        stale, failures = await self._refresh_keys()
        changed, refresh_failures = await self._refresh_in_turn(stale)
        for failure in (*failures, *refresh_failures):
            raise failure
        return changed

    @asynccontextmanager
    async def polling(self) -> AsyncIterator[None]:
        """Refresh every `poll` seconds until the block ends, in spite of failures."""
        loop_task = asyncio.create_task(self._poll_forever())
        yield
        loop_task.cancel()
        with suppress(asyncio.CancelledError):
            await loop_task

    async def _poll_forever(self) -> None:
        refreshing: asyncio.Task[Any] | None = None
        while True:
            await asyncio.sleep(self._poll)
            stale, _ = await self._refresh_keys()  # during a refresh of champions, too
            if stale and (refreshing is None or refreshing.done()):
                refreshing = asyncio.create_task(self._refresh_in_turn(stale))

    async def _refresh_keys(self) -> tuple[list[str], list[Exception]]:
        """Refresh keys here and in all replicas; return the replicas with old champions, and the failures."""
        own_failures, (stale, replica_failures) = await asyncio.gather(
            self._refresh_own_keys(), self._broadcast("is_stale", seconds=2 * POLL)
        )
        return stale, [*own_failures, *replica_failures]

    async def _refresh_own_keys(self) -> list[Exception]:
        try:
            await asyncio.wait_for(asyncio.to_thread(self._auth.refresh), POLL)
        except Exception as error:
            log.warning("the gateway could not read the registry; the present keys stay valid: %s", error)
            return [error]
        return []

    async def _refresh_in_turn(self, replicas: Iterable[str]) -> tuple[bool, list[Exception]]:
        async with self._lock:
            outcomes = [await self._broadcast("refresh", name, seconds=REFRESH) for name in replicas]
        return any(changed for changed, _ in outcomes), [failure for _, failures in outcomes for failure in failures]

    async def _broadcast(self, method: str, *arguments: str, seconds: float) -> tuple[list[Any], list[Exception]]:
        """Call a method of every replica; return the true results and the failures, which are logged."""
        try:
            responses = self._handle.broadcast(method, *arguments)
            results = await responses.results_async(timeout_s=seconds, return_exceptions=True)
        except Exception as error:  # no replica is alive at this moment, or one does not answer
            results = [error]
        failures = [result for result in results if isinstance(result, Exception)]
        for failure in failures:
            log.warning("a replica could not read the registry; its present champions go on serving: %s", failure)
        return [result for result in results if result and not isinstance(result, Exception)], failures
