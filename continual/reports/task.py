"""Report on one task: the document of `continual tasks show --json`, from the registry alone."""

from collections import defaultdict

from continual.reports.report import DeltaScores, Document, delta_report
from registry import Registry, StoredDelta


def task_report(registry: Registry, task: str) -> Document:
    """Return one task in full: its kind, labels, rows and source, and its versions in order of learning.

    A version has the fields of an entry of `per_task` in a stream's report, and its status, settings and source.

    Raises:
        NotFound: The task is not registered, or was purged.
    """
    record = registry.task(task)
    scores = defaultdict(list)
    for score in registry.scores(task=task, split="test"):
        scores[score.delta].append(score)
    versions = [registry.delta(row["delta"]) for row in registry.deltas(task)]
    return {
        "task": record.name,
        "kind": record.kind,
        "metric": record.metric,
        "labels": list(record.labels),
        "rows": record.rows,
        "serving": [delta.name for delta in versions if delta.status == "champion"],
        "versions": [_version(registry, delta, DeltaScores(delta, scores[delta.name])) for delta in versions],
    }


def _version(registry: Registry, delta: StoredDelta, scores: DeltaScores) -> Document:
    edges = registry.lineage(delta.name, depth=1)
    parents = [{"delta": edge["parent"], "kind": edge["kind"], "weight": edge["weight"]} for edge in edges]
    data = delta.data
    return delta_report(delta, scores, parents) | {
        "status": delta.status,
        "reason": delta.reason,
        "backbone": registry.backbone(delta.backbone).name,
        "settings": delta.settings,
        "budget": delta.budget,
        "source": data.spec.get("source") if data else None,
        "folder": data.folder if data else None,
        "seed": delta.seed,
        "rows": data.rows if data else None,
        "created_at": delta.created_at.isoformat(),
    }
