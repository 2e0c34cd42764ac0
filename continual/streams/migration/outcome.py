"""The outcome of a migration for each task, and beforehand its estimated cost."""

from dataclasses import dataclass
from typing import Literal

from continual.learning.prepared import prepare_task
from continual.streams.estimate import estimate_task
from continual.streams.migration.plan import Migration, TaskMigration
from registry import Registry, StoredPosition

MigrationState = Literal["waiting", "learned", "failed", "left"]


@dataclass(frozen=True)
class MigrationOutcome:
    """The outcome of migrating one task.

    Attributes:
        task: The task.
        state: `waiting`, `learned` or `failed`; `left` where the task is not migrated.
        old: The delta that serves the task on the old backbone.
        old_validation: The old delta's score on validation rows, on which the comparison is based.
        old_score: The old delta's score on test rows.
        new: The delta learned on the new backbone, or None.
        new_validation: The new delta's score on validation rows.
        new_score: The new delta's score on test rows.
        serves: The delta that serves on the new backbone, or None.
        reason: Why the task failed, is not migrated, or is served by the delta that serves it.
    """

    task: str
    state: MigrationState
    old: str
    old_validation: float | None
    old_score: float | None
    new: str | None
    new_validation: float | None
    new_score: float | None
    serves: str | None
    reason: str | None


@dataclass(frozen=True)
class MigrationEstimate:
    """The estimated cost of migrating one task.

    Attributes:
        task: The task.
        state: As in `MigrationOutcome`.
        old: The delta that serves the task on the old backbone.
        new: The delta learned on the new backbone, or None.
        train_rows: The number of train rows; None where the task need not be learned, as for the next two.
        parameters: The number of values of the new delta.
        seconds: The time that learning takes.
        reason: Why the task is not to be learned.
    """

    task: str
    state: MigrationState
    old: str
    new: str | None
    train_rows: int | None
    parameters: int | None
    seconds: float | None
    reason: str | None


def migration_outcomes(migration: Migration) -> list[MigrationOutcome]:
    """Return the outcome of every task so far, in the order of the migration."""
    registry, positions = migration.registry, {position.task: position for position in migration.positions}
    serves = {champion.task: champion.delta for champion in registry.champions(migration.backbone.fingerprint)}
    return [_outcome(migration, task, positions.get(task.task), serves.get(task.task)) for task in migration.tasks]


def _outcome(
    migration: Migration, task: TaskMigration, position: StoredPosition | None, serves: str | None
) -> MigrationOutcome:
    registry, new = migration.registry, position.delta if position and not task.skip_reason else None
    old_scores, new_scores = _scores(registry, task.old.name), _scores(registry, new) if new else {}
    state: MigrationState = "left" if task.skip_reason else "learned" if new else "waiting"
    reason = task.skip_reason
    if new and not (reason := registry.delta(new).reason):
        is_worse = "validation" in old_scores and new_scores["validation"] < old_scores["validation"]
        reason = "promoted by hand" if is_worse else f"no worse than {task.old.name} on {migration.origin.name}"
    elif position and position.state == "failed":
        state, reason = "failed", position.error
    return MigrationOutcome(
        task=task.task,
        state=state,
        old=task.old.name,
        old_validation=old_scores.get("validation"),
        old_score=old_scores.get("test"),
        new=new,
        new_validation=new_scores.get("validation"),
        new_score=new_scores.get("test"),
        serves=serves,
        reason=reason,
    )


def _scores(registry: Registry, delta: str) -> dict[str, float]:
    """Return the delta's oracle scores by split, measured when it was learned."""
    metric = registry.delta(delta).metric
    scores = [score for score in registry.scores(delta=delta, mode="oracle") if score.stream is None]
    return {score.split: score.value for score in scores if score.metric == metric and not score.step}


def estimate_migration(migration: Migration) -> list[MigrationEstimate]:
    """Estimate the cost of every task that is still to be learned; nothing is written."""
    earlier = len(migration.registry.champions(migration.backbone.fingerprint))
    estimates = []
    for outcome in migration_outcomes(migration):
        rows = migration.loaded.get(outcome.task) if outcome.state in ("waiting", "failed") else None
        cost = estimate_task(prepare_task(migration.backbone, rows), earlier=earlier) if rows else None
        earlier += cost is not None
        estimates.append(
            MigrationEstimate(
                task=outcome.task,
                state=outcome.state,
                old=outcome.old,
                new=outcome.new,
                train_rows=cost.train_rows if cost else None,
                parameters=cost.parameters if cost else None,
                seconds=cost.seconds if cost else None,
                reason=outcome.reason,
            )
        )
    return estimates
