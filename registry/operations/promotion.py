"""Who serves, decided by hand: what the scores decided may be changed, and the history says why."""

from registry.errors import NothingToDo
from registry.reads.lookups import delta_row
from registry.registry import Registry
from registry.schema.tables import Delta
from registry.unit_of_work import UnitOfWork
from registry.writes.champion_rules import promote
from registry.writes.events import record_event


def promote_delta(registry: Registry, delta: str, *, reason: str | None = None) -> None:
    """Lets a version serve whatever its scores; the champion that it succeeds is archived.

    Raises: NotFound, also for one that was purged; NothingToDo, where it serves already.
    """
    with registry.unit_of_work() as unit:
        row = _kept(unit, delta)
        if row.status == "champion":
            raise NothingToDo(f"{delta} serves already. Nothing was changed.")
        promote(unit.session, row, reason=reason)
        unit.enqueue_champion_change(row.task)


def archive_delta(registry: Registry, delta: str, *, reason: str | None = None) -> None:
    """Takes a version out of service; where it was the champion, its task is served by none on that backbone.

    Raises: NotFound, also for one that was purged; NothingToDo, where it is archived already.
    """
    with registry.unit_of_work() as unit:
        row = _kept(unit, delta)
        if row.status == "archived":
            raise NothingToDo(f"{delta} is archived already: {row.reason}. Nothing was changed.")
        served = row.status == "champion"
        row.status, row.reason = "archived", f"archived: {reason}" if reason else "archived by hand"
        record_event(unit.session, row, "archived", reason=reason)
        if served:
            unit.enqueue_champion_change(row.task)


def _kept(unit: UnitOfWork, name: str) -> Delta:
    """The row of a delta that still has its values, with its task locked against whoever else decides."""
    row = delta_row(unit.session, name)
    unit.session.refresh(row.task, with_for_update=True)
    unit.session.refresh(row)
    assert row.values  # raises NotFound of a tombstone
    return row
