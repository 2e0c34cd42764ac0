"""Claims: of the controllers that run one stream, exactly one learns a position.

A claim is a lease, renewed by heartbeats. Its end is set and judged by the database's clock alone, so that hosts whose
clocks differ agree on it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from threading import Event, Thread

from registry.base import clock
from registry.errors import RegistryError
from registry.holders import alive
from registry.lookups import position_row
from registry.registry import Registry
from registry.tables import Position
from registry.unit import Unit

HEARTBEAT_SECONDS = 20.0
LEASE = timedelta(seconds=120)  # six missed heartbeats: a holder on another host that is silent longer is dead

log = logging.getLogger(__name__)


def claim(registry: Registry, stream: str, *, number: int, holder: str) -> bool:
    """Takes a position that waits, failed, or whose holder is dead; False where it is learned or somebody's.

    Raises: NotFound for the stream or the number.
    """
    with registry.unit() as unit:
        position = position_row(unit.session, stream, number=number)  # nobody else writes until this unit ends
        moment = clock(unit.session)
        if not _free(position, moment):
            return False
        position.state, position.holder, position.lease_until, position.error = "held", holder, moment + LEASE, None
        position.attempts += 1
        return True


def heartbeat(registry: Registry, stream: str, *, number: int, holder: str) -> bool:
    """Says that `holder` is alive; False where it no longer holds the position."""
    with registry.unit() as unit:
        if position := _own(unit, stream, number=number, holder=holder):
            position.lease_until = clock(unit.session) + LEASE
        return position is not None


def release(registry: Registry, stream: str, *, number: int, holder: str) -> bool:
    """Gives a held position back to wait; False where `holder` does not hold it."""
    with registry.unit() as unit:
        if position := _own(unit, stream, number=number, holder=holder):
            position.state, position.holder, position.lease_until = "waiting", None, None
        return position is not None


@contextmanager
def held(
    registry: Registry, stream: str, *, number: int, holder: str, every: float = HEARTBEAT_SECONDS
) -> Iterator[None]:
    """Sends heartbeats every so many seconds while the block runs; leaves the position as the block left it."""
    done = Event()

    def beat() -> None:
        while not done.wait(every):
            try:
                if not heartbeat(registry, stream, number=number, holder=holder):
                    return  # finished, failed, or taken: the unit that finishes finds out which
            except RegistryError as error:
                log.warning("no heartbeat for position %d of %s, trying again: %s", number, stream, error)

    thread = Thread(target=beat, name=f"heartbeat-{stream}-{number}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _free(position: Position, moment: datetime) -> bool:
    if position.state == "held" and position.holder is not None and position.lease_until is not None:
        return not alive(position.holder, leased=moment <= position.lease_until)
    return position.state in ("waiting", "failed")


def _own(unit: Unit, stream: str, *, number: int, holder: str) -> Position | None:
    """The position, where `holder` holds it."""
    position = position_row(unit.session, stream, number=number)
    return position if position.state == "held" and position.holder == holder else None
