"""The unit of work: everything written in it is committed together, or nothing is."""

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
    DataRecord,
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
from registry.writes.checkpoints import delete_checkpoint
from registry.writes.known_tasks import matching_tasks
from registry.writes.stream_changes import NO_DATA

NO_CONFUSIONS: Mapping[tuple[str, str], int] = {}
SCORE_KEY = ("stream_id", "mode", "split", "metric", "step")  # at most one score of a delta in each


@final
class UnitOfWork:
    """The write operations of the registry, in one transaction; opened by `Registry.unit_of_work()`.

    Attributes:
        session: The transaction's session.
        blobs: The blob store.
        dropped_blobs: Digests that a deleted or changed row referenced.
    """

    def __init__(self, session: Session, blobs: BlobStore) -> None:
        self.session = session
        self.blobs = blobs
        self.dropped_blobs: set[str] = set()

    def add_backbone(self, record: BackboneRecord) -> None:
        """Register a backbone, unless its fingerprint is registered."""
        backbone_id = select(Backbone.id).where(Backbone.fingerprint == record.fingerprint)
        if self.session.scalar(backbone_id) is None:
            lock_name(self.session, record.fingerprint)
            if self.session.scalar(backbone_id) is None:
                self.session.add(Backbone(**asdict(record)))

    def add_task(self, record: TaskRecord) -> None:
        """Register a task, or update the rows, labels and spec of a registered one.

        Raises:
            TaskChanged: A registered task has another kind or metric, or has lost labels.
        """
        name = validate_name("task", record.name)
        task = matching_tasks(self.session, [record]).get(record.name)
        if task is None:
            lock_name(self.session, record.name)
            task = matching_tasks(self.session, [record]).get(record.name)
        if task is None:  # a purged task is reused under its old name
            purged = self.session.scalar(select(Task).where(Task.name == record.name))
            task = purged or Task(name=name)
            task.kind, task.metric, task.purged_at = record.kind, record.metric, None
            self.session.add(task)
        task.labels, task.spec = list(record.labels), record.spec
        task.fingerprints, task.rows = record.fingerprints, record.rows

    def set_route(self, routes: Mapping[str, bool | None]) -> None:
        """Set whether the router may choose tasks, by name; tasks that are not registered are left out."""
        for task in self.session.scalars(select(Task).where(Task.name.in_(routes), Task.purged_at.is_(None))):
            route, others = routes[task.name], {key: value for key, value in task.spec.items() if key != "route"}
            if task.spec.get("route") != route:
                task.spec = others if route is None else others | {"route": route}

    def begin_stream(
        self,
        name: str,
        *,
        backbone: str,
        spec: dict[str, Any],
        entries: Sequence[tuple[str, str]],
        data: Mapping[str, DataRecord] = NO_DATA,
    ) -> None:
        """Register a stream, or append new entries to a registered one.

        Args:
            name: The stream's name.
            backbone: The backbone's fingerprint.
            spec: The stream file as JSON.
            entries: Pairs (task name, recipe digest), in order.
            data: By task, where its rows come from, so that an error can say what differs.

        Raises:
            StreamChanged: The backbone or a recorded entry differs.
            NotFound: The backbone is not registered.
        """
        if streams.begin_stream(self.session, name, backbone=backbone, spec=spec, entries=entries, data=data):
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
        """Register the next version of a task's delta with its lineage, scores and signature.

        It becomes champion unless the present champion is better: in `contest`, if the two were learned from different
        rows, otherwise by both scores on `score_split`. Then, or if `rival` is better, it stays a candidate with a
        reason.

        Args:
            record: The delta; its blobs must be stored.
            parents: The deltas it was derived from.
            scores: Its scores.
            signature: By default the previous version's.
            score_split: The held-out split whose scores decide.
            contest: Comparisons of the delta and the champion on the same rows.
            rival: Name of a delta of another backbone, learned from the same rows.

        Returns:
            The delta's public name.

        Raises:
            NotFound: Its task, backbone, a parent or the rival is not registered.
            BlobError: One of its blobs is not stored.
        """
        signature_blobs = (signature.digest, signature.routing) if signature else ()
        self.require_blobs(record.digest, record.predictions, record.replay, *signature_blobs)
        origins = [(parent, delta_row(self.session, parent.delta).id) for parent in parents]
        delta = self._next_version(record)
        rival_row = None if rival is None else delta_row(self.session, rival)
        register_status(self.session, delta, scores=scores, split=score_split, contest=contest, rival=rival_row)
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
        """Check that blobs are stored: they may have been collected since they were put.

        Raises:
            BlobError: One of `digests` is missing; None is ignored.
        """
        for digest in digests:
            if digest is not None and not self.blobs.exists(digest):
                raise BlobError(
                    f"blob {digest} is not stored at {redact(self.blobs.path(digest))}. Put it there first."
                )

    def drop_blobs(self, digests: Iterable[str | None]) -> None:
        """Delete blobs after the commit, those that no other row references; None is ignored."""
        self.dropped_blobs.update(digest for digest in digests if digest is not None)

    def add_scores(self, delta: str, scores: Iterable[Score]) -> None:
        """Add scores to a delta; a score with the same stream, mode, split, metric and step is replaced."""
        rows = tuple(scores)
        self._add_scores(delta_row(self.session, delta), rows)
        for stream in {score.stream for score in rows if score.stream}:
            self.enqueue_message("stream", stream)

    def add_routed_scores(
        self,
        stream: str,
        step: int,
        scores: Mapping[str, Sequence[Score]],
        *,
        confusions: Mapping[tuple[str, str], int] = NO_CONFUSIONS,
    ) -> bool:
        """Add scores measured by routing among the deltas learned up to position `step` of a stream.

        Args:
            stream: The stream's name.
            step: The position.
            scores: By delta; its keys must be all deltas learned up to `step`.
            confusions: Number of a delta's test rows routed to another, by (delta, routed to).

        Returns:
            False, with nothing added, if other deltas are learned up to `step` by now.
        """
        locked = select(Stream.id).where(Stream.name == stream).with_for_update()  # serialises measuring a stream
        in_prefix = (Position.stream_id == self.session.scalar(locked), Position.number <= step)
        learned = select(Task.name, Delta.version).select_from(Position).join(Position.delta).join(Delta.task)
        learned = learned.where(Delta.status != "purged")
        if {delta_name(*pair) for pair in self.session.execute(learned.where(*in_prefix))} != scores.keys():
            return False
        for delta, delta_scores in scores.items():
            self.add_scores(delta, delta_scores)
        self._add_confusions(stream_row(self.session, stream).id, step, confusions)
        return True

    def mark_learned(self, stream: str, number: int, *, delta: str, holder: str | None = None) -> None:
        """Mark a position as learned by `delta`, and delete its checkpoint.

        Args:
            stream: The stream's name.
            number: The position's number.
            delta: The learned delta's name.
            holder: Checked to be the position's holder, unless None.

        Raises:
            ClaimLost: `holder` no longer holds the position.
            RegistryError: It is learned already, or the delta is of another task.
        """
        position, row = self._open_position(stream, number, holder=holder), delta_row(self.session, delta)
        if row.task.name != position.task_name:
            raise RegistryError(
                f"position {number} of {stream!r} is task {position.task_name!r}, and {delta} is of another one. "
                "Finish it with a delta of its own task."
            )
        position.state, position.task_id, position.delta_id = "learned", row.task_id, row.id
        position.holder = position.lease_until = position.error = None
        self.drop_blobs(delete_checkpoint(self.session, position))
        self._enqueue_stream(position, stream)

    def mark_failed(self, stream: str, number: int, *, error: str, holder: str | None = None) -> None:
        """Mark a position as failed, so that it can be claimed again.

        Args:
            stream: The stream's name.
            number: The position's number.
            error: The failure's message.
            holder: Checked to be the position's holder, unless None.

        Raises:
            ClaimLost: `holder` no longer holds the position.
            RegistryError: It is learned already.
        """
        position = self._open_position(stream, number, holder=holder)
        position.state, position.error = "failed", escape_for_storage(error)
        position.holder = position.lease_until = None
        self._enqueue_stream(position, stream)

    def enqueue_message(self, message: OutboxTopic, subject: str, **about: Any) -> None:
        """Add a message for MLflow to the outbox.

        Args:
            message: The topic.
            subject: Name of a delta, a stream, or (for other topics) a task.
            **about: Details that the sender cannot read from the registry later.
        """
        self.session.add(OutboxRow(message=message, subject=subject, about=about))

    def enqueue_champion_change(self, task: Task) -> None:
        """Enqueue messages for a task whose champion changed, and for the streams that learned it."""
        self.enqueue_message("champion", task.name)
        learned = select(Stream.name).join(Position).where(Position.task_id == task.id, Position.submitted_at.is_(None))
        for stream in self.session.scalars(learned.order_by(Stream.id)):
            self.enqueue_message("stream", stream)

    def set_mlflow_run(self, name: str, run: str) -> None:
        """Store the MLflow run of a delta (`sst2@1`) or of a stream (any other name)."""
        find_row = delta_row if "@" in name else stream_row
        find_row(self.session, name).mlflow_run = run

    def _enqueue_stream(self, position: Position, stream: str) -> None:
        if position.submitted_at is None:  # the stream of arrivals never ends: each has its own message
            self.enqueue_message("stream", stream)

    def _next_version(self, record: DeltaRecord) -> Delta:
        task, backbone = task_row(self.session, record.task), backbone_row(self.session, record.backbone)
        self.session.refresh(task, with_for_update=True)  # concurrent writers to this task wait for this version
        last_version = self.session.scalar(select(func.max(Delta.version)).where(Delta.task_id == task.id))
        values = asdict(record) | {"task": task, "backbone": backbone, "labels": list(record.labels)}
        return Delta(version=(last_version or 0) + 1, **values)

    def _add_splits(self, delta: Delta) -> None:
        fingerprints, rows = (delta.data[key] if delta.data else {} for key in ("fingerprints", "rows"))
        for split, fingerprint in fingerprints.items():
            self.session.add(Split(delta_id=delta.id, split=split, fingerprint=fingerprint, rows=rows.get(split, 0)))

    def _add_scores(self, delta: Delta, scores: Iterable[Score], *, new: bool = False) -> None:
        rows: dict[tuple[object, ...], ScoreRow] = {}  # by key: the last one wins
        stream_ids: dict[str | None, int | None] = {None: None}
        for score in scores:
            values = asdict(score)
            name = values.pop("stream")
            if name not in stream_ids:
                stream_ids[name] = stream_row(self.session, name).id
            row = ScoreRow(delta_id=delta.id, task_id=delta.task_id, stream_id=stream_ids[name], **values)
            rows[tuple(getattr(row, column) for column in SCORE_KEY)] = row
        if rows and not new:
            conditions = [
                and_(*(getattr(ScoreRow, column) == value for column, value in zip(SCORE_KEY, key, strict=True)))
                for key in rows
            ]
            self.session.execute(delete(ScoreRow).where(ScoreRow.delta_id == delta.id, or_(*conditions)))
        self.session.add_all(rows.values())

    def _add_signature(self, delta: Delta, record: SignatureRecord | None) -> None:
        if record is not None:
            self.session.add(Signature(delta_id=delta.id, **asdict(record)))
            return
        same_task = (Delta.task_id == delta.task_id, Delta.backbone_id == delta.backbone_id)
        earlier = (
            select(Signature).join(Delta, Delta.id == Signature.delta_id).where(*same_task).order_by(Delta.id.desc())
        )
        if previous := self.session.scalar(earlier.limit(1)):
            values = {name: getattr(previous, name) for name in SignatureRecord.__dataclass_fields__}
            self.session.add(Signature(delta_id=delta.id, **values))

    def _add_confusions(self, stream_id: int, step: int, confusions: Mapping[tuple[str, str], int]) -> None:
        """Replace the confusions of a stream's step."""
        self.session.execute(delete(Confusion).where(Confusion.stream_id == stream_id, Confusion.step == step))
        ids = {name: delta_row(self.session, name).id for name in {name for pair in confusions for name in pair}}
        self.session.add_all(
            Confusion(stream_id=stream_id, step=step, delta_id=ids[delta], routed_to_id=ids[routed_to], rows=rows)
            for (delta, routed_to), rows in confusions.items()
        )

    def _open_position(self, stream: str, number: int, *, holder: str | None) -> Position:
        position = position_row(self.session, stream, number=number)
        if holder is not None and position.holder != holder:
            raise ClaimLost(
                f"position {number} of {stream!r} is held by {position.holder or 'nobody'}, no longer by {holder}: "
                "it was taken for dead. Claim it again."
            )
        if position.state == "learned":
            raise RegistryError(f"position {number} of {stream!r} is learned already. Keep its delta.")
        return position
