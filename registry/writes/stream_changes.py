"""Differences between the entries of a registered stream and those that are submitted again, in words."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from registry.records import DataRecord
from registry.redaction import quote
from registry.schema.tables import Position
from tasks.recipe import recipe_settings

StreamEntry = tuple[str, str]  # a task's name and its recipe's digest
NO_DATA: Mapping[str, DataRecord] = {}


def order_change(positions: Sequence[Position], entries: Sequence[StreamEntry]) -> str | None:
    """Return the first position whose task is another one or missing, in words; None if all are there in order."""
    for position, entry in zip_longest(positions, entries[: len(positions)]):
        if entry is None or entry[0] != position.task_name:
            submitted = "nothing" if entry is None else repr(entry[0])
            return f"at position {position.number}: {position.task_name!r} was begun, {submitted} is given"
    return None


def recipe_changes(
    positions: Sequence[Position], entries: Sequence[StreamEntry], data: Mapping[str, DataRecord]
) -> dict[str, str]:
    """Return what differs in each learned task whose recipe is another one, in words, by task.

    Args:
        positions: The recorded positions.
        entries: Pairs (task, recipe), of the same tasks in the same order.
        data: By task, where the rows that are given come from.
    """
    return {
        task: _describe(position, data.get(task))
        for position, (task, recipe) in zip(positions, entries, strict=False)
        if position.delta and position.delta.status != "purged" and position.recipe != recipe
    }


def _describe(position: Position, submitted: DataRecord | None) -> str:
    recorded = position.delta and position.delta.data
    differences = list(_differences(recorded, submitted)) if recorded and submitted else []
    return "; ".join(differences) or "its rows, its seed or its settings are not those that it was learned by"


def _differences(recorded: Mapping[str, Any], submitted: DataRecord) -> Iterator[str]:
    """Yield what differs between a delta's `data` and the rows, the seed and the spec that are submitted."""
    for split, fingerprint in submitted.fingerprints.items():
        if fingerprint != recorded["fingerprints"].get(split):
            now, then = submitted.rows[split], recorded["rows"].get(split)
            yield (
                f"{split} has {now} rows, {then} when it was learned"
                if now != then
                else f"{split} has {now} rows as when it was learned, but others, or in another order"
            )
    if submitted.seed != recorded["seed"]:
        yield f"seed is {submitted.seed}, {recorded['seed']} when it was learned"
    now_settings, then_settings = _settings(submitted.spec), _settings(recorded["spec"])
    for key in dict.fromkeys((*now_settings, *then_settings)):
        now_text, then_text = (_text(settings, key) for settings in (now_settings, then_settings))
        if now_text != then_text:
            yield f"{key} is {now_text}, {then_text} when it was learned"


def _settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a recipe, nested ones by their path.

    >>> _settings({"text": "message", "source": {"path": "csv"}, "budget": {"epochs": 3}})
    {'text': 'message', 'budget.epochs': 3}
    """
    settings: dict[str, Any] = {}
    for key, value in recipe_settings(spec).items():
        settings |= {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
    return settings


def _text(settings: Mapping[str, Any], key: str) -> str:
    return quote(str(settings[key])) if settings.get(key) is not None else "not given"
