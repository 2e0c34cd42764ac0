"""Beginning a stream, and beginning it again: what was begun is kept, and only grows at its end."""

import json
from collections.abc import Collection, Sequence
from hashlib import sha256
from itertools import zip_longest
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from registry.errors import StreamChanged
from registry.names import validate_name
from registry.reads.lookups import backbone_row
from registry.schema.connections import lock_name
from registry.schema.tables import Position, Stream

StreamEntry = tuple[str, str]  # a task's name and its recipe's digest

LOAD_DELTAS = selectinload(Stream.positions).selectinload(Position.delta)
RENAME_HINT = "Give the stream another name, or use another --home"


def begin_stream(
    session: Session, name: str, *, backbone: str, spec: dict[str, Any], entries: Sequence[StreamEntry]
) -> bool:
    """Creates the stream, or makes sure that it only grew and appends what is new; whether anything is.

    Raises: StreamChanged, where the backbone or an entry already known is another one; NotFound for the backbone.
    """
    validate_name("stream", name)
    known = select(Stream).where(Stream.name == name).options(LOAD_DELTAS).with_for_update(of=Stream)
    stream = session.scalar(known)
    if stream is None:
        lock_name(session, name)
        stream = session.scalar(known)
    before = stream and (stream.digest, len(stream.positions))
    if stream is None:
        stream = Stream(name=name, backbone=backbone_row(session, backbone))
        session.add(stream)
    elif stream.backbone is None or stream.backbone.fingerprint != backbone:
        begun_on = stream.backbone.fingerprint if stream.backbone else "of any kind, for what arrives"
        raise StreamChanged(f"stream {name!r} was begun on backbone {begun_on}, not {backbone}. {RENAME_HINT}.")
    stream.spec, stream.digest = spec, _digest(spec)
    session.flush()
    redact_tasks(stream, {position.task_name for position in stream.positions if _purged(position)})
    begun = check_unchanged(stream, entries)
    for position, (_, recipe) in zip(stream.positions, entries, strict=False):
        position.recipe = recipe  # what is not learned yet may be mended
    for number in range(len(begun), len(entries)):
        task, recipe = entries[number]
        stream.positions.append(Position(number=number, task_name=validate_name("task", task), recipe=recipe))
    return before != (stream.digest, len(stream.positions))


def find_stream(session: Session, name: str) -> Stream | None:
    """The stream of that name with its positions and their deltas; None where it was never begun."""
    return session.scalar(select(Stream).where(Stream.name == name).options(LOAD_DELTAS))


def check_unchanged(stream: Stream, entries: Sequence[StreamEntry]) -> list[tuple[str, str | None]]:
    """The entries that the stream knows; raises StreamChanged where `entries` do not go on from them."""
    begun = [
        (position.task_name, position.recipe if position.delta_id and not _purged(position) else None)
        for position in stream.positions
    ]
    if change := first_difference(begun, entries):
        raise StreamChanged(
            f"stream {stream.name!r} changed at {change}. The rows, the seed, the method, the budget or the order of a "
            f"learned task differ; tasks may only be added at the end. {RENAME_HINT}."
        )
    return begun


def redact_tasks(stream: Stream, tasks: Collection[str]) -> None:
    """Leaves nothing but the names of these tasks in what is stored of the stream's file."""
    entries = stream.spec.get("tasks", [])
    kept = [{"name": entry["name"]} if entry["name"] in tasks else entry for entry in entries]
    if kept != entries:
        stream.spec = stream.spec | {"tasks": kept}
        stream.digest = _digest(stream.spec)


def _purged(position: Position) -> bool:
    return position.delta is not None and position.delta.status == "purged"


def first_difference(known: Sequence[tuple[str, str | None]], given: Sequence[StreamEntry]) -> str | None:
    """Where `given` departs from `known`; None where it only goes on. A known recipe of None may be any.

    >>> first_change([("sst2", "a"), ("trec", "b")], [("sst2", "a"), ("mnli", "c")])
    "position 1: 'trec' was begun, 'mnli' is given"
    """
    for number, (old, new) in enumerate(zip_longest(known, given[: len(known)])):
        if new is None:
            return f"position {number}: {old[0]!r} was begun, nothing is given"
        if old[0] != new[0]:
            return f"position {number}: {old[0]!r} was begun, {new[0]!r} is given"
        if old[1] is not None and old[1] != new[1]:
            return f"position {number}: {old[0]!r} was begun by recipe {old[1][:12]}, recipe {new[1][:12]} is given"
    return None


def _digest(spec: dict[str, Any]) -> str:
    return sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
