"""Progress of a strategy's run over a stream: a step per task, and one blob to resume from."""

from sqlalchemy import select

from registry.errors import ClaimLost, NotFound
from registry.reads.lookups import stream_row
from registry.reads.mapping import stored_strategy
from registry.registry import Registry
from registry.schema.base import now
from registry.schema.strategy_tables import StrategyRun, StrategyScore, StrategyStep
from registry.stream_records import StepRecord, StoredStrategy, StrategyRecord
from registry.unit_of_work import UnitOfWork


def start_strategy_run(registry: Registry, record: StrategyRecord, *, restart: bool = False) -> StoredStrategy:
    """Return the run of a strategy over a stream, creating it if needed.

    An unfinished run of another recipe is deleted.

    Args:
        registry: The registry.
        record: Stream, strategy and recipe.
        restart: Also delete an unfinished run of this recipe, whose state is damaged.

    Raises:
        NotFound: The stream is not registered.
    """

    def work(unit: UnitOfWork) -> StoredStrategy:
        stream = stream_row(unit.session, record.stream)
        is_of_strategy = (StrategyRun.stream_id == stream.id, StrategyRun.strategy == record.strategy)
        unfinished = select(StrategyRun).where(*is_of_strategy, StrategyRun.finished_at.is_(None))
        for old_run in unit.session.scalars(unfinished):
            if restart or old_run.recipe != record.recipe:
                unit.drop_blobs([old_run.state])
                unit.session.delete(old_run)
        unit.session.flush()
        run = unit.session.scalar(select(StrategyRun).where(*is_of_strategy, StrategyRun.recipe == record.recipe))
        if run is None:
            values = {"strategy": record.strategy, "recipe": record.recipe, "settings": record.settings}
            run = StrategyRun(stream=stream, tasks=list(record.tasks), steps=[], **values)
            unit.session.add(run)
            unit.session.flush()
        return stored_strategy(run)

    return registry.write_with_retry(work)


def save_strategy_step(
    registry: Registry, run: StoredStrategy, step: StepRecord, *, state: bytes | None
) -> StoredStrategy:
    """Store the result of a run's next task, and replace the state to resume from.

    Args:
        registry: The registry.
        run: The run as last returned.
        step: The next step.
        state: The serialised state; None after the last task, which finishes the run.

    Returns:
        The run with the new step.

    Raises:
        ClaimLost: Another process has stored this step already.
        BlobError: The state cannot be stored.
    """
    digest = None if state is None else registry.blobs.put(state)

    def work(unit: UnitOfWork) -> StoredStrategy:
        row = _run(unit, run.id)
        if len(row.steps) != len(run.steps):
            raise ClaimLost(
                f"another process learns {run.stream!r} by {run.strategy} too, and is at step {len(row.steps)}. "
                "Let it finish, then compare again."
            )
        unit.require_blobs(digest)
        values = {"number": step.number, "seconds": step.seconds, "parameters": step.parameters, "bytes": step.bytes}
        scores = [StrategyScore(**vars(score)) for score in step.scores]
        row.steps.append(StrategyStep(scores=scores, **values))
        unit.drop_blobs([row.state])
        row.state = digest
        if state is None:
            row.finished_at = now()
            unit.enqueue_message("stream", run.stream)
        unit.session.flush()
        return stored_strategy(row)

    return registry.write_with_retry(work)


def note_strategy_run(unit: UnitOfWork, run_id: int, mlflow_run: str) -> None:
    """Store the MLflow run of a strategy's run.

    Raises:
        NotFound: The run was deleted because one of its tasks was purged.
    """
    _run(unit, run_id).mlflow_run = mlflow_run


def _run(unit: UnitOfWork, run_id: int) -> StrategyRun:
    run = unit.session.get(StrategyRun, run_id, with_for_update=True)
    if run is None:
        raise NotFound(
            "this strategy's run is gone: a task of its stream was purged, or it was begun anew. Compare again."
        )
    return run
