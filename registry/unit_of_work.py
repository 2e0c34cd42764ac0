"""One unit of work: everything that is written in it is registered together, or nothing is."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, final

from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.orm import Session

from registry.blobs import BlobStore
from registry.errors import BlobError, ClaimLost, RegistryError
from registry.names import delta_name, escape_for_storage, validate_name
from registry.reads.lookups import backbone_row, delta_row, position_row, stream_row, task_row
from registry.records import (
    BackboneRecord,
    Contest,
    DeltaRecord,
    OutboxTopic,
    Parent,
    Score,
    SignatureRecord,
    TaskRecord,
)
from registry.redaction import redact
from registry.schema.connections import lock_name
from registry.schema.score_tables import Confusion, ScoreRow
from registry.schema.tables import (
    Backbone,
    Checkpoint,
    Delta,
    Lineage,
    OutboxRow,
    Position,
    Signature,
    Split,
    Stream,
    Task,
)
from registry.writes import streams
from registry.writes.champion_rules import register_status
from registry.writes.known_tasks import matching_tasks

NO_ROUTING: Mapping[tuple[str, str], int] = {}
SCORE_KEY = ("stream_id", "mode", "split", "metric", "step")  # at most one score of a delta in each


@final
class UnitOfWork:
    """What may be written to the registry; `Registry.unit()` opens one, commits it, and undoes it on any exception."""

    def __init__(self, session: Session, blobs: BlobStore) -> None:
        self.session = session
        self.blobs = blobs

    def add_backbone(self, record: BackboneRecord) -> None:
        """Registers a backbone; nothing happens where its fingerprint is known."""
        known = select(Backbone.id).where(Backbone.fingerprint == record.fingerprint)
        if self.session.scalar(known) is None:
            lock_name(self.session, record.fingerprint)
            if self.session.scalar(known) is None:
                self.session.add(Backbone(**asdict(record)))

    def add_task(self, record: TaskRecord) -> None:
        """Registers a task, or takes over its new rows, labels and spec.

        Raises: TaskChanged, where a known task has another kind or metric, or has lost labels.
        """
        name = validate_name("task", record.name)
        task = matching_tasks(self.session, [record]).get(record.name)
        if task is None:
            lock_name(self.session, record.name)
            task = matching_tasks(self.session, [record]).get(record.name)
        if task is None:  # one that was purged is learned anew under its old name
            purged = self.session.scalar(select(Task).where(Task.name == record.name))
            task = purged or Task(name=name)
            task.kind, task.metric, task.purged_at = record.kind, record.metric, None
            self.session.add(task)
        task.labels, task.spec = list(record.labels), record.spec
        task.fingerprints, task.rows = record.fingerprints, record.rows

    def begin_stream(
        self, name: str, *, backbone: str, spec: dict[str, Any], entries: Sequence[tuple[str, str]]
    ) -> None:
        """Begins a stream of (task name, recipe digest) entries, or goes on with it and appends the new ones.

        Raises: StreamChanged, where the backbone or an entry already known is another one; NotFound for the backbone.
        """
        if streams.begin_stream(self.session, name, backbone=backbone, spec=spec, entries=entries):
            self.enqueue_message("stream", name)

    def add_delta(
        self,
        record: DeltaRecord,
        *,
        parents: Iterable[Parent] = (),
        scores: Sequence[Score] = (),
        signature: SignatureRecord | None = None,
        score_split: str = "validation",
        contest: Contest | None = None,
        rival: str | None = None,
    ) -> str:
        """Registers the next version of a task's delta with all that belongs to it, and returns its name.

        It becomes champion unless the one that serves is better: in the `contest` that its caller held where both were
        learned from other rows, else by both scores on `score_split`. Then it stays a candidate, and says why. So it
        does where `rival` is better, a delta of another backbone that was learned from the same rows.
        Without a signature of its own it has that of the version before.
        Raises: NotFound for its task, backbone, parents or rival; BlobError, where a blob that it names is not stored.
        """
        own = (signature.digest, signature.routing) if signature else ()
        self.require_blobs(record.digest, record.predictions, record.replay, *own)
        origins = [(parent, delta_row(self.session, parent.delta).id) for parent in parents]
        delta = self._next_version(record)
        other = None if rival is None else delta_row(self.session, rival)
        register_status(self.session, delta, scores=scores, split=score_split, contest=contest, rival=other)
        for parent, origin in origins:
            values = {"kind": parent.kind, "weight": parent.weight, "score": parent.score, "gain": parent.gain}
            self.session.add(Lineage(child_id=delta.id, parent_id=origin, **values))
        self._add_splits(delta)
        self._add_scores(delta, scores, new=True)
        self.enqueue_message("delta", delta.name)
        if delta.status == "champion":
            self.enqueue_champion_change(delta.task)
        self._add_signature(delta, signature)
        return delta.name

    def require_blobs(self, *digests: str | None) -> None:
        """Raises BlobError where one of these is not stored: it may have been collected since it was put."""
        for digest in digests:
            if digest is not None and not self.blobs.exists(digest):
                raise BlobError(
                    f"blob {digest} is not stored at {redact(self.blobs.path(digest))}. Put it there first."
                )

    def add_scores(self, delta: str, scores: Iterable[Score]) -> None:
        """Adds scores to a delta; one measured again in the same place replaces the earlier."""
        added = tuple(scores)
        self._add_scores(delta_row(self.session, delta), added)
        for stream in {score.stream for score in added if score.stream}:
            self.enqueue_message("stream", stream)

    def add_routed_scores(
        self,
        stream: str,
        step: int,
        scores: Mapping[str, Sequence[Score]],
        *,
        sent: Mapping[tuple[str, str], int] = NO_ROUTING,
    ) -> bool:
        """Adds scores of the deltas learned up to position `step` of a stream, routed among just these.

        sent: how many test rows of a delta were sent to another, by the names of both.
        False, and nothing is added, where these are not the ones: another controller has learned one meanwhile.
        """
        locked = select(Stream.id).where(Stream.name == stream).with_for_update()  # who measures a stream queues here
        up_to = (Position.stream_id == self.session.scalar(locked), Position.number <= step)
        learned = select(Task.name, Delta.version).select_from(Position).join(Position.delta).join(Delta.task)
        learned = learned.where(Delta.status != "purged")
        if {delta_name(*pair) for pair in self.session.execute(learned.where(*up_to))} != scores.keys():
            return False
        for delta, found in scores.items():
            self.add_scores(delta, found)
        self._add_confusions(stream_row(self.session, stream).id, step, sent)
        return True

    def mark_learned(self, stream: str, number: int, *, delta: str, holder: str | None = None) -> None:
        """Marks a position as learned by `delta`; its checkpoint is not needed any more.

        Raises: ClaimLost, where `holder` lost it; RegistryError, where it is learned already, or the delta is of
        another task.
        """
        position, row = self._open_position(stream, number, holder=holder), delta_row(self.session, delta)
        if row.task.name != position.task_name:
            raise RegistryError(
                f"position {number} of {stream!r} is task {position.task_name!r}, and {delta} is of another one. "
                "Finish it with a delta of its own task."
            )
        position.state, position.task_id, position.delta_id = "learned", row.task_id, row.id
        position.holder = position.lease_until = position.error = None
        self.session.execute(delete(Checkpoint).where(Checkpoint.position_id == position.id))
        self._tell_stream(position, stream)

    def mark_failed(self, stream: str, number: int, *, error: str, holder: str | None = None) -> None:
        """Marks a position as failed, so that it can be taken up again.

        Raises: ClaimLost, where `holder` lost it; RegistryError, where it is learned already.
        """
        position = self._open_position(stream, number, holder=holder)
        position.state, position.error = "failed", escape_for_storage(error)
        position.holder = position.lease_until = None
        self._tell_stream(position, stream)

    def enqueue_message(self, message: OutboxTopic, subject: str, **about: Any) -> None:
        """Notes in the outbox what MLflow is to be told: of a delta or a stream by its name, else of a task by its."""
        self.session.add(OutboxRow(message=message, subject=subject, about=about))

    def enqueue_champion_change(self, task: Task) -> None:
        """Notes that another version serves a task, or none: that is told of it, and of the streams that learned it."""
        self.enqueue_message("champion", task.name)
        learned = select(Stream.name).join(Position).where(Position.task_id == task.id, Position.submitted_at.is_(None))
        for stream in self.session.scalars(learned.order_by(Stream.id)):
            self.enqueue_message("stream", stream)

    def set_mlflow_run(self, name: str, run: str) -> None:
        """Notes the MLflow run of a delta (`sst2@1`) or of a stream (any other name)."""
        find = delta_row if "@" in name else stream_row
        find(self.session, name).mlflow_run = run

    def _tell_stream(self, position: Position, stream: str) -> None:
        if position.submitted_at is None:  # of arrivals, which never end, MLflow is told one by one
            self.enqueue_message("stream", stream)

    def _next_version(self, record: DeltaRecord) -> Delta:
        task, backbone = task_row(self.session, record.task), backbone_row(self.session, record.backbone)
        self.session.refresh(task, with_for_update=True)  # whoever adds to this task next waits for our number
        last = self.session.scalar(select(func.max(Delta.version)).where(Delta.task_id == task.id))
        values = asdict(record) | {"task": task, "backbone": backbone, "labels": list(record.labels)}
        return Delta(version=(last or 0) + 1, **values)

    def _add_splits(self, delta: Delta) -> None:
        fingerprints, rows = (delta.data[key] if delta.data else {} for key in ("fingerprints", "rows"))
        for split, fingerprint in fingerprints.items():
            self.session.add(Split(delta_id=delta.id, split=split, fingerprint=fingerprint, rows=rows.get(split, 0)))

    def _add_scores(self, delta: Delta, scores: Iterable[Score], *, new: bool = False) -> None:
        rows: dict[tuple[object, ...], ScoreRow] = {}  # of one place the last
        streams: dict[str | None, int | None] = {None: None}
        for score in scores:
            values = asdict(score)
            name = values.pop("stream")
            if name not in streams:
                streams[name] = stream_row(self.session, name).id
            row = ScoreRow(delta_id=delta.id, task_id=delta.task_id, stream_id=streams[name], **values)
            rows[tuple(getattr(row, key) for key in SCORE_KEY)] = row
        if rows and not new:
            places = [
                and_(*(getattr(ScoreRow, key) == value for key, value in zip(SCORE_KEY, p, strict=True))) for p in rows
            ]
            self.session.execute(delete(ScoreRow).where(ScoreRow.delta_id == delta.id, or_(*places)))
        self.session.add_all(rows.values())

    def _add_signature(self, delta: Delta, own: SignatureRecord | None) -> None:
        if own is not None:
            self.session.add(Signature(delta_id=delta.id, **asdict(own)))
            return
        same = (Delta.task_id == delta.task_id, Delta.backbone_id == delta.backbone_id)
        before = select(Signature).join(Delta, Delta.id == Signature.delta_id).where(*same).order_by(Delta.id.desc())
        if last := self.session.scalar(before.limit(1)):
            about = {name: getattr(last, name) for name in SignatureRecord.__dataclass_fields__}
            self.session.add(Signature(delta_id=delta.id, **about))

    def _add_confusions(self, stream: int, step: int, sent: Mapping[tuple[str, str], int]) -> None:
        """Replaces what was counted at a step of a stream."""
        self.session.execute(delete(Confusion).where(Confusion.stream_id == stream, Confusion.step == step))
        ids = {name: delta_row(self.session, name).id for name in {name for pair in sent for name in pair}}
        self.session.add_all(
            Confusion(stream_id=stream, step=step, delta_id=ids[own], routed_to_id=ids[other], rows=rows)
            for (own, other), rows in sent.items()
        )

    def _open_position(self, stream: str, number: int, *, holder: str | None) -> Position:
        position = position_row(self.session, stream, number=number)
        if holder is not None and position.holder != holder:
            raise ClaimLost(
                f"position {number} of {stream!r} is held by {position.holder or 'nobody'}, no longer by {holder}: "
                "it was taken for dead. Claim it again."
            )
        if position.state == "learned":
            raise RegistryError(f"position {number} of {stream!r} is learned already. Keep what is there.")
        return position
