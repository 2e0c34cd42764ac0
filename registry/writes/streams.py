"""Registering a stream, and submitting it again: positions are kept, and new ones only appended."""

import json
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from registry.errors import StreamChanged
from registry.names import validate_name
from registry.reads.lookups import backbone_row
from registry.records import DataRecord
from registry.schema.connections import lock_name
from registry.schema.tables import Backbone, Position, Stream
from registry.writes.stream_changes import NO_DATA, StreamEntry, order_change, recipe_changes

LOAD_DELTAS = selectinload(Stream.positions).selectinload(Position.delta)
RENAME_HINT = "Give the stream another name, or use another --home"


def begin_stream(
    session: Session,
    name: str,
    *,
    backbone: str,
    spec: dict[str, Any],
    entries: Sequence[StreamEntry],
    data: Mapping[str, DataRecord] = NO_DATA,
) -> bool:
    """Register a stream, or append new entries to a registered one.

    Args:
        session: The unit's session.
        name: The stream's name.
        backbone: The backbone's fingerprint.
        spec: The stream file as JSON.
        entries: Pairs (task, recipe), in order.
        data: By task, where its rows come from, so that an error can say what differs.

    Returns:
        True if the spec or the number of positions changed.

    Raises:
        StreamChanged: The backbone or a recorded entry differs.
        NotFound: The backbone is not registered.
    """
    validate_name("stream", name)
    query = select(Stream).where(Stream.name == name).options(LOAD_DELTAS).with_for_update(of=Stream)
    stream = session.scalar(query)
    if stream is None:
        lock_name(session, name)
        stream = session.scalar(query)
    before = stream and (stream.digest, len(stream.positions))
    if stream is None:
        stream = Stream(name=name, backbone=backbone_row(session, backbone))
        session.add(stream)
    elif stream.backbone is None or stream.backbone.fingerprint != backbone:
        if stream.backbone is None:
            raise StreamChanged(f"stream {name!r} is that of what arrives, on backbones of any kind. {RENAME_HINT}.")
        backbone_name = session.scalar(select(Backbone.name).where(Backbone.fingerprint == backbone))
        raise StreamChanged(
            f"stream {name!r} was begun on backbone {stream.backbone.fingerprint}, not {backbone}: "
            f"{stream.backbone.name!r} then, {backbone_name or 'one that is not registered'!r} now. {RENAME_HINT}."
        )
    stream.spec, stream.digest = spec, _digest(spec)
    session.flush()
    redact_tasks(stream, {position.task_name for position in stream.positions if _purged(position)})
    check_unchanged(stream, entries, data)
    for position, (_, recipe) in zip(stream.positions, entries, strict=False):
        position.recipe = recipe  # of a position that is not learned yet, the recipe may change
    for number in range(len(stream.positions), len(entries)):
        task, recipe = entries[number]
        stream.positions.append(Position(number=number, task_name=validate_name("task", task), recipe=recipe))
    return before != (stream.digest, len(stream.positions))


def find_stream(session: Session, name: str) -> Stream | None:
    """Return a stream with its positions and their deltas; None if it is not registered."""
    return session.scalar(select(Stream).where(Stream.name == name).options(LOAD_DELTAS))


def check_unchanged(stream: Stream, entries: Sequence[StreamEntry], data: Mapping[str, DataRecord] = NO_DATA) -> None:
    """Check that `entries` continue the recorded entries of a stream.

    Args:
        stream: The stream, with its positions and their deltas.
        entries: Pairs (task, recipe), in order.
        data: By task, where its rows come from, so that the error can say what differs.

    Raises:
        StreamChanged: An entry differs from the recorded one, or is missing.
    """
    if change := order_change(stream.positions, entries):
        raise StreamChanged(
            f"the order of the tasks of stream {stream.name!r} changed {change}. Tasks may only be added at the end. "
            f"{RENAME_HINT}."
        )
    if changes := recipe_changes(stream.positions, entries, data):
        tasks = "\n".join(f"task {task!r}: {change}" for task, change in changes.items())
        commands = ", ".join(f"`continual learn STREAM.yaml --task {task}`" for task in changes)
        raise StreamChanged(
            f"stream {stream.name!r} changed in what it has learned:\n{tasks}\nA stream keeps what it learned, so "
            f"that its measures stay true. To learn a task again from what is given now, as a new version that serves "
            f"where it is no worse: {commands}. To go on with the stream, give it what it was learned from. "
            f"{RENAME_HINT} to learn all of it anew."
        )


def redact_tasks(stream: Stream, tasks: Collection[str]) -> None:
    """Replace the entries of `tasks` in a stream's stored spec by their names."""
    entries = stream.spec.get("tasks", [])
    redacted = [{"name": entry["name"]} if entry["name"] in tasks else entry for entry in entries]
    if redacted != entries:
        stream.spec = stream.spec | {"tasks": redacted}
        stream.digest = _digest(stream.spec)


def _purged(position: Position) -> bool:
    return position.delta is not None and position.delta.status == "purged"


def _digest(spec: dict[str, Any]) -> str:
    return sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
