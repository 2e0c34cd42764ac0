"""What a strategy goes on from is kept as long as it is needed, and nothing of it is lost or left over."""

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


def test_it_goes_on_from_the_last_step_that_was_kept(registry: Registry) -> None:
    begun = run_of(registry)
    assert (begun.steps, begun.state, begun.finished_at) == ((), None, None)
    first = save_strategy_step(registry, begun, step(0), state=b"one")
    assert run_of(registry) == first
    assert first.steps == (step(0),)
    assert registry.blobs.get(first.state or "") == b"one"
    with pytest.raises(ClaimLost, match="another process learns 'core' by ewc too, and is at step 1"):
        save_strategy_step(registry, begun, step(0), state=b"theirs")
    told = len(list_pending(registry))
    last = save_strategy_step(registry, first, step(1), state=None)
    assert last.state is None
    assert last.finished_at
    assert registry.strategies("core") == (last,)
    assert blobs(registry) == {b"theirs"}  # put and never named: collected as anything that no row names
    assert len(list_pending(registry)) == told + 1
    assert find_damage(registry) == []


def test_its_blob_is_known_to_whoever_looks_at_blobs(registry: Registry, tmp_path: Path) -> None:
    kept = save_strategy_step(registry, run_of(registry), step(0), state=b"one")
    aged(registry)
    assert collect_garbage(registry) == []
    assert warnings(registry) == []
    dump_registry(registry, tmp_path / "archive.zip")
    restore_registry(tmp_path / "archive.zip", f"sqlite:///{tmp_path}/other.db", f"{tmp_path}/other")
    with Registry.open(f"sqlite:///{tmp_path}/other.db", f"{tmp_path}/other") as other:
        assert other.strategies("core") == (kept,)
        assert blobs(other) == {b"one"}
    Path(registry.blobs.path(kept.state or "")).unlink()
    (problem,) = find_damage(registry)
    assert problem.startswith("stream core, strategy ewc, its state: ")


def test_what_another_recipe_left_unfinished_is_dropped_and_what_is_finished_stays(registry: Registry) -> None:
    done = save_strategy_step(registry, run_of(registry, recipe="r1"), step(0), state=None)
    save_strategy_step(registry, run_of(registry, recipe="r2"), step(0), state=b"half")
    other = save_strategy_step(registry, run_of(registry, "replay", recipe="r2"), step(0), state=b"other")
    begun = run_of(registry, recipe="r3")
    assert registry.strategies("core") == (done, other, begun)
    assert blobs(registry) == {b"other"}


def test_it_goes_with_any_of_its_tasks(registry: Registry) -> None:
    learn(registry, "sst2")
    begun = save_strategy_step(registry, run_of(registry), step(0), state=b"one")
    with registry.unit_of_work() as unit:
        note_strategy_run(unit, begun.id, "mlflow-1")
    delete_task(registry, "sst2")
    assert registry.strategies("core") == ()
    assert b"one" not in blobs(registry)
    assert "mlflow-1" in next(
        pending.about["runs"] for pending in list_pending(registry) if pending.message == "purged"
    )
    with pytest.raises(NotFound, match="this strategy's run is gone"):
        save_strategy_step(registry, begun, step(1), state=None)
    assert find_damage(registry) == []


def test_a_strategy_is_of_a_stream_that_was_begun(registry: Registry) -> None:
    with pytest.raises(NotFound, match="core"):
        registry.strategies("cores")
    assert registry.strategies("core") == ()
