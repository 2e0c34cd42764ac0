"""Telling MLflow what the registry has for it: in the background of learning, and on demand."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

from continual.settings import Locations
from continual.tracking.champion_models import sync_champion
from continual.tracking.client import DependencyPendingError, MlflowClientContext, connect
from continual.tracking.deletion import delete_purged
from continual.tracking.delta_runs import sync_delta_run
from continual.tracking.stream_runs import sync_stream_run
from registry import OutboxMessage, Registry, claim_message, current_process_id, list_pending, redact, reschedule
from tasks.errors import ContinualError

log = logging.getLogger(__name__)

HANDLERS: Mapping[str, Callable[[MlflowClientContext, OutboxMessage], None]] = {
    "delta": sync_delta_run,
    "stream": sync_stream_run,
    "champion": sync_champion,
    "purged": delete_purged,
}
POLL_SECONDS = 1.0  # seconds between looks into an outbox that had nothing to send
LONGEST_PAUSE = 60.0  # seconds; after every failure in a row the pause is doubled
RECENT_FAILURE_SECONDS = 10.0  # seconds; an MLflow that was away so shortly before the end is not asked again then
FINAL_FLUSH_SECONDS = 60.0  # seconds that the end of learning waits for what is still to be sent


@dataclass(frozen=True)
class SendResult:
    """A message that was to be sent, and why MLflow could not be told; `error` is None where it was.

    away: whether MLflow could not be reached at all.
    """

    pending: OutboxMessage
    error: str | None = None
    unreachable: bool = False


class OutboxSender:
    """One sender of the outbox: it connects when there is something to send, and again after a failure."""

    def __init__(self, registry: Registry, places: Locations) -> None:
        self.registry, self.locations = registry, places
        self._projection: MlflowClientContext | None = None

    def send(self, *, after: int | None = None) -> SendResult | None:
        """Send the next message, as `take` chooses it; None where there is none."""
        pending = claim_message(self.registry, current_process_id(), after=after)
        if pending is None:
            return None
        try:
            self._projection = self._projection or connect(self.registry, self.locations)
        except Exception as error:  # MLflow raises what its store, its HTTP client or its database raises
            return self._failed(pending, error, away=True)
        try:
            HANDLERS[pending.message](self._projection, pending)
        except Exception as error:
            self._projection = None
            return self._failed(pending, error)
        return SendResult(pending)

    def _failed(self, pending: OutboxMessage, error: Exception, *, away: bool = False) -> SendResult:
        line = (str(error).splitlines() or [""])[0]
        told = line if isinstance(error, DependencyPendingError) else f"{type(error).__name__}: {line}"
        told = redact(told, self.locations.mlflow, self.locations.registry, self.locations.blobs)
        reschedule(self.registry, pending, error=told)
        return SendResult(pending, told, away)


def flush_outbox(registry: Registry, places: Locations) -> Iterator[SendResult]:
    """Send all that MLflow missed, each message once, also those that would be tried later; end where it is away."""
    sender, last = OutboxSender(registry, places), 0
    while sent := sender.send(after=last):
        last = sent.pending.id
        yield sent
        if sent.unreachable:
            return


@contextmanager
def background_sender(registry: Registry, places: Locations) -> Iterator[None]:
    """Tells MLflow in the background what is registered inside, and waits at the end for a while for the rest.

    MLflow never holds up what runs inside, nor fails it; what it misses is sent later.
    """
    end = Event()
    thread = Thread(target=_tell, args=(registry, places, end), name="mlflow", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        end.set()
        raise
    end.set()
    thread.join(FINAL_FLUSH_SECONDS)
    warn_unsent(registry, places)


def warn_unsent(registry: Registry, places: Locations) -> None:
    """Says how much MLflow has not been told, and why."""
    if rest := list_pending(registry):
        errors = [pending.error for pending in rest if pending.error]
        log.warning(
            "MLflow at %s could not be told of %d changes, which will be sent later (`continual mlflow sync`)%s",
            redact(places.mlflow),
            len(rest),
            f": {errors[-1]}" if errors else "",
        )


def _tell(registry: Registry, places: Locations, end: Event) -> None:
    sender, pause, away = OutboxSender(registry, places), POLL_SECONDS, -RECENT_FAILURE_SECONDS
    while not end.is_set():
        try:
            sent = sender.send()
        except ContinualError as error:  # the registry does not answer; who learns is told by its own error
            log.debug("the outbox cannot be read: %s", error)
            sent = None
        if sent and sent.unreachable:
            away = time.monotonic()
        failed = sent is not None and sent.error is not None
        pause = min(LONGEST_PAUSE, 2 * pause) if failed else POLL_SECONDS
        if sent is None or failed:
            end.wait(pause)
    if time.monotonic() - away < RECENT_FAILURE_SECONDS:
        return
    try:
        for _ in flush_outbox(registry, places):
            pass
    except ContinualError as error:
        log.warning("MLflow could not be told of what is left: %s", error)
