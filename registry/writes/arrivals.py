"""Arrivals: tasks submitted at any time, to be learned by any watching process.

Each arrival is a position of one special stream, which no file describes, has no end and no backbone. Higher priorities
are learned first, earlier submissions first among equals; a failed arrival is retried once, after all others.
Arrivals of one task are learned in order of submission: a later one raises the priority of the earlier ones to its own
(also of one that is being learned, which may be released), and a failed one is not retried automatically once a later
one exists.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sqlalchemy import ColumnElement, Select, case, func, literal_column, or_, select, text, update
from sqlalchemy.orm import Session, aliased

from registry.errors import NotFound, NothingToDo
from registry.names import delta_name, quantized_name, split_bits, validate_name
from registry.reads.mapping import ListingRow
from registry.reads.pagination import paginate
from registry.records import PositionState
from registry.schema.base import database_now
from registry.schema.connections import lock_name
from registry.schema.tables import CLAIMABLE, Delta, Position, Stream
from registry.writes.checkpoints import delete_checkpoint
from tasks.errors import InputError

if TYPE_CHECKING:
    from tasks.spec import Stream as StreamSpec

ARRIVAL_STREAM = "(arrivals)"  # not a valid name in a stream file
MAX_RETRIES = 1  # automatic retries of a failed arrival
MAX_PRIORITY = 2**31 - 1  # the largest database integer

ARRIVAL_STREAM_ID = select(Stream.id).where(Stream.name == ARRIVAL_STREAM)
HELD_STATE: ColumnElement[str] = literal_column("'held'")  # a literal, as in the partial index
FINAL_STATES = ("learned", "cancelled")


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A claimed arrival.

    Attributes:
        number: Its number, from 1.
        task: The task's name.
        spec: The submitted stream of one task as JSON, with the folder of its files.
    """

    number: int
    task: str
    spec: dict[str, Any]


def submit(session: Session, task: "StreamSpec", *, priority: int, once: bool) -> int:
    """Add an arrival and return its number.

    Args:
        session: The unit's session.
        task: A stream of one task.
        priority: Higher priorities are learned first.
        once: Return the number of an earlier arrival of the same content, if any.

    Raises:
        InputError: The stream has not exactly one task, its rows are in memory, or the priority is out of range.
    """
    if len(task.tasks) != 1:
        raise InputError(f"stream {task.name!r} has {len(task.tasks)} tasks, and one is submitted at a time. Run it.")
    if abs(priority) > MAX_PRIORITY:
        raise InputError(f"priority {priority} is out of range: give one from {-MAX_PRIORITY} to {MAX_PRIORITY}.")
    if task.tasks[0].source.in_memory:
        raise InputError(
            f"the rows of task {task.tasks[0].name!r} are in the memory of this process, where no watcher can read "
            "them. Save them to a file and submit that, or learn the task here."
        )
    (entry,), stream = task.tasks, _lock_stream(session)
    spec = task.model_dump(mode="json") | {"folder": str(task.folder.absolute())}
    recipe = sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    # No condition on the stream: SQLite would choose an index that starts with it and scan all waiting arrivals.
    is_of_task = (Position.task_name == entry.name, Position.submitted_at.is_not(None))
    same_content = (
        select(Position.number).where(*is_of_task, Position.recipe == recipe).order_by(Position.number.desc())
    )
    if once and (number := session.scalar(same_content.limit(1))):
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
    _raise_earlier_priorities(session, arrival)
    return arrival.number


def normalized_backbone_name(backbone: str) -> str:
    """Return a backbone's name independent of the working folder: the absolute path of a folder.

    A suffix with its bits, as in `folder@8bit`, is kept.
    """
    folder, bits = split_bits(backbone)
    return quantized_name(str(Path(folder).absolute()), bits) if folder and Path(folder).is_dir() else backbone


def arrivals(
    session: Session, *, state: str | None = None, limit: int | None = None, after: int | None = None
) -> list[ListingRow]:
    """List arrivals in order of submission.

    Args:
        session: A session.
        state: Only arrivals in this state.
        limit: Maximum number of rows.
        after: The number of the last arrival of the previous page.

    Returns:
        Rows of `continual arrivals`: arrival, task, state, priority, delta, error, attempts, holder, backbone,
        submitted_at.

    Raises:
        InputError: `state` is not a state.
    """
    if state not in (None, *get_args(PositionState)):
        raise InputError(f"no arrival is {state!r}; give one of {', '.join(get_args(PositionState))}.")
    query = select(Position, Delta.version).outerjoin(Delta, Delta.id == Position.delta_id)
    query = query.where(Position.stream_id == ARRIVAL_STREAM_ID.scalar_subquery())
    if state is not None:
        query = query.where(Position.state == state)
    page = paginate(query, Position.number, limit=limit, after=None if after is None else (after,))
    return [_listing(*row) for row in session.execute(page)]


def has_pending(session: Session, backbones: Collection[str]) -> bool:
    """Return True if an arrival for one of `backbones`, or for any, is claimable or being learned."""
    held_query = select(Position.id).where(
        Position.stream_id == ARRIVAL_STREAM_ID.scalar_subquery(),
        Position.state == HELD_STATE,
        or_(Position.backbone.is_(None), Position.backbone.in_(backbones)),
    )
    claimable_queries = (_claimable(backbone).with_only_columns(Position.id) for backbone in (None, *backbones))
    return any(session.scalar(query.limit(1)) is not None for query in (*claimable_queries, held_query))


def next_for_update(session: Session, backbones: Collection[str]) -> Position | None:
    """Lock and return the next arrival to learn on one of `backbones`, without waiting for locks.

    Tasks that are being learned are skipped, and so are tasks whose arrival another transaction has just locked.
    """
    skipped: list[str] = []
    while candidate := _peek_next(session, backbones, skipped=skipped):
        locked = select(Position).where(Position.id == candidate.id, text(CLAIMABLE)).with_for_update(skip_locked=True)
        if position := session.scalar(locked.execution_options(populate_existing=True)):
            return position
        skipped.append(candidate.task_name)
    return None


def _peek_next(session: Session, backbones: Collection[str], *, skipped: Collection[str]) -> Position | None:
    """Return the next arrival to learn, unlocked, so that others can claim the rows that were read."""
    sibling = aliased(Position)
    held_sibling = (
        sibling.stream_id == Position.stream_id,
        sibling.task_name == Position.task_name,
        sibling.state == HELD_STATE,
    )
    idle = [~select(sibling.id).where(*held_sibling).exists()]
    if skipped:
        idle.append(Position.task_name.not_in(skipped))
    candidates = (session.scalar(_claimable(backbone).where(*idle).limit(1)) for backbone in (None, *backbones))
    return min(
        filter(None, candidates),
        key=lambda arrival: (arrival.state == "failed", -arrival.priority, arrival.number),
        default=None,
    )


def cancel(session: Session, number: int) -> Sequence[str]:
    """Cancel an arrival; its holder loses the claim and learns of that at its next heartbeat.

    Returns:
        The digest of its checkpoint's blob, or nothing.

    Raises:
        NotFound: There is no such arrival.
        NothingToDo: It is learned or cancelled already.
    """
    arrival = arrival_row(session, number)
    if arrival.state in FINAL_STATES:
        raise NothingToDo(f"arrival {number} is {arrival.state} already. Archive or purge what was learned instead.")
    return cancel_and_forget(session, arrival)


def cancel_and_forget(session: Session, arrival: Position) -> Sequence[str]:
    """Cancel an arrival and delete its checkpoint; return the digest of the checkpoint's blob, or nothing."""
    arrival.state, arrival.retries, arrival.error = "cancelled", 0, None
    arrival.holder = arrival.lease_until = None
    return delete_checkpoint(session, arrival)


def retry(session: Session, number: int) -> None:
    """Queue a failed or cancelled arrival again, in its old place.

    Raises:
        NotFound: There is no such arrival, or its task was purged.
        NothingToDo: It is learned, waiting or being learned.
    """
    _lock_stream(session)  # blocks submissions, so that the later arrivals are known
    arrival = arrival_row(session, number)
    if arrival.state not in ("failed", "cancelled"):
        raise NothingToDo(f"arrival {number} is {arrival.state}: only what failed or was cancelled is tried again.")
    if arrival.spec is None:
        raise NotFound(f"arrival {number} was of a task that was purged: its file is not kept. Submit it again.")
    later_priorities = select(Position.priority).where(*_open_of_same_task(arrival), Position.number > number)
    arrival.priority = max([arrival.priority, *session.scalars(later_priorities)])
    arrival.state, arrival.attempts, arrival.error = "waiting", 0, None
    _raise_earlier_priorities(session, arrival)


def arrival_row(session: Session, number: int) -> Position:
    """Return an arrival, its row locked where the database locks rows.

    Raises:
        NotFound: There is no such arrival.
    """
    has_number = (Position.stream_id == ARRIVAL_STREAM_ID.scalar_subquery(), Position.number == number)
    arrival = session.scalar(select(Position).where(*has_number).with_for_update())
    if arrival is None:
        raise NotFound(f"there is no arrival {number}. `continual arrivals` lists them.")
    return arrival


def held_arrivals(session: Session) -> Iterator[Position]:
    """Yield the arrivals that are being learned."""
    yield from session.scalars(
        select(Position).where(Position.stream_id == ARRIVAL_STREAM_ID.scalar_subquery(), Position.state == HELD_STATE)
    )


def _lock_stream(session: Session) -> int:
    """Return the id of the arrivals' stream, locked so that numbers are assigned one at a time."""
    locked = ARRIVAL_STREAM_ID.with_for_update(key_share=True)
    stream_id = session.scalar(locked)
    if stream_id is None:
        lock_name(session, ARRIVAL_STREAM)
        stream_id = session.scalar(locked)
    if stream_id is None:
        row = Stream(name=ARRIVAL_STREAM, spec={}, digest="")
        session.add(row)
        session.flush()
        stream_id = row.id
    return stream_id


def _open_of_same_task(arrival: Position) -> tuple[ColumnElement[bool], ...]:
    """Return conditions for the arrivals of the same task that may still be learned, including by `retry`."""
    is_of_task = (Position.task_name == arrival.task_name, Position.submitted_at.is_not(None))
    return (*is_of_task, Position.state.not_in(FINAL_STATES))


def _raise_earlier_priorities(session: Session, arrival: Position) -> None:
    """Raise the priority of earlier arrivals of the same task to this one's, and disable their retries."""
    raised = case((Position.priority < arrival.priority, arrival.priority), else_=Position.priority)
    earlier = (*_open_of_same_task(arrival), Position.number < arrival.number)
    session.execute(update(Position).where(*earlier).values(priority=raised, retries=0))


def _claimable(backbone: str | None) -> Select[Position]:
    """Select the claimable arrivals for this backbone (None: for any backbone), in order of their turn."""
    fits_backbone: ColumnElement[bool] = (
        Position.backbone.is_(None) if backbone is None else Position.backbone == backbone
    )
    query = select(Position).where(
        Position.stream_id == ARRIVAL_STREAM_ID.scalar_subquery(), fits_backbone, text(CLAIMABLE)
    )
    # The backbone is constant here; ordering by it lets the database read the index in this order.
    order = (Position.backbone, Position.state.desc(), Position.priority.desc(), Position.number)
    return query.order_by(*order)


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
