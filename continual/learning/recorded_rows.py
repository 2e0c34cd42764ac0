"""Load the rows of a registered delta again: the registry stores where they came from, not the rows."""

from dataclasses import replace
from pathlib import Path

from continual.learning.champion_contest import matching_recorded_rows
from registry import StoredDelta
from tasks import TaskData, TaskSpec, load_task
from tasks.errors import DataError


def reload_rows(old: StoredDelta) -> TaskData:
    """Load the rows that a delta was learned from again, with its recipe.

    Raises:
        DataError: The source of the rows is unknown, or the rows have changed.
    """
    if old.data is None or old.data.folder is None:
        raise DataError(f"where the rows of {old.name} came from is not known, as of one that was imported")
    data = load_task(TaskSpec.model_validate(old.data.spec), folder=Path(old.data.folder), seed=old.data.seed)
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    train, validation, test = (matching_recorded_rows(rows, old.data, split) for split, rows in splits.items())
    if train is None or validation is None or test is None:
        raise DataError(f"task {old.task!r}: the rows are others than those that {old.name} was learned from")
    return replace(data, labels=old.labels, train=train, validation=validation, test=test)
