"""The outbox: what MLflow has not been told yet, handed out to one sender at a time.

A message that is taken is held for a while, so that a sender that dies leaves it to the next. On one subject only the
oldest message is handed out: they are sent in order, and no two senders work on one subject.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import CheckConstraint, delete, select
from sqlalchemy.orm import Mapped, Session, aliased

from registry.base import Base, clock
from registry.errors import NotFound
from registry.holders import alive
from registry.lookups import delta_row
from registry.records import Message
from registry.registry import Registry
from registry.tables import Outbox
from registry.unit import Unit

LEASE = timedelta(minutes=10)  # longer than telling MLflow of the largest delta takes
SHORTEST, LONGEST = 2.0, 600.0  # seconds until a message that failed is tried again; doubled each time
LATEST = ("stream", "champion")  # told by looking at the registry: one look answers all that are waiting


class Identity(Base):
    """What others know this registry by, wherever its database lies; one row, made when it is first asked for."""

    __tablename__ = "identity"
    __table_args__ = (CheckConstraint("id = 1", name="single"),)

    name: Mapped[str]


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A message of the outbox: what MLflow is to be told, of what, and how often that was tried in vain before.

    error: why the last attempt failed · holder: who is sending it · due_at: when it may be tried next, or until when
    its holder has it.
    """

    id: int
    message: Message
    subject: str
    about: dict[str, Any]
    attempts: int
    error: str | None
    holder: str | None
    due_at: datetime


def waiting(registry: Registry) -> tuple[Pending, ...]:
    """All that MLflow has not been told yet, in the order in which it happened."""
    with registry.reading() as session:
        return tuple(_pending(row) for row in session.scalars(select(Outbox).order_by(Outbox.id)))


def take(registry: Registry, holder: str, *, after: int | None = None) -> Pending | None:
    """The next message that may be sent, held by `holder` from now on; None where there is none.

    after: take messages that are not due yet as well, but only those behind the one of this id.
    """
    with registry.unit() as unit:
        moment = clock(unit.session)
        _free_the_dead(unit.session, moment)
        older = aliased(Outbox)
        same = (older.message == Outbox.message, older.subject == Outbox.subject, older.id < Outbox.id)
        ready = Outbox.due_at <= moment if after is None else Outbox.id > after
        found = select(Outbox).where(Outbox.holder.is_(None), ready, ~select(older).where(*same).exists())
        row = unit.session.scalar(found.order_by(Outbox.id).limit(1).with_for_update(skip_locked=True, of=Outbox))
        if row is None:
            return None
        row.holder, row.due_at, row.attempts = holder, moment + LEASE, row.attempts + 1
        if row.message in LATEST:
            later = (Outbox.message == row.message, Outbox.subject == row.subject, Outbox.id > row.id)
            unit.session.execute(delete(Outbox).where(*later))
        return _pending(row)


def settle(unit: Unit, sent: Pending) -> bool:
    """Removes a message that MLflow was told; False where another sender has taken it meanwhile."""
    row = _held(unit.session, sent)
    if row is not None:
        unit.session.delete(row)
    return row is not None


def postpone(registry: Registry, failed: Pending, *, error: str) -> None:
    """Gives a message back that could not be sent, to be tried again after a while that grows with every attempt."""
    with registry.unit() as unit:
        if row := _held(unit.session, failed):
            wait = min(LONGEST, SHORTEST * 2.0 ** min(failed.attempts - 1, 20))
            row.holder, row.error, row.due_at = None, error, clock(unit.session) + timedelta(seconds=wait)


def is_purged(unit: Unit, delta: str) -> bool:
    """Whether nothing is left of a delta but, perhaps, its place in the lineage."""
    try:
        return delta_row(unit.session, delta).digest is None
    except NotFound:
        return True


def identity(registry: Registry) -> str:
    """What others know this registry by: the same for ever, wherever its database is moved."""
    with registry.unit() as unit:
        row = unit.session.get(Identity, 1)
        if row is None:
            row = Identity(id=1, name=uuid4().hex)
            unit.session.add(row)
        return row.name


def _free_the_dead(session: Session, moment: datetime) -> None:
    held = select(Outbox).where(Outbox.holder.is_not(None)).with_for_update(skip_locked=True)
    for row in session.scalars(held):
        leased = moment <= row.due_at
        if not (leased and alive(row.holder or "", leased=leased)):
            row.holder, row.due_at = None, moment
    session.flush()


def _held(session: Session, pending: Pending) -> Outbox | None:
    """The row, where it is still held as it was when it was taken."""
    row = session.get(Outbox, pending.id, with_for_update=True)
    return row if row and (row.holder, row.attempts) == (pending.holder, pending.attempts) else None


def _pending(row: Outbox) -> Pending:
    values: Iterator[tuple[str, Any]] = ((name, getattr(row, name)) for name in Pending.__dataclass_fields__)
    return Pending(**dict(values))
