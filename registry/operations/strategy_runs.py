"""How far a strategy has come with a stream: what it was after each task, and one blob to go on from."""

from sqlalchemy import select

from registry.errors import ClaimLost, NotFound
from registry.operations.garbage_collection import delete_unreferenced
from registry.reads.lookups import stream_row
from registry.reads.mapping import stored_strategy
from registry.records import StepRecord, StoredStrategy, StrategyRecord
from registry.registry import Registry
from registry.schema.base import now
from registry.schema.strategy_tables import StrategyRun, StrategyScore, StrategyStep
from registry.unit_of_work import UnitOfWork


def start_strategy_run(registry: Registry, record: StrategyRecord, *, anew: bool = False) -> StoredStrategy:
    """The run of a strategy through a stream, begun now unless it was before.

    One that another recipe left unfinished is dropped: nobody goes on with it. anew: one of this recipe too, where what
    it would go on from is damaged. Raises: NotFound for the stream.
    """

    def work(unit: UnitOfWork) -> tuple[StoredStrategy, list[str]]:
        stream, dropped = stream_row(unit.session, record.stream), []
        of_strategy = (StrategyRun.stream_id == stream.id, StrategyRun.strategy == record.strategy)
        unfinished = select(StrategyRun).where(*of_strategy, StrategyRun.finished_at.is_(None))
        for left in unit.session.scalars(unfinished):
            if anew or left.recipe != record.recipe:
                dropped += [left.state] if left.state else []
                unit.session.delete(left)
        unit.session.flush()
        run = unit.session.scalar(select(StrategyRun).where(*of_strategy, StrategyRun.recipe == record.recipe))
        if run is None:
            about = {"strategy": record.strategy, "recipe": record.recipe, "settings": record.settings}
            run = StrategyRun(stream=stream, tasks=list(record.tasks), steps=[], **about)
            unit.session.add(run)
            unit.session.flush()
        return stored_strategy(run), dropped

    begun, dropped = registry.write_with_retry(work)
    delete_unreferenced(registry, dropped)
    return begun


def save_strategy_step(
    registry: Registry, begun: StoredStrategy, step: StepRecord, *, state: bytes | None
) -> StoredStrategy:
    """Stores what the next task brought, and what to go on from in place of what was stored before.

    state: None after the last task, with which the run is finished.
    Raises: ClaimLost, where another process has got further meanwhile; BlobError, where the state cannot be stored.
    """
    digest = None if state is None else registry.blobs.put(state)

    def work(unit: UnitOfWork) -> tuple[StoredStrategy, list[str]]:
        run = _run(unit, begun.id)
        if len(run.steps) != len(begun.steps):
            raise ClaimLost(
                f"another process learns {begun.stream!r} by {begun.strategy} too, and is at step {len(run.steps)}. "
                "Let it finish, then compare again."
            )
        unit.require_blobs(digest)
        values = {"number": step.number, "seconds": step.seconds, "parameters": step.parameters, "bytes": step.bytes}
        scores = [StrategyScore(**vars(score)) for score in step.scores]
        run.steps.append(StrategyStep(scores=scores, **values))
        replaced = [run.state] if run.state not in (None, digest) else []
        run.state = digest
        if state is None:
            run.finished_at = now()
            unit.enqueue_message("stream", begun.stream)
        unit.session.flush()
        return stored_strategy(run), [before for before in replaced if before]

    kept, replaced = registry.write_with_retry(work)
    delete_unreferenced(registry, replaced)
    return kept


def note_strategy_run(unit: UnitOfWork, identity: int, mlflow_run: str) -> None:
    """Notes the MLflow run of a strategy. Raises: NotFound, where a task of it was purged meanwhile."""
    _run(unit, identity).mlflow_run = mlflow_run


def _run(unit: UnitOfWork, identity: int) -> StrategyRun:
    found = unit.session.get(StrategyRun, identity, with_for_update=True)
    if found is None:
        raise NotFound(
            "this strategy's run is gone: a task of its stream was purged, or it was begun anew. Compare again."
        )
    return found
