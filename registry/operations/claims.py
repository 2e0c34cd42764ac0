"""Claims: of the controllers that run one stream, exactly one learns a position.

A claim is a lease, renewed by heartbeats. Its end is set and judged by the database's clock alone, so that hosts whose
clocks differ agree on it.
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from threading import Event, Thread

from sqlalchemy import select

from registry.errors import RegistryError
from registry.holders import is_alive
from registry.reads.lookups import position_row, stream_row
from registry.registry import Registry
from registry.schema.base import database_now
from registry.schema.tables import Position
from registry.unit_of_work import UnitOfWork
from registry.writes.arrivals import Arrival, held_arrivals, next_for_update

HEARTBEAT_SECONDS = 20.0
LEASE = timedelta(seconds=120)  # six missed heartbeats: a holder on another host that is silent longer is dead
MAX_CONSECUTIVE_DEATHS = (
    5  # in a row, with the same arrival in hand and no checkpoint between them: it is not given to a sixth
)

log = logging.getLogger(__name__)


def claim_next(registry: Registry, stream: str, *, among: Mapping[int, int], holder: str) -> int | None:
    """Takes the first position that is free, one that failed after all others, and returns its number; None where
    none is.

    among: the numbers to choose from, each with how often learning it may have been begun: one that failed is not
    begun more often. Nobody waits for anybody here: what others are just looking at is left to them.
    Raises: NotFound for the stream.
    """

    def work(unit: UnitOfWork) -> int | None:
        session = unit.session
        of_stream = (Position.stream_id == stream_row(session, stream).id, Position.state != "learned")
        listed = select(Position.id, Position.number, Position.attempts, Position.state).where(*of_stream)
        for identity, number, attempts, state in session.execute(
            listed.order_by(Position.state == "failed", Position.number)
        ).all():
            if number not in among or (state == "failed" and attempts >= among[number]):
                continue
            same = (Position.id == identity, Position.attempts == attempts, Position.state == state)
            position = session.scalar(select(Position).where(*same).with_for_update(skip_locked=True))
            if position is not None and _take(unit, position, holder=holder):
                return number
        return None

    return registry.write_with_retry(work)


def heartbeat(registry: Registry, stream: str, *, number: int, holder: str) -> bool:
    """Says that `holder` is alive; False where it no longer holds the position."""

    def work(unit: UnitOfWork) -> bool:
        if position := _own(unit, stream, number=number, holder=holder):
            position.lease_until = database_now(unit.session) + LEASE
        return position is not None

    return registry.write_with_retry(work)


def release(registry: Registry, stream: str, *, number: int, holder: str) -> bool:
    """Gives a held position back to wait; False where `holder` does not hold it."""

    def work(unit: UnitOfWork) -> bool:
        if position := _own(unit, stream, number=number, holder=holder):
            position.attempts -= position.submitted_at is not None  # nobody died of it
            _let_go(position)
        return position is not None

    return registry.write_with_retry(work)


def release_claims_of(registry: Registry, stream: str, *, holder: str) -> list[int]:
    """Gives back to wait whatever `holder`, who is known to be dead, holds of a stream; the numbers."""

    def work(unit: UnitOfWork) -> list[int]:
        of_holder = (Position.stream_id == stream_row(unit.session, stream).id, Position.holder == holder)
        found = unit.session.scalars(select(Position).where(*of_holder).order_by(Position.number).with_for_update())
        return [_let_go(position) for position in found]

    return registry.write_with_retry(work)


@contextmanager
def hold_claim(
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


def claim_arrival(registry: Registry, *, backbones: Collection[str], holder: str) -> Arrival | None:
    """Takes the arrival whose turn it is, of those for a backbone of these names or for any; None where none is free.

    An arrival whose holder is dead waits again. Which one is taken costs log N, whatever waits, and so does nothing.
    """

    def work(unit: UnitOfWork) -> Arrival | None:
        _leave_the_dead(unit)
        position = next_for_update(unit.session, backbones)
        if position is None:
            return None
        position.retries -= position.state == "failed"
        _take(unit, position, holder=holder)
        return Arrival(number=position.number, task=position.task_name, spec=position.spec or {})

    return registry.write_with_retry(work)


def _leave_the_dead(unit: UnitOfWork) -> None:
    moment = database_now(unit.session)
    for seen in [position for position in held_arrivals(unit.session) if _free(position, moment)]:
        same = (Position.id == seen.id, Position.holder == seen.holder, Position.lease_until == seen.lease_until)
        dead = unit.session.scalar(
            select(Position).where(*same).with_for_update(skip_locked=True).execution_options(populate_existing=True)
        )
        if dead is not None:
            dead.holder = dead.lease_until = None
            dead.state = "waiting" if dead.attempts < MAX_CONSECUTIVE_DEATHS else "failed"
            if dead.state == "failed":
                said = (
                    f"whoever learned it died, {dead.attempts} times and no further than before. Is memory too small?"
                )
                dead.error, dead.retries = f"{said} To try again: `continual arrivals retry {dead.number}`.", 0
    unit.session.flush()


def _take(unit: UnitOfWork, position: Position, *, holder: str) -> bool:
    """Gives a position that nobody else can write meanwhile to `holder`, where it is free."""
    moment = database_now(unit.session)
    if not _free(position, moment):
        return False
    position.state, position.holder, position.lease_until, position.error = "held", holder, moment + LEASE, None
    position.attempts += 1
    return True


def _let_go(position: Position) -> int:
    position.state, position.holder, position.lease_until = "waiting", None, None
    return position.number


def _free(position: Position, moment: datetime) -> bool:
    if position.state == "held" and position.holder is not None and position.lease_until is not None:
        return not is_alive(position.holder, leased=moment <= position.lease_until)
    return position.state in ("waiting", "failed")


def _own(unit: UnitOfWork, stream: str, *, number: int, holder: str) -> Position | None:
    """The position, where `holder` holds it."""
    position = position_row(unit.session, stream, number=number)
    return position if position.state == "held" and position.holder == holder else None
