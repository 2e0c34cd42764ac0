"""Send the registry's outbox to MLflow: in the background while learning, and on demand."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread

from continual.settings import Locations
from continual.tracking.champion_models import sync_champion
from continual.tracking.client import DependencyPendingError, MlflowClientContext, connect
from continual.tracking.deletion import delete_purged
from continual.tracking.delta_runs import sync_delta_run
from continual.tracking.local_store import repair_local_store
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
POLL_SECONDS = 1.0  # seconds between two looks into an empty outbox
MAX_PAUSE = 60.0  # seconds; the pause is doubled after every failure in a row
RECENT_FAILURE_SECONDS = 10.0  # seconds; an MLflow that was unreachable so recently is not tried again at the end
FINAL_FLUSH_SECONDS = 60.0  # seconds to wait at the end of learning for the remaining messages


@dataclass(frozen=True)
class SendResult:
    """The result of sending one message.

    Attributes:
        pending: The message.
        error: Why it could not be sent, or None.
        unreachable: MLflow could not be reached at all.
    """

    pending: OutboxMessage
    error: str | None = None
    unreachable: bool = False


class OutboxSender:
    """Sends messages of the outbox; it connects at the first message, and again after a failure."""

    def __init__(self, registry: Registry, locations: Locations) -> None:
        self.registry, self.locations = registry, locations
        self._context: MlflowClientContext | None = None

    def send(self, *, after: int | None = None) -> SendResult | None:
        """Claim and send the next message; return None where `claim_message` finds none."""
        pending = claim_message(self.registry, current_process_id(), after=after)
        if pending is None:
            return None
        try:
            self._context = self._context or connect(self.registry, self.locations)
        except Exception as error:  # MLflow raises what its store, its HTTP client or its database raises
            return self._reschedule(pending, error, unreachable=True)
        try:
            HANDLERS[pending.message](self._context, pending)
        except Exception as error:
            self._context = None
            return self._reschedule(pending, error)
        return SendResult(pending)

    def _reschedule(self, pending: OutboxMessage, error: Exception, *, unreachable: bool = False) -> SendResult:
        line = (str(error).splitlines() or [""])[0]
        reason = line if isinstance(error, DependencyPendingError) else f"{type(error).__name__}: {line}"
        reason = redact(reason, self.locations.mlflow, self.locations.registry, self.locations.blobs)
        reschedule(self.registry, pending, error=reason)
        return SendResult(pending, reason, unreachable)


def flush_outbox(registry: Registry, locations: Locations) -> Iterator[SendResult]:
    """Send every message once, rescheduled ones too, and yield the results; end if MLflow is unreachable.

    Where MLflow's store under the home is broken or was removed, everything is sent again.
    """
    with suppress(OSError):  # such as a full disk; connecting reports it, and every message waits
        repair_local_store(registry, locations)
    sender, last = OutboxSender(registry, locations), 0
    while sent := sender.send(after=last):
        last = sent.pending.id
        yield sent
        if sent.unreachable:
            return


@contextmanager
def background_sender(registry: Registry, locations: Locations) -> Iterator[None]:
    """Send messages to MLflow in the background of the block, and wait for the rest at its end.

    MLflow never delays or fails the block; at the end the wait is limited, and unsent messages are sent later.
    """
    end = Event()
    thread = Thread(target=_send_until, args=(registry, locations, end), name="mlflow", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        end.set()
        raise
    end.set()
    thread.join(FINAL_FLUSH_SECONDS)
    warn_unsent(registry, locations)


def warn_unsent(registry: Registry, locations: Locations) -> None:
    """Log a warning with the number of unsent messages and the latest error, if there are any."""
    if unsent := list_pending(registry):
        errors = [pending.error for pending in unsent if pending.error]
        log.warning(
            "%d changes could not be sent to MLflow at %s, and will be sent later (`continual mlflow sync`)%s",
            len(unsent),
            redact(locations.mlflow),
            f": {errors[-1]}" if errors else "",
        )


def _send_until(registry: Registry, locations: Locations, end: Event) -> None:
    sender, pause, last_unreachable = OutboxSender(registry, locations), POLL_SECONDS, -RECENT_FAILURE_SECONDS
    while not end.is_set():
        try:
            sent = sender.send()
        except ContinualError as error:  # the registry is unreachable; the learning thread reports its own error
            log.debug("the outbox cannot be read: %s", error)
            sent = None
        if sent and sent.unreachable:
            last_unreachable = time.monotonic()
        failed = sent is not None and sent.error is not None
        pause = min(MAX_PAUSE, 2 * pause) if failed else POLL_SECONDS
        if sent is None or failed:
            end.wait(pause)
    if time.monotonic() - last_unreachable < RECENT_FAILURE_SECONDS:
        return
    try:
        for _ in flush_outbox(registry, locations):
            pass
    except ContinualError as error:
        log.warning("the remaining messages could not be sent to MLflow: %s", error)
