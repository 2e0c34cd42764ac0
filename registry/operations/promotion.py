"""Changing by hand which version serves, with the reason in the history."""

from registry.errors import NothingToDo
from registry.reads.lookups import delta_row
from registry.registry import Registry
from registry.schema.tables import Delta
from registry.unit_of_work import UnitOfWork
from registry.writes.champion_rules import promote
from registry.writes.events import record_event


def promote_delta(registry: Registry, delta: str, *, reason: str | None = None) -> None:
    """Make a version the champion regardless of scores; the champion that it replaces is archived.

    Args:
        registry: The registry.
        delta: The version's name.
        reason: For the history.

    Raises:
        NotFound: There is no such delta, or it was purged.
        NothingToDo: It is the champion already.
    """
    with registry.unit_of_work() as unit:
        row = _lock_delta(unit, delta)
        if row.status == "champion":
            raise NothingToDo(f"{delta} serves already. Nothing was changed.")
        promote(unit.session, row, reason=reason)
        unit.enqueue_champion_change(row.task)


def archive_delta(registry: Registry, delta: str, *, reason: str | None = None) -> None:
    """Archive a version; if it was the champion, no version serves its task on that backbone.

    Args:
        registry: The registry.
        delta: The version's name.
        reason: For the history.

    Raises:
        NotFound: There is no such delta, or it was purged.
        NothingToDo: It is archived already.
    """
    with registry.unit_of_work() as unit:
        row = _lock_delta(unit, delta)
        if row.status == "archived":
            raise NothingToDo(f"{delta} is archived already: {row.reason}. Nothing was changed.")
        was_champion = row.status == "champion"
        row.status, row.reason = "archived", f"archived: {reason}" if reason else "archived by hand"
        record_event(unit.session, row, "archived", reason=reason)
        if was_champion:
            unit.enqueue_champion_change(row.task)


def _lock_delta(unit: UnitOfWork, name: str) -> Delta:
    """Return the row of a delta that was not purged, with its task locked against concurrent decisions."""
    row = delta_row(unit.session, name)
    unit.session.refresh(row.task, with_for_update=True)
    unit.session.refresh(row)
    assert row.values  # raises NotFound for a tombstone
    return row
