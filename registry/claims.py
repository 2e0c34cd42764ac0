"""Claims: of the controllers that run one stream, exactly one learns a position."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from registry.base import now
from registry.errors import RegistryError
from registry.holders import alive
from registry.lookups import position_row
from registry.registry import Registry
from registry.tables import Position

HEARTBEAT_SECONDS = 20.0

log = logging.getLogger(__name__)


def claim(registry: Registry, stream: str, *, number: int, holder: str) -> bool:
    """Takes a position that waits, failed, or whose holder is dead; False where it is learned or somebody's.

    Raises: NotFound for the stream or the number.
    """
    with registry.unit() as unit:
        position = position_row(unit.session, stream, number=number)  # nobody else writes until this unit ends
        if not _free(position):
            return False
        position.state, position.holder, position.heartbeat_at, position.error = "held", holder, now(), None
        return True


def heartbeat(registry: Registry, stream: str, *, number: int, holder: str) -> bool:
    """Says that `holder` is alive; False where it no longer holds the position."""
    return _if_held(registry, stream, number=number, holder=holder, values={"heartbeat_at": now()})


def release(registry: Registry, stream: str, *, number: int, holder: str) -> bool:
    """Gives a held position back to wait; False where `holder` does not hold it."""
    values = {"state": "waiting", "holder": None, "heartbeat_at": None}
    return _if_held(registry, stream, number=number, holder=holder, values=values)


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


def _free(position: Position) -> bool:
    if position.state == "held" and position.holder is not None:
        return not alive(position.holder, heartbeat=position.heartbeat_at)
    return position.state in ("waiting", "failed")


def _if_held(registry: Registry, stream: str, *, number: int, holder: str, values: dict[str, Any]) -> bool:
    with registry.unit() as unit:
        position = position_row(unit.session, stream, number=number)
        holds = position.state == "held" and position.holder == holder
        if holds:
            for column, value in values.items():
                setattr(position, column, value)
        return holds
