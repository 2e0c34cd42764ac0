"""The history of a task's deltas, written in the unit of work of each change."""

from sqlalchemy.orm import Session

from registry.names import escape_for_storage
from registry.records import EventKind
from registry.schema.tables import Delta, Event


def record_event(session: Session, delta: Delta, kind: EventKind, *, reason: str | None = None) -> None:
    """Add an event of `kind` to the history of a flushed delta."""
    session.add(
        Event(task_id=delta.task_id, delta_id=delta.id, what=kind, reason=reason and escape_for_storage(reason))
    )
