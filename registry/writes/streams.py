"""Registering a stream, and submitting it again: positions are kept, and new ones only appended."""

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
    """Register a stream, or append new entries to a registered one.

    Args:
        session: The unit's session.
        name: The stream's name.
        backbone: The backbone's fingerprint.
        spec: The stream file as JSON.
        entries: Pairs (task, recipe), in order.

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
        registered_on = stream.backbone.fingerprint if stream.backbone else "of any kind, for what arrives"
        raise StreamChanged(f"stream {name!r} was begun on backbone {registered_on}, not {backbone}. {RENAME_HINT}.")
    stream.spec, stream.digest = spec, _digest(spec)
    session.flush()
    redact_tasks(stream, {position.task_name for position in stream.positions if _purged(position)})
    recorded = check_unchanged(stream, entries)
    for position, (_, recipe) in zip(stream.positions, entries, strict=False):
        position.recipe = recipe  # of a position that is not learned yet, the recipe may change
    for number in range(len(recorded), len(entries)):
        task, recipe = entries[number]
        stream.positions.append(Position(number=number, task_name=validate_name("task", task), recipe=recipe))
    return before != (stream.digest, len(stream.positions))


def find_stream(session: Session, name: str) -> Stream | None:
    """Return a stream with its positions and their deltas; None if it is not registered."""
    return session.scalar(select(Stream).where(Stream.name == name).options(LOAD_DELTAS))


def check_unchanged(stream: Stream, entries: Sequence[StreamEntry]) -> list[tuple[str, str | None]]:
    """Return the recorded (task, recipe) entries of a stream if `entries` continue them.

    Raises:
        StreamChanged: An entry differs from the recorded one, or is missing.
    """
    recorded = [
        (position.task_name, position.recipe if position.delta_id and not _purged(position) else None)
        for position in stream.positions
    ]
    if change := first_difference(recorded, entries):
        raise StreamChanged(
            f"stream {stream.name!r} changed at {change}. The rows, the seed, the method, the budget or the order of a "
            f"learned task differ; tasks may only be added at the end. {RENAME_HINT}."
        )
    return recorded


def redact_tasks(stream: Stream, tasks: Collection[str]) -> None:
    """Replace the entries of `tasks` in a stream's stored spec by their names."""
    entries = stream.spec.get("tasks", [])
    redacted = [{"name": entry["name"]} if entry["name"] in tasks else entry for entry in entries]
    if redacted != entries:
        stream.spec = stream.spec | {"tasks": redacted}
        stream.digest = _digest(stream.spec)


def _purged(position: Position) -> bool:
    return position.delta is not None and position.delta.status == "purged"


def first_difference(recorded: Sequence[tuple[str, str | None]], submitted: Sequence[StreamEntry]) -> str | None:
    """Return the first difference of `submitted` from `recorded`; None if it only appends.

    Args:
        recorded: Pairs (task, recipe); a recipe of None matches any.
        submitted: Pairs (task, recipe).

    >>> first_difference([("sst2", "a"), ("trec", "b")], [("sst2", "a"), ("mnli", "c")])
    "position 1: 'trec' was begun, 'mnli' is given"
    """
    for number, (before, now) in enumerate(zip_longest(recorded, submitted[: len(recorded)])):
        if now is None:
            return f"position {number}: {before[0]!r} was begun, nothing is given"
        if before[0] != now[0]:
            return f"position {number}: {before[0]!r} was begun, {now[0]!r} is given"
        if before[1] is not None and before[1] != now[1]:
            recipes = f"was begun by recipe {before[1][:12]}, recipe {now[1][:12]} is given"
            return f"position {number}: {before[0]!r} {recipes}"
    return None


def _digest(spec: dict[str, Any]) -> str:
    return sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
