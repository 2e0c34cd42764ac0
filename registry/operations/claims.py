"""Claims: of the controllers that share a stream, exactly one learns a position.

A claim is a lease, renewed by heartbeats. Its end is set and checked by the database's clock alone, so that hosts with
different clocks agree on it.
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
LEASE = timedelta(seconds=120)  # six missed heartbeats: then a holder on another host counts as dead
MAX_CONSECUTIVE_DEATHS = 5  # holders of one arrival that died without a checkpoint between them: then it fails

log = logging.getLogger(__name__)


def claim_next(registry: Registry, stream: str, *, max_attempts: Mapping[int, int], holder: str) -> int | None:
    """Claim the next free position of a stream; failed positions come after all others.

    Does not wait for locks: positions that other transactions are examining are left to them.

    Args:
        registry: The registry.
        stream: The stream's name.
        max_attempts: Candidate positions, each with the number of attempts after which a failure is final.
        holder: The process that claims.

    Returns:
        The position's number; None if none is free.

    Raises:
        NotFound: The stream is not registered.
    """

    def work(unit: UnitOfWork) -> int | None:
        session = unit.session
        is_open = (Position.stream_id == stream_row(session, stream).id, Position.state != "learned")
        query = select(Position.id, Position.number, Position.attempts, Position.state).where(*is_open)
        for position_id, number, attempts, state in session.execute(
            query.order_by(Position.state == "failed", Position.number)
        ).all():
            if number not in max_attempts or (state == "failed" and attempts >= max_attempts[number]):
                continue
            is_unchanged = (Position.id == position_id, Position.attempts == attempts, Position.state == state)
            position = session.scalar(select(Position).where(*is_unchanged).with_for_update(skip_locked=True))
            if position is not None and _claim_if_free(unit, position, holder=holder):
                return number
        return None

    return registry.write_with_retry(work)


def heartbeat(registry: Registry, stream: str, *, number: int, holder: str) -> bool:
    """Extend the lease of a held position; return False if `holder` no longer holds it."""

    def work(unit: UnitOfWork) -> bool:
        if position := _held_position(unit, stream, number=number, holder=holder):
            position.lease_until = database_now(unit.session) + LEASE
        return position is not None

    return registry.write_with_retry(work)


def release(registry: Registry, stream: str, *, number: int, holder: str) -> bool:
    """Return a held position to the waiting ones; return False if `holder` does not hold it."""

    def work(unit: UnitOfWork) -> bool:
        if position := _held_position(unit, stream, number=number, holder=holder):
            position.attempts -= position.submitted_at is not None  # a release is not a death
            _set_waiting(position)
        return position is not None

    return registry.write_with_retry(work)


def release_claims_of(registry: Registry, stream: str, *, holder: str) -> list[int]:
    """Release all positions of a stream held by `holder`, which is known to be dead.

    Returns:
        The numbers of the released positions.
    """

    def work(unit: UnitOfWork) -> list[int]:
        is_held = (Position.stream_id == stream_row(unit.session, stream).id, Position.holder == holder)
        positions = unit.session.scalars(select(Position).where(*is_held).order_by(Position.number).with_for_update())
        return [_set_waiting(position) for position in positions]

    return registry.write_with_retry(work)


@contextmanager
def hold_claim(
    registry: Registry, stream: str, *, number: int, holder: str, interval: float = HEARTBEAT_SECONDS
) -> Iterator[None]:
    """Send heartbeats from a thread while the block runs; the position's state is left to the block.

    Args:
        registry: The registry.
        stream: The stream's name.
        number: The position's number.
        holder: The process that holds it.
        interval: Seconds between heartbeats.
    """
    done = Event()

    def beat() -> None:
        while not done.wait(interval):
            try:
                if not heartbeat(registry, stream, number=number, holder=holder):
                    return  # learned, failed or lost: the unit that marks the position raises if lost
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
    """Claim the next arrival for one of `backbones`, or for any backbone.

    Arrivals of dead holders are released first. The choice costs O(log N) in the number of waiting arrivals, also if
    none is free.

    Args:
        registry: The registry.
        backbones: Names of the backbones that the caller can learn on.
        holder: The process that claims.

    Returns:
        The arrival; None if none is free.
    """

    def work(unit: UnitOfWork) -> Arrival | None:
        _release_dead_holders(unit)
        position = next_for_update(unit.session, backbones)
        if position is None:
            return None
        position.retries -= position.state == "failed"
        _claim_if_free(unit, position, holder=holder)
        return Arrival(number=position.number, task=position.task_name, spec=position.spec or {})

    return registry.write_with_retry(work)


def _release_dead_holders(unit: UnitOfWork) -> None:
    moment = database_now(unit.session)
    for candidate in [position for position in held_arrivals(unit.session) if _is_free(position, moment)]:
        is_unchanged = (
            Position.id == candidate.id,
            Position.holder == candidate.holder,
            Position.lease_until == candidate.lease_until,
        )
        stale = unit.session.scalar(
            select(Position)
            .where(*is_unchanged)
            .with_for_update(skip_locked=True)
            .execution_options(populate_existing=True)
        )
        if stale is not None:
            stale.holder = stale.lease_until = None
            stale.state = "waiting" if stale.attempts < MAX_CONSECUTIVE_DEATHS else "failed"
            if stale.state == "failed":
                problem = f"its process died {stale.attempts} times without a further checkpoint. Is memory too small?"
                stale.error, stale.retries = f"{problem} To try again: `continual arrivals retry {stale.number}`.", 0
    unit.session.flush()


def _claim_if_free(unit: UnitOfWork, position: Position, *, holder: str) -> bool:
    """Give a locked position to `holder` if it is free; return True if so."""
    moment = database_now(unit.session)
    if not _is_free(position, moment):
        return False
    position.state, position.holder, position.lease_until, position.error = "held", holder, moment + LEASE, None
    position.attempts += 1
    return True


def _set_waiting(position: Position) -> int:
    position.state, position.holder, position.lease_until = "waiting", None, None
    return position.number


def _is_free(position: Position, moment: datetime) -> bool:
    if position.state == "held" and position.holder is not None and position.lease_until is not None:
        return not is_alive(position.holder, lease_valid=moment <= position.lease_until)
    return position.state in ("waiting", "failed")


def _held_position(unit: UnitOfWork, stream: str, *, number: int, holder: str) -> Position | None:
    """Return the position if `holder` holds it."""
    position = position_row(unit.session, stream, number=number)
    return position if position.state == "held" and position.holder == holder else None
