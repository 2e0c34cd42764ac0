"""What is wrong with a registry: damage that no constraint could keep out. Nothing is mended here."""

from collections.abc import Iterator

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from registry.base import Base
from registry.blobs import Blobs
from registry.errors import BlobError
from registry.lookups import own_score
from registry.named import named_blobs
from registry.names import delta_name
from registry.records import IMPORTED
from registry.registry import Registry
from registry.tables import Backbone, Delta, Position, ScoreRow, Stream, Task


def verify(registry: Registry) -> list[str]:
    """One sentence for each thing that is wrong; empty where nothing is. Reads every blob."""
    with registry.reading() as session:
        return [
            *_dangling(session),
            *_rivals(session),
            *_unlearned(session),
            *_unscored(session),
            *_damaged(session, registry.blobs),
        ]


def _dangling(session: Session) -> Iterator[str]:
    """Rows whose foreign key points nowhere; possible where a tool wrote with foreign keys switched off."""
    for table in Base.metadata.sorted_tables:
        for key in sorted(table.foreign_keys, key=lambda key: key.parent.name):
            target = key.column.table.alias()
            lost = select(table.c.id, key.parent).outerjoin(target, target.c.id == key.parent)
            for identity, missing in session.execute(lost.where(key.parent.is_not(None), target.c.id.is_(None))):
                yield f"{table.name} row {identity}: {key.parent.name} {missing} is no row of {key.column.table.name}"


def _rivals(session: Session) -> Iterator[str]:
    """Tasks with more than one champion on a backbone."""
    pairs = select(Task.name, Backbone.name, func.count()).select_from(Delta).join(Delta.task).join(Delta.backbone)
    several = pairs.where(Delta.status == "champion").group_by(Task.id, Backbone.id).having(func.count() > 1)
    for task, backbone, champions in session.execute(several.order_by(Task.name)):
        yield f"task {task}: {champions} champions on backbone {backbone}, where one may serve"


def _unlearned(session: Session) -> Iterator[str]:
    """Positions marked as learned that name no delta."""
    empty = select(Stream.name, Position.number, Position.task_name).join(Stream, Stream.id == Position.stream_id)
    empty = empty.where(Position.state == "learned", Position.delta_id.is_(None)).order_by(Position.id)
    for stream, number, task in session.execute(empty):
        yield f"stream {stream}, position {number}: {task} is marked as learned, but names no delta"


def _unscored(session: Session) -> Iterator[str]:
    """Deltas learned here without a score on the test split with the task known."""
    pairs = select(Task.name, Delta.version).select_from(Delta).join(Task, Task.id == Delta.task_id)
    measured = pairs.outerjoin(ScoreRow, and_(ScoreRow.delta_id == Delta.id, *own_score("test")))
    missing = measured.where(ScoreRow.id.is_(None), Delta.warm_start != IMPORTED, Delta.status != "purged")
    for pair in session.execute(missing.order_by(Delta.id)):
        yield f"{delta_name(*pair)}: no oracle score on the test split"


def _damaged(session: Session, blobs: Blobs) -> Iterator[str]:
    """Blobs that a row names and that are missing, or have other bytes."""
    for owner, digest in named_blobs(session):
        try:
            blobs.get(digest)
        except BlobError as error:
            yield f"{owner}: {error}"
