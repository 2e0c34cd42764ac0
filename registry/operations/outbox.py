"""The outbox: messages for MLflow that are not sent yet, handed to one sender at a time.

A claimed message is leased, so that another sender continues if its holder dies. Only the oldest message of a subject
is handed out: messages of a subject are sent in order, and never by two senders at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, delete, select, update
from sqlalchemy.orm import Session, aliased

from registry.errors import NotFound
from registry.holders import is_alive
from registry.ownership import ensure_identity
from registry.reads.lookups import delta_name_expression, delta_row, is_champion
from registry.records import OutboxTopic
from registry.registry import Registry
from registry.schema.base import database_now
from registry.schema.strategy_tables import StrategyRun
from registry.schema.tables import Delta, OutboxRow, Stream, Task
from registry.unit_of_work import UnitOfWork

SEND_LEASE = timedelta(minutes=10)  # longer than sending the largest delta takes
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 2.0, 600.0  # delay after a failure, doubled each time
RUN_OWNERS = (Delta, Stream, StrategyRun)  # tables whose rows note a run of MLflow
COALESCED_MESSAGES = ("stream", "champion")  # sent from the registry's present state: one covers all later ones


@dataclass(frozen=True, kw_only=True)
class OutboxMessage:
    """A message for MLflow.

    Attributes:
        id: Increases in order of enqueuing.
        message: The topic.
        subject: Name of a delta, a stream or a task.
        about: Details that the sender cannot read from the registry.
        attempts: How many times sending was started.
        error: Message of the last failure.
        holder: The sender that holds it.
        due_at: Earliest time of the next attempt; while held, the end of the lease.
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
    """Return all unsent messages, oldest first."""
    with registry.read_session() as session:
        return tuple(_to_message(row) for row in session.scalars(select(OutboxRow).order_by(OutboxRow.id)))


def claim_message(registry: Registry, holder: str, *, after: int | None = None) -> OutboxMessage | None:
    """Claim the next message for `holder`; later messages it makes redundant are deleted.

    Args:
        registry: The registry.
        holder: The sender.
        after: Only messages with a higher id, and also those not due yet.

    Returns:
        The message; None if there is none.
    """
    with registry.unit_of_work() as unit:
        moment = database_now(unit.session)
        _release_dead_holders(unit.session, moment)
        older = aliased(OutboxRow)
        same_subject = (older.message == OutboxRow.message, older.subject == OutboxRow.subject, older.id < OutboxRow.id)
        is_ready = OutboxRow.due_at <= moment if after is None else OutboxRow.id > after
        query = select(OutboxRow).where(
            OutboxRow.holder.is_(None), is_ready, ~select(older).where(*same_subject).exists()
        )
        row = unit.session.scalar(query.order_by(OutboxRow.id).limit(1).with_for_update(skip_locked=True, of=OutboxRow))
        if row is None:
            return None
        row.holder, row.due_at, row.attempts = holder, moment + SEND_LEASE, row.attempts + 1
        if row.message in COALESCED_MESSAGES:
            is_later = (OutboxRow.message == row.message, OutboxRow.subject == row.subject, OutboxRow.id > row.id)
            unit.session.execute(delete(OutboxRow).where(*is_later))
        return _to_message(row)


def delete_sent(unit: UnitOfWork, sent: OutboxMessage) -> bool:
    """Delete a sent message; return False if another sender has claimed it since."""
    row = _held_row(unit.session, sent)
    if row is not None:
        unit.session.delete(row)
    return row is not None


def reschedule(registry: Registry, failed: OutboxMessage, *, error: str) -> None:
    """Release a message that could not be sent, with exponential backoff.

    Args:
        registry: The registry.
        failed: The claimed message.
        error: The failure's message.
    """
    with registry.unit_of_work() as unit:
        if row := _held_row(unit.session, failed):
            delay = min(MAX_RETRY_SECONDS, MIN_RETRY_SECONDS * 2.0 ** min(failed.attempts - 1, 20))
            row.holder, row.error, row.due_at = None, error, database_now(unit.session) + timedelta(seconds=delay)


def has_sent_runs(session: Session) -> bool:
    """Return whether the registry notes an MLflow run of anything."""
    return any(session.scalar(select(table.id).where(table.mlflow_run.is_not(None)).limit(1)) for table in RUN_OWNERS)


def resend_all(unit: UnitOfWork) -> None:
    """Forget all MLflow runs, and enqueue everything that MLflow shows: for a new store in the place of a lost one."""
    session = unit.session
    for table in RUN_OWNERS:
        session.execute(update(table).where(table.mlflow_run.is_not(None)).values(mlflow_run=None))
    serving = select(Delta.id).where(Delta.task_id == Task.id, is_champion())
    names_by_topic: dict[OutboxTopic, Select[str]] = {
        "stream": select(Stream.name).where(Stream.backbone_id.is_not(None)).order_by(Stream.id),
        "delta": select(delta_name_expression(Task, Delta))
        .where(Task.id == Delta.task_id, Delta.status != "purged")
        .order_by(Delta.id),
        "champion": select(Task.name).where(serving.exists()).order_by(Task.id),
    }
    pending = {(row.message, row.subject) for row in session.scalars(select(OutboxRow))}
    for topic, names in names_by_topic.items():
        for name in session.scalars(names).all():
            if (topic, name) not in pending:
                unit.enqueue_message(topic, name)


def is_purged(unit: UnitOfWork, delta: str) -> bool:
    """Return True if the delta was purged or deleted."""
    try:
        return delta_row(unit.session, delta).digest is None
    except NotFound:
        return True


def registry_identity(registry: Registry) -> str:
    """Return the registry's id, constant wherever its database is moved; created on first use."""
    with registry.unit_of_work() as unit:
        return ensure_identity(unit.session)


def _release_dead_holders(session: Session, moment: datetime) -> None:
    held_rows = select(OutboxRow).where(OutboxRow.holder.is_not(None)).with_for_update(skip_locked=True)
    for row in session.scalars(held_rows):
        lease_valid = moment <= row.due_at
        if not (lease_valid and is_alive(row.holder or "", lease_valid=lease_valid)):
            row.holder, row.due_at = None, moment
    session.flush()


def _held_row(session: Session, pending: OutboxMessage) -> OutboxRow | None:
    """Return the message's row if it is still held by the same claim."""
    row = session.get(OutboxRow, pending.id, with_for_update=True)
    return row if row and (row.holder, row.attempts) == (pending.holder, pending.attempts) else None


def _to_message(row: OutboxRow) -> OutboxMessage:
    values: Iterator[tuple[str, Any]] = ((name, getattr(row, name)) for name in OutboxMessage.__dataclass_fields__)
    return OutboxMessage(**dict(values))
