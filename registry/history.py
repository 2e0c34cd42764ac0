"""What happened to a task's deltas, written in the unit of work in which it happens."""

from sqlalchemy.orm import Session

from registry.names import stored_text
from registry.records import What
from registry.tables import Delta, Event


def note(session: Session, delta: Delta, what: What, *, reason: str | None = None) -> None:
    """Adds to the history that `what` happened to a delta that has its identity, and why."""
    session.add(Event(task_id=delta.task_id, delta_id=delta.id, what=what, reason=reason and stored_text(reason)))
