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

from registry.errors import NotFound
from registry.holders import is_alive
from registry.reads.lookups import delta_row
from registry.records import OutboxTopic
from registry.registry import Registry
from registry.schema.base import Base, database_now
from registry.schema.tables import OutboxRow
from registry.unit_of_work import UnitOfWork

SEND_LEASE = timedelta(minutes=10)  # longer than telling MLflow of the largest delta takes
SHORTEST, LONGEST = 2.0, 600.0  # seconds until a message that failed is tried again; doubled each time
COALESCED_MESSAGES = ("stream", "champion")  # told by looking at the registry: one look answers all that are waiting


class RegistryIdentity(Base):
    """What others know this registry by, wherever its database lies; one row, made when it is first asked for."""

    __tablename__ = "identity"
    __table_args__ = (CheckConstraint("id = 1", name="single"),)

    name: Mapped[str]


@dataclass(frozen=True, kw_only=True)
class OutboxMessage:
    """A message of the outbox: what MLflow is to be told, of what, and how often that was tried in vain before.

    error: why the last attempt failed · holder: who is sending it · due_at: when it may be tried next, or until when
    its holder has it.
    """

    id: int
    message: OutboxTopic
    subject: str
    about: dict[str, Any]
    attempts: int
    error: str | None
    holder: str | None
    due_at: datetime


def list_pending(registry: Registry) -> tuple[OutboxMessage, ...]:
    """All that MLflow has not been told yet, in the order in which it happened."""
    with registry.read_session() as session:
        return tuple(_pending(row) for row in session.scalars(select(OutboxRow).order_by(OutboxRow.id)))


def claim_message(registry: Registry, holder: str, *, after: int | None = None) -> OutboxMessage | None:
    """The next message that may be sent, held by `holder` from now on; None where there is none.

    after: take messages that are not due yet as well, but only those behind the one of this id.
    """
    with registry.unit_of_work() as unit:
        moment = database_now(unit.session)
        _free_the_dead(unit.session, moment)
        older = aliased(OutboxRow)
        same = (older.message == OutboxRow.message, older.subject == OutboxRow.subject, older.id < OutboxRow.id)
        ready = OutboxRow.due_at <= moment if after is None else OutboxRow.id > after
        found = select(OutboxRow).where(OutboxRow.holder.is_(None), ready, ~select(older).where(*same).exists())
        row = unit.session.scalar(found.order_by(OutboxRow.id).limit(1).with_for_update(skip_locked=True, of=OutboxRow))
        if row is None:
            return None
        row.holder, row.due_at, row.attempts = holder, moment + SEND_LEASE, row.attempts + 1
        if row.message in COALESCED_MESSAGES:
            later = (OutboxRow.message == row.message, OutboxRow.subject == row.subject, OutboxRow.id > row.id)
            unit.session.execute(delete(OutboxRow).where(*later))
        return _pending(row)


def delete_sent(unit: UnitOfWork, sent: OutboxMessage) -> bool:
    """Removes a message that MLflow was told; False where another sender has taken it meanwhile."""
    row = _held(unit.session, sent)
    if row is not None:
        unit.session.delete(row)
    return row is not None


def reschedule(registry: Registry, failed: OutboxMessage, *, error: str) -> None:
    """Gives a message back that could not be sent, to be tried again after a while that grows with every attempt."""
    with registry.unit_of_work() as unit:
        if row := _held(unit.session, failed):
            wait = min(LONGEST, SHORTEST * 2.0 ** min(failed.attempts - 1, 20))
            row.holder, row.error, row.due_at = None, error, database_now(unit.session) + timedelta(seconds=wait)


def is_purged(unit: UnitOfWork, delta: str) -> bool:
    """Whether nothing is left of a delta but, perhaps, its place in the lineage."""
    try:
        return delta_row(unit.session, delta).digest is None
    except NotFound:
        return True


def registry_identity(registry: Registry) -> str:
    """What others know this registry by: the same for ever, wherever its database is moved."""
    with registry.unit_of_work() as unit:
        row = unit.session.get(RegistryIdentity, 1)
        if row is None:
            row = RegistryIdentity(id=1, name=uuid4().hex)
            unit.session.add(row)
        return row.name


def _free_the_dead(session: Session, moment: datetime) -> None:
    held = select(OutboxRow).where(OutboxRow.holder.is_not(None)).with_for_update(skip_locked=True)
    for row in session.scalars(held):
        leased = moment <= row.due_at
        if not (leased and is_alive(row.holder or "", leased=leased)):
            row.holder, row.due_at = None, moment
    session.flush()


def _held(session: Session, pending: OutboxMessage) -> OutboxRow | None:
    """The row, where it is still held as it was when it was taken."""
    row = session.get(OutboxRow, pending.id, with_for_update=True)
    return row if row and (row.holder, row.attempts) == (pending.holder, pending.attempts) else None


def _pending(row: OutboxRow) -> OutboxMessage:
    values: Iterator[tuple[str, Any]] = ((name, getattr(row, name)) for name in OutboxMessage.__dataclass_fields__)
    return OutboxMessage(**dict(values))
