"""Telling MLflow what the registry has for it: in the background of learning, and on demand."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

from continual.errors import ContinualError
from continual.settings import Settings
from continual.tracking.champions import tell_champion
from continual.tracking.client import NotYet, Projection, connect
from continual.tracking.deltas import tell_delta
from continual.tracking.purged import tell_purged
from continual.tracking.streams import tell_stream
from registry import Pending, Registry, postpone, shown, take, this_holder, waiting

log = logging.getLogger(__name__)

TELL: Mapping[str, Callable[[Projection, Pending], None]] = {
    "delta": tell_delta,
    "stream": tell_stream,
    "champion": tell_champion,
    "purged": tell_purged,
}
LOOK = 1.0  # seconds between looks into an outbox that had nothing to send
LONGEST_PAUSE = 60.0  # seconds; after every failure in a row the pause is doubled
SOON = 10.0  # seconds; an MLflow that was away so shortly before the end is not asked again then
LAST_WAIT = 60.0  # seconds that the end of learning waits for what is still to be sent


@dataclass(frozen=True)
class Sent:
    """A message that was to be sent, and why MLflow could not be told; `error` is None where it was.

    away: whether MLflow could not be reached at all.
    """

    pending: Pending
    error: str | None = None
    away: bool = False


class Sender:
    """One sender of the outbox: it connects when there is something to send, and again after a failure."""

    def __init__(self, registry: Registry, places: Settings) -> None:
        self.registry, self.places = registry, places
        self._projection: Projection | None = None

    def send(self, *, after: int | None = None) -> Sent | None:
        """Send the next message, as `take` chooses it; None where there is none."""
        pending = take(self.registry, this_holder(), after=after)
        if pending is None:
            return None
        try:
            self._projection = self._projection or connect(self.registry, self.places)
        except Exception as error:  # MLflow raises what its store, its HTTP client or its database raises
            return self._failed(pending, error, away=True)
        try:
            TELL[pending.message](self._projection, pending)
        except Exception as error:
            self._projection = None
            return self._failed(pending, error)
        return Sent(pending)

    def _failed(self, pending: Pending, error: Exception, *, away: bool = False) -> Sent:
        line = (str(error).splitlines() or [""])[0]
        told = line if isinstance(error, NotYet) else f"{type(error).__name__}: {line}"
        told = shown(told, self.places.mlflow, self.places.registry, self.places.blobs)
        postpone(self.registry, pending, error=told)
        return Sent(pending, told, away)


def sync(registry: Registry, places: Settings) -> Iterator[Sent]:
    """Send all that MLflow missed, each message once, also those that would be tried later; end where it is away."""
    sender, last = Sender(registry, places), 0
    while sent := sender.send(after=last):
        last = sent.pending.id
        yield sent
        if sent.away:
            return


@contextmanager
def telling(registry: Registry, places: Settings) -> Iterator[None]:
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
    thread.join(LAST_WAIT)
    warn_of_rest(registry, places)


def warn_of_rest(registry: Registry, places: Settings) -> None:
    """Says how much MLflow has not been told, and why."""
    if rest := waiting(registry):
        errors = [pending.error for pending in rest if pending.error]
        log.warning(
            "MLflow at %s could not be told of %d changes, which will be sent later (`continual mlflow sync`)%s",
            shown(places.mlflow),
            len(rest),
            f": {errors[-1]}" if errors else "",
        )


def _tell(registry: Registry, places: Settings, end: Event) -> None:
    sender, pause, away = Sender(registry, places), LOOK, -SOON
    while not end.is_set():
        try:
            sent = sender.send()
        except ContinualError as error:  # the registry does not answer; who learns is told by its own error
            log.debug("the outbox cannot be read: %s", error)
            sent = None
        if sent and sent.away:
            away = time.monotonic()
        failed = sent is not None and sent.error is not None
        pause = min(LONGEST_PAUSE, 2 * pause) if failed else LOOK
        if sent is None or failed:
            end.wait(pause)
    if time.monotonic() - away < SOON:
        return
    try:
        for _ in sync(registry, places):
            pass
    except ContinualError as error:
        log.warning("MLflow could not be told of what is left: %s", error)
