"""What happened to a task's deltas, written in the unit of work in which it happens."""

from sqlalchemy.orm import Session

from registry.names import escape_for_storage
from registry.records import EventKind
from registry.schema.tables import Delta, Event


def record_event(session: Session, delta: Delta, what: EventKind, *, reason: str | None = None) -> None:
    """Adds to the history that `what` happened to a delta that has its identity, and why."""
    session.add(
        Event(task_id=delta.task_id, delta_id=delta.id, what=what, reason=reason and escape_for_storage(reason))
    )
