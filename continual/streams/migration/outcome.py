"""What a migration came to, task by task, and before it what it would take."""

from dataclasses import dataclass
from typing import Literal

from continual.learning.prepared import prepare_task
from continual.streams.estimate import estimate_task
from continual.streams.migration.plan import Migration, TaskMigration
from registry import Registry, StoredPosition

MigrationState = Literal["waiting", "learned", "failed", "left"]


@dataclass(frozen=True)
class MigrationOutcome:
    """What came of a task: what serves it on the old backbone, what it was learned as on the new one, and what serves.

    validation: the scores that decided · score: those on test rows · serves: on the new backbone, None where none does.
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
    """What a task would take: seconds of learning, parameters of its delta; reason: why it is not to be learned."""

    task: str
    state: MigrationState
    old: str
    new: str | None
    train_rows: int | None
    parameters: int | None
    seconds: float | None
    reason: str | None


def migration_outcomes(migration: Migration) -> list[MigrationOutcome]:
    """What has come of every task so far."""
    registry, begun = migration.registry, {position.task: position for position in migration.positions}
    serves = {own.task: own.delta for own in registry.champions(migration.backbone.fingerprint)}
    return [_outcome(migration, own, begun.get(own.task), serves.get(own.task)) for own in migration.tasks]


def _outcome(
    migration: Migration, own: TaskMigration, position: StoredPosition | None, serves: str | None
) -> MigrationOutcome:
    registry, new = migration.registry, position.delta if position and not own.skip_reason else None
    before, after = _scores(registry, own.old.name), _scores(registry, new) if new else {}
    state: MigrationState = "left" if own.skip_reason else "learned" if new else "waiting"
    reason = own.skip_reason
    if new and not (reason := registry.delta(new).reason):
        worse = "validation" in before and after["validation"] < before["validation"]
        reason = "promoted by hand" if worse else f"no worse than {own.old.name} on {migration.origin.name}"
    elif position and position.state == "failed":
        state, reason = "failed", position.error
    return MigrationOutcome(
        task=own.task,
        state=state,
        old=own.old.name,
        old_validation=before.get("validation"),
        old_score=before.get("test"),
        new=new,
        new_validation=after.get("validation"),
        new_score=after.get("test"),
        serves=serves,
        reason=reason,
    )


def _scores(registry: Registry, delta: str) -> dict[str, float]:
    """The delta's own scores by split, with the task known."""
    metric = registry.delta(delta).metric
    found = [score for score in registry.scores(delta=delta, mode="oracle") if score.stream is None]
    return {score.split: score.value for score in found if score.metric == metric and not score.step}


def estimate_migration(migration: Migration) -> list[MigrationEstimate]:
    """What is still to be learned, what it would take, and what is not to be learned, and why; nothing is written."""
    earlier = len(migration.registry.champions(migration.backbone.fingerprint))
    found = []
    for own in migration_outcomes(migration):
        to_learn = migration.loaded.get(own.task) if own.state in ("waiting", "failed") else None
        cost = estimate_task(prepare_task(migration.backbone, to_learn), earlier=earlier) if to_learn else None
        earlier += cost is not None
        found.append(
            MigrationEstimate(
                task=own.task,
                state=own.state,
                old=own.old,
                new=own.new,
                train_rows=cost.train_rows if cost else None,
                parameters=cost.parameters if cost else None,
                seconds=cost.seconds if cost else None,
                reason=own.reason,
            )
        )
    return found
