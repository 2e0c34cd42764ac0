"""Whether a new version of a task may succeed the one that serves: both answer the validation rows of both.

The registry knows where a version's rows came from, not what they were. Those of the champion are read again there, and
count only where they are what they were; test rows are not read.
"""

import logging
from pathlib import Path

from pydantic import ValidationError

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, load_delta
from continual.errors import DeltaError
from continual.inference.opinions import DeltaQuery, query_delta
from continual.kinds import answer_labels
from continual.learning.prepared import PreparedTask
from continual.metrics import metric_score
from registry import IMPORTED, Comparison, Contest, DataRecord, Registry, StoredDelta
from registry.errors import BlobError
from tasks import LabelledTexts, TaskSpec, load_validation
from tasks.errors import DataError

log = logging.getLogger(__name__)


def contest_champion(backbone: Backbone, registry: Registry, task: PreparedTask, delta: Delta) -> Contest | None:
    """What `delta`, newly learned as `task`, and the champion answer of the validation rows of both.

    None where there is no champion, or both have the same validation rows: the scores that are stored say it all then.
    """
    champion = registry.last_version(task.data.spec.name, backbone.fingerprint)
    if champion is None or champion.status != "champion" or _same_rows(champion, task):
        return None
    try:
        old = load_delta(registry.blobs.get(champion.values))
    except (BlobError, DeltaError) as error:
        log.warning("task %s: %s cannot be asked: %s", task.data.spec.name, champion.name, error)
        return Contest(champion=champion.name, undecided_reason=f"the values of {champion.name} cannot be read")
    rivals = ((delta, task.budget.max_length), (old, int(champion.budget["max_length"])))

    def compared(rows: LabelledTexts, said: str) -> Comparison:
        metric, kind, texts = task.data.spec.metric, task.kind, rows.texts
        truth = kind.prepare(task.backbone, rows, max_length=task.budget.max_length).truth
        new, old = (
            metric_score(
                metric,
                truth,
                answer_labels(query_delta(backbone, rival, DeltaQuery(texts, length)).answers),
                kind=kind.metric_kind,
            )
            for rival, length in rivals
        )
        return Comparison(rows=said, new=new, old=old)

    found = [compared(task.data.validation, "the new validation rows")]
    said = f"the validation rows of {champion.name}"
    rows = reload_validation_rows(champion.data, otherwise=task.data.folder) if champion.data else None
    if rows is not None:
        found.append(compared(rows, said))
    unseen = rows is None and not (champion.data is None and champion.warm_start == IMPORTED)
    doubt = f"{said} cannot be read again as they were" if unseen else None
    return Contest(champion=champion.name, comparisons=tuple(found), undecided_reason=doubt)


def _same_rows(champion: StoredDelta, task: PreparedTask) -> bool:
    return champion.data is not None and champion.data.fingerprints["validation"] == task.data.validation.fingerprint


def reload_validation_rows(data: DataRecord, *, otherwise: Path) -> LabelledTexts | None:
    """The validation rows that a version was learned with; None where they are not to be had, or others by now.

    Rows that were added behind them are left out. Files are looked for where they were or, where that folder is gone,
    `otherwise`.
    """
    folder = Path(data.folder) if data.folder and Path(data.folder).is_dir() else otherwise
    try:
        found = load_validation(TaskSpec.model_validate(data.spec), folder=folder, seed=data.seed)
    except (DataError, ValidationError) as error:
        log.warning("the rows of an earlier version cannot be read again: %s", error)
        return None
    return matching_recorded_rows(found, data, "validation")


def matching_recorded_rows(found: LabelledTexts, data: DataRecord, split: str) -> LabelledTexts | None:
    """The rows of a split that a version was learned from, without what was added behind; None for other rows."""
    rows = found.select(range(min(len(found), data.rows[split])))
    return rows if rows.fingerprint == data.fingerprints[split] else None
