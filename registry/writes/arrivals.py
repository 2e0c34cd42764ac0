"""Arrivals: tasks that anybody submits at any time, to be learned by whoever watches for them.

Each is a position of the one stream that no file describes, which has no end and no backbone of its own. Those of the
highest priority are learned first, of equal ones the earlier; what failed comes behind the others, once. Of one task
the earlier is learned before the later: a later one lends its priority to those before it, also to one that is being
learned and may be given back, and what failed is not tried again by itself when a later one is there.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

from sqlalchemy import ColumnElement, Select, case, delete, func, literal_column, or_, select, text, update
from sqlalchemy.orm import Session, aliased

from registry.errors import NotFound, NothingToDo
from registry.names import delta_name, quantized_name, split_bits, validate_name
from registry.reads.mapping import ListingRow
from registry.reads.pagination import paginate
from registry.records import PositionState
from registry.schema.base import database_now
from registry.schema.connections import lock_name
from registry.schema.tables import CLAIMABLE, Checkpoint, Delta, Position, Stream
from tasks.errors import InputError
from tasks.spec import Stream as StreamSpec

ARRIVAL_STREAM = "(arrivals)"  # the stream's name, which no stream file can have
MAX_RETRIES = 1  # how often an arrival that failed is tried again by itself
MAX_PRIORITY = 2**31 - 1  # what a database's integer holds

OF_ARRIVALS = select(Stream.id).where(Stream.name == ARRIVAL_STREAM)
HELD: ColumnElement[str] = literal_column("'held'")  # as the index on them says it
FINAL_STATES = ("learned", "cancelled")


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """An arrival that is to be learned; `spec` is what was submitted, with the folder of its files."""

    number: int
    task: str
    spec: dict[str, Any]


def submit(session: Session, task: StreamSpec, *, priority: int, once: bool) -> int:
    """Adds an arrival and returns its number; with `once` that of an earlier one of the same content, if there is any.

    Raises: InputError for anything but one task, and for a priority that no database holds.
    """
    if len(task.tasks) != 1:
        raise InputError(f"stream {task.name!r} has {len(task.tasks)} tasks, and one is submitted at a time. Run it.")
    if abs(priority) > MAX_PRIORITY:
        raise InputError(f"priority {priority} is out of range: give one from {-MAX_PRIORITY} to {MAX_PRIORITY}.")
    (entry,), stream = task.tasks, _stream(session)
    spec = task.model_dump(mode="json") | {"folder": str(task.folder.absolute())}
    recipe = sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    # Not by the stream too: SQLite would take an index that begins with it, and look through all that waits.
    of_task = (Position.task_name == entry.name, Position.submitted_at.is_not(None))
    known = select(Position.number).where(*of_task, Position.recipe == recipe).order_by(Position.number.desc())
    if once and (number := session.scalar(known.limit(1))):
        return number
    last = session.scalar(select(func.max(Position.number)).where(Position.stream_id == stream))
    arrival = Position(
        stream_id=stream,
        number=(last or 0) + 1,
        task_name=validate_name("task", entry.name),
        recipe=recipe,
        priority=priority,
        submitted_at=database_now(session),
        spec=spec,
        backbone=normalized_backbone_name(task.backbone) if task.backbone else None,
        retries=MAX_RETRIES,
    )
    session.add(arrival)
    _lend(session, arrival)
    return arrival.number


def normalized_backbone_name(backbone: str) -> str:
    """The name of a backbone as it holds in every working folder: of a folder the whole path.

    Behind it may stand its bits, as in `folder@8bit`.
    """
    folder, bits = split_bits(backbone)
    return quantized_name(str(Path(folder).absolute()), bits) if folder and Path(folder).is_dir() else backbone


def arrivals(
    session: Session, *, state: str | None = None, limit: int | None = None, after: int | None = None
) -> list[ListingRow]:
    """Rows of `continual arrivals`: arrival, task, state, priority, delta, error, attempts, holder, backbone,
    submitted_at; in the order in which they were submitted.

    after: the number of the last arrival of the page before. Raises: InputError for what is no state.
    """
    if state not in (None, *get_args(PositionState)):
        raise InputError(f"no arrival is {state!r}; give one of {', '.join(get_args(PositionState))}.")
    found = select(Position, Delta.version).outerjoin(Delta, Delta.id == Position.delta_id)
    found = found.where(Position.stream_id == OF_ARRIVALS.scalar_subquery())
    if state is not None:
        found = found.where(Position.state == state)
    listed = paginate(found, Position.number, limit=limit, after=None if after is None else (after,))
    return [_listing(*row) for row in session.execute(listed)]


def has_pending(session: Session, backbones: Collection[str]) -> bool:
    """Whether any arrival may still be learned on a backbone of these names: it waits, or somebody learns it."""
    held = select(Position.id).where(
        Position.stream_id == OF_ARRIVALS.scalar_subquery(),
        Position.state == HELD,
        or_(Position.backbone.is_(None), Position.backbone.in_(backbones)),
    )
    free = (_free(backbone).with_only_columns(Position.id) for backbone in (None, *backbones))
    return any(session.scalar(found.limit(1)) is not None for found in (*free, held))


def next_for_update(session: Session, backbones: Collection[str]) -> Position | None:
    """The arrival to be learned next on a backbone of these names, locked; nobody waits here for anybody.

    A task that is being learned is passed over, and so is one whose arrival somebody else has just locked.
    """
    passed: list[str] = []
    while chosen := _next(session, backbones, passed=passed):
        locked = select(Position).where(Position.id == chosen.id, text(CLAIMABLE)).with_for_update(skip_locked=True)
        if position := session.scalar(locked.execution_options(populate_existing=True)):
            return position
        passed.append(chosen.task_name)
    return None


def _next(session: Session, backbones: Collection[str], *, passed: Collection[str]) -> Position | None:
    """The arrival to be learned next, not locked: others are free to take those that are only looked at."""
    other = aliased(Position)
    same = (other.stream_id == Position.stream_id, other.task_name == Position.task_name, other.state == HELD)
    idle = [~select(other.id).where(*same).exists()]
    if passed:
        idle.append(Position.task_name.not_in(passed))
    found = (session.scalar(_free(backbone).where(*idle).limit(1)) for backbone in (None, *backbones))
    return min(filter(None, found), key=lambda one: (one.state == "failed", -one.priority, one.number), default=None)


def cancel(session: Session, number: int) -> None:
    """Sees to it that an arrival is not learned: whoever is learning it hears that it is not theirs any more.

    Raises: NotFound; NothingToDo, where it is learned or cancelled already.
    """
    arrival = arrival_row(session, number)
    if arrival.state in FINAL_STATES:
        raise NothingToDo(f"arrival {number} is {arrival.state} already. Archive or purge what was learned instead.")
    cancel_and_forget(session, arrival)


def cancel_and_forget(session: Session, arrival: Position) -> None:
    """Cancels an arrival, and forgets how far it came."""
    arrival.state, arrival.retries, arrival.error = "cancelled", 0, None
    arrival.holder = arrival.lease_until = None
    session.execute(delete(Checkpoint).where(Checkpoint.position_id == arrival.id))


def retry(session: Session, number: int) -> None:
    """Lets an arrival that failed or was cancelled wait again, in its old place.

    Raises: NotFound, also where its task was purged; NothingToDo, where it is not over, or learned.
    """
    _stream(session)  # nobody submits meanwhile: who is later is known
    arrival = arrival_row(session, number)
    if arrival.state not in ("failed", "cancelled"):
        raise NothingToDo(f"arrival {number} is {arrival.state}: only what failed or was cancelled is tried again.")
    if arrival.spec is None:
        raise NotFound(f"arrival {number} was of a task that was purged: its file is not kept. Submit it again.")
    later = select(Position.priority).where(*_open_of(arrival), Position.number > number)
    arrival.priority = max([arrival.priority, *session.scalars(later)])
    arrival.state, arrival.attempts, arrival.error = "waiting", 0, None
    _lend(session, arrival)


def arrival_row(session: Session, number: int) -> Position:
    """The arrival of that number, or NotFound; locked where the database locks rows."""
    of_number = (Position.stream_id == OF_ARRIVALS.scalar_subquery(), Position.number == number)
    found = session.scalar(select(Position).where(*of_number).with_for_update())
    if found is None:
        raise NotFound(f"there is no arrival {number}. `continual arrivals` lists them.")
    return found


def held_arrivals(session: Session) -> Iterator[Position]:
    """Those that somebody is learning."""
    yield from session.scalars(
        select(Position).where(Position.stream_id == OF_ARRIVALS.scalar_subquery(), Position.state == HELD)
    )


def _stream(session: Session) -> int:
    """The identity of the stream of arrivals, locked: numbers are given one after the other."""
    locked = OF_ARRIVALS.with_for_update(key_share=True)
    found = session.scalar(locked)
    if found is None:
        lock_name(session, ARRIVAL_STREAM)
        found = session.scalar(locked)
    if found is None:
        begun = Stream(name=ARRIVAL_STREAM, spec={}, digest="")
        session.add(begun)
        session.flush()
        found = begun.id
    return found


def _open_of(arrival: Position) -> tuple[ColumnElement[bool], ...]:
    """What may still be learned of the task of an arrival, be it by `retry`."""
    of_task = (Position.task_name == arrival.task_name, Position.submitted_at.is_not(None))
    return (*of_task, Position.state.not_in(FINAL_STATES))


def _lend(session: Session, arrival: Position) -> None:
    """Sees to it that none of its task comes behind it that was submitted before it."""
    lent = case((Position.priority < arrival.priority, arrival.priority), else_=Position.priority)
    before = (*_open_of(arrival), Position.number < arrival.number)
    session.execute(update(Position).where(*before).values(priority=lent, retries=0))


def _free(backbone: str | None) -> Select[Position]:
    """What may be learned next and asks for this backbone, or for any, in order of their turn."""
    asks: ColumnElement[bool] = Position.backbone.is_(None) if backbone is None else Position.backbone == backbone
    found = select(Position).where(Position.stream_id == OF_ARRIVALS.scalar_subquery(), asks, text(CLAIMABLE))
    # The backbone is one and the same; named here, a database sees that the index has the rows in this order.
    turn = (Position.backbone, Position.state.desc(), Position.priority.desc(), Position.number)
    return found.order_by(*turn)


def _listing(arrival: Position, version: int | None) -> ListingRow:
    return {
        "arrival": arrival.number,
        "task": arrival.task_name,
        "state": arrival.state,
        "priority": arrival.priority,
        "delta": None if version is None else delta_name(arrival.task_name, version),
        "error": arrival.error,
        "attempts": arrival.attempts,
        "holder": arrival.holder,
        "backbone": arrival.backbone,
        "submitted_at": arrival.submitted_at and arrival.submitted_at.isoformat(),
    }
