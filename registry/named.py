"""Which blobs the rows name: what must be there, and what may not be collected."""

from collections.abc import Iterator

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.names import delta_name
from registry.tables import Checkpoint, Delta, Position, Signature, Stream, Task


def named_blobs(session: Session) -> Iterator[tuple[str, str]]:
    """Every digest that a row names, with whose it is."""
    own = {"values": Delta.digest, "predictions": Delta.predictions, "replay": Delta.replay}
    named = select(Task.name, Delta.version, *own.values()).select_from(Delta).join(Task, Task.id == Delta.task_id)
    for task, version, *digests in session.execute(named.order_by(Delta.id)):
        for part, digest in zip(own, digests, strict=True):
            if digest is not None:
                yield f"{delta_name(task, version)}, its {part}", digest
    signed = select(Task.name, Signature.digest).join(Task, Task.id == Signature.task_id).order_by(Signature.id)
    for task, digest in session.execute(signed):
        yield f"task {task}, its signature", digest
    begun = select(Stream.name, Position.number, Checkpoint.digest).select_from(Checkpoint)
    begun = begun.join(Position, Position.id == Checkpoint.position_id).join(Stream, Stream.id == Position.stream_id)
    for stream, number, digest in session.execute(begun.order_by(Checkpoint.id)):
        yield f"stream {stream}, position {number}, its checkpoint", digest
