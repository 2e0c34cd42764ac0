"""Compare a new version of a task with the champion: both answer the validation rows of both.

The registry stores where a version's rows came from, not the rows. The champion's are read again from there, and count
only where their digest is unchanged; test rows are not read.
"""

import logging
from pathlib import Path

from pydantic import ValidationError

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, load_delta
from continual.errors import DeltaError
from continual.inference.opinions import DeltaQuery, query_delta
from continual.kinds.scoring import score_answers
from continual.learning.prepared import PreparedTask
from registry import IMPORTED, Comparison, Contest, DataRecord, Registry, StoredDelta
from registry.errors import BlobError
from tasks import LabelledTexts, TaskData, TaskSpec, load_validation
from tasks.errors import DataError
from tasks.source_spec import IN_MEMORY

log = logging.getLogger(__name__)


def contest_champion(backbone: Backbone, registry: Registry, task: PreparedTask, delta: Delta) -> Contest | None:
    """Score a newly learned delta and the champion on the validation rows of both.

    Returns:
        The scores; None where there is no champion, or both have the same validation rows: then the stored scores
        suffice.
    """
    champion = registry.last_version(task.data.spec.name, backbone.fingerprint)
    if champion is None or champion.status != "champion" or _same_rows(champion, task):
        return None
    try:
        old_delta = load_delta(registry.blobs.get(champion.values))
    except (BlobError, DeltaError) as error:
        log.warning("task %s: %s cannot be asked: %s", task.data.spec.name, champion.name, error)
        return Contest(champion=champion.name, undecided_reason=f"the values of {champion.name} cannot be read")
    rivals = ((delta, task.budget.max_length), (old_delta, int(champion.budget["max_length"])))

    def compare(rows: LabelledTexts, name: str) -> Comparison:
        metric, kind, texts = task.data.spec.metric, task.kind, rows.texts
        prepared = kind.prepare(task.backbone, rows, max_length=task.budget.max_length)
        new, old = (
            score_answers(kind, metric, prepared, query_delta(backbone, rival, DeltaQuery(texts, length)).answers)
            for rival, length in rivals
        )
        return Comparison(rows=name, new=new, old=old)

    comparisons = [compare(task.data.validation, "the new validation rows")]
    champion_rows = f"the validation rows of {champion.name}"
    rows = reload_validation_rows(champion.data, task.data) if champion.data else None
    if rows is not None:
        comparisons.append(compare(rows, champion_rows))
    unavailable = rows is None and not (champion.data is None and champion.warm_start == IMPORTED)
    reason = f"{champion_rows} {_why_unavailable(champion)}" if unavailable else None
    return Contest(champion=champion.name, comparisons=tuple(comparisons), undecided_reason=reason)


def _same_rows(champion: StoredDelta, task: PreparedTask) -> bool:
    return champion.data is not None and champion.data.fingerprints["validation"] == task.data.validation.fingerprint


def _came_from_memory(data: DataRecord) -> bool:
    return bool(data.spec.get("source", {}).get("path") == IN_MEMORY)


def _why_unavailable(champion: StoredDelta) -> str:
    if champion.data and _came_from_memory(champion.data):
        return "are in no file, and the new ones do not begin with them: give every version the same validation rows"
    return "cannot be read again as they were"


def reload_validation_rows(data: DataRecord, current: TaskData) -> LabelledTexts | None:
    """Read the validation rows of a version again, without rows that were appended since.

    Args:
        data: Where the version's rows came from.
        current: The rows of the new version, which begin with the earlier ones where those were given from memory and
            have grown; their folder is that of relative files where the recorded one is gone.

    Returns:
        The rows; None where they cannot be read or have changed.
    """
    if _came_from_memory(data):
        return matching_recorded_rows(current.validation, data, "validation")
    folder = Path(data.folder) if data.folder and Path(data.folder).is_dir() else current.folder
    try:
        rows = load_validation(TaskSpec.model_validate(data.spec), folder=folder, seed=data.seed)
    except (DataError, ValidationError) as error:
        log.warning("the rows of an earlier version cannot be read again: %s", error)
        return None
    return matching_recorded_rows(rows, data, "validation")


def matching_recorded_rows(rows: LabelledTexts, data: DataRecord, split: str) -> LabelledTexts | None:
    """Return the rows of a split as recorded, without rows appended since; None where they have changed."""
    recorded = rows.select(range(min(len(rows), data.rows[split])))
    return recorded if recorded.fingerprint == data.fingerprints[split] else None
