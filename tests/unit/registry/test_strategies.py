"""Strategy runs in the registry: states to resume from, and their deletion."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry import (
    ClaimLost,
    NotFound,
    Registry,
    StepRecord,
    StepScore,
    StoredStrategy,
    StrategyRecord,
    collect_garbage,
    delete_task,
    dump_registry,
    find_damage,
    list_pending,
    note_strategy_run,
    restore_registry,
    save_strategy_step,
    start_strategy_run,
    warnings,
)
from tests.helpers.registries import begin, learn, make_registry

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        begin(opened, "sst2", "trec")
        yield opened


def run_of(registry: Registry, strategy: str = "ewc", recipe: str = "r1") -> StoredStrategy:
    record = StrategyRecord(
        stream="core", strategy=strategy, recipe=recipe, settings={"strength": 10.0}, tasks=("sst2", "trec")
    )
    return start_strategy_run(registry, record)


def step(number: int) -> StepRecord:
    score = StepScore(task="sst2", mode="oracle", metric="accuracy", value=0.5 + number / 10, rows=10)
    return StepRecord(number=number, seconds=1.5, parameters=30_000_000_000, bytes=120_000_000_000, scores=(score,))


def blobs(registry: Registry) -> set[bytes]:
    return {registry.blobs.get(blob.name) for blob in registry.blobs.iterate()}


def aged(registry: Registry) -> None:
    for blob in registry.blobs.iterate():
        os.utime(registry.blobs.path(blob.name), (0, 0))


def test_a_run_resumes_from_its_last_stored_step(registry: Registry) -> None:
    run = run_of(registry)
    assert (run.steps, run.state, run.finished_at) == ((), None, None)
    first = save_strategy_step(registry, run, step(0), state=b"one")
    assert run_of(registry) == first
    assert first.steps == (step(0),)
    assert registry.blobs.get(first.state or "") == b"one"
    with pytest.raises(ClaimLost, match="another process learns 'core' by ewc too, and is at step 1"):
        save_strategy_step(registry, run, step(0), state=b"theirs")
    pending_count = len(list_pending(registry))
    last = save_strategy_step(registry, first, step(1), state=None)
    assert last.state is None
    assert last.finished_at
    assert registry.strategies("core") == (last,)
    assert blobs(registry) == {b"theirs"}  # put and never named: collected as anything that no row names
    assert len(list_pending(registry)) == pending_count + 1
    assert find_damage(registry) == []


def test_its_state_blob_is_referenced_verified_and_archived(registry: Registry, tmp_path: Path) -> None:
    saved = save_strategy_step(registry, run_of(registry), step(0), state=b"one")
    aged(registry)
    assert collect_garbage(registry) == []
    assert warnings(registry) == []
    dump_registry(registry, tmp_path / "archive.zip")
    restore_registry(tmp_path / "archive.zip", f"sqlite:///{tmp_path}/other.db", f"{tmp_path}/other")
    with Registry.open(f"sqlite:///{tmp_path}/other.db", f"{tmp_path}/other") as other_registry:
        assert other_registry.strategies("core") == (saved,)
        assert blobs(other_registry) == {b"one"}
    Path(registry.blobs.path(saved.state or "")).unlink()
    (problem,) = find_damage(registry)
    assert problem.startswith("stream core, strategy ewc, its state: ")


def test_an_unfinished_run_of_another_recipe_is_replaced_and_a_finished_one_stays(registry: Registry) -> None:
    done = save_strategy_step(registry, run_of(registry, recipe="r1"), step(0), state=None)
    save_strategy_step(registry, run_of(registry, recipe="r2"), step(0), state=b"half")
    other_step = save_strategy_step(registry, run_of(registry, "replay", recipe="r2"), step(0), state=b"other")
    run = run_of(registry, recipe="r3")
    assert registry.strategies("core") == (done, other_step, run)
    assert blobs(registry) == {b"other"}


def test_a_run_is_deleted_with_any_of_its_tasks(registry: Registry) -> None:
    learn(registry, "sst2")
    saved_step = save_strategy_step(registry, run_of(registry), step(0), state=b"one")
    with registry.unit_of_work() as unit:
        note_strategy_run(unit, saved_step.id, "mlflow-1")
    delete_task(registry, "sst2")
    assert registry.strategies("core") == ()
    assert b"one" not in blobs(registry)
    assert "mlflow-1" in next(
        pending.about["runs"] for pending in list_pending(registry) if pending.message == "purged"
    )
    with pytest.raises(NotFound, match="this strategy's run is gone"):
        save_strategy_step(registry, saved_step, step(1), state=None)
    assert find_damage(registry) == []


def test_a_strategy_run_needs_a_registered_stream(registry: Registry) -> None:
    with pytest.raises(NotFound, match="core"):
        registry.strategies("cores")
    assert registry.strategies("core") == ()
