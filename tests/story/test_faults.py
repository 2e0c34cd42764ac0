"""Streams with faults: a short form of tests/benchmarks/faults.py, and what users see."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from continual import Learner
from continual.callbacks import RunCallbacks
from registry import collect_garbage, current_process_id, find_damage, load_checkpoint
from registry.schema.tables import Checkpoint as CheckpointRow
from tasks.errors import InputError
from tests.helpers.claims import claim_position
from tests.helpers.fresh_processes import run_python
from tests.story.test_stream import digests, open_home, write_stream

AUTO = {
    "name": "auto",
    "candidates": [{"name": "lora", "rank": 1}, {"name": "bitfit"}],
    "rates": [1.0],
    "share": 1.0,
}


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("continual.streams.worker_loop.POLL_SECONDS", 0.05)
    monkeypatch.setattr("continual.learning.checkpoint.MIN_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr("continual.learning.checkpoint.MAX_OVERHEAD", 1e9)


@pytest.fixture
def learner(bert_folder: Path, tmp_path: Path) -> Iterator[Learner]:
    with open_home(bert_folder, tmp_path / "home") as opened:
        yield opened


class PowerCut(BaseException):
    """An exception that nothing catches, as if power failed."""


def cut(task: str, step: int) -> Callable[[str, int, int], None]:
    def on_step(name: str, done: int, total: int) -> None:
        if (name, done) == (task, step):
            raise PowerCut

    return on_step


def cut_short(learner: Learner, stream: Any, *, task: str, step: int) -> None:
    with pytest.raises(PowerCut):
        learner.run(stream, callbacks=RunCallbacks(on_step=cut(task, step)))


def test_killed_processes_a_full_disk_and_damaged_blobs(tmp_path: Path) -> None:
    """A few rounds of the benchmark, in a process of its own, since it forks."""
    if shutil.which("initdb") is None and not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    scenarios = "controllers_killed,damage,database_restarted" + (",disk_full" if os.getuid() == 0 else "")
    document = json.loads(run_python("-m", "tests.benchmarks.faults", "--repeats", 1, "--only", scenarios))
    assert [of_database["killed"] for of_database in document["controllers_killed"]] == [2, 2]
    assert document["damage"]["damaged"] > 30
    assert document["database_restarted"]["restarts"] == 2
    assert document["wrong"] == []


def test_a_resumed_task_keeps_its_method_and_start(
    learner: Learner, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run continues with the searched method and the chosen start, to the same bits."""
    stream = write_stream(tmp_path, tasks=("animals", "mood"), method=AUTO, warm_start="nearest")
    with open_home(bert_folder, tmp_path / "undisturbed") as undisturbed:
        assert undisturbed.run(stream) == {}
        expected, report = digests(undisturbed), undisturbed.report("core")
    cut_short(learner, stream, task="mood", step=6)
    assert find_damage(learner.registry) == []
    monkeypatch.setattr("continual.learning.learn.LearningRun._plan", None)  # not to be called
    noted: list[str] = []
    assert learner.run(stream, callbacks=RunCallbacks(on_note=lambda task, note: noted.append(f"{task} {note}"))) == {}
    assert [note for note in noted if "warning" not in note] == ["mood goes on after epoch 1"]
    assert digests(learner) == expected
    actual = learner.report("core")
    for same in ("oracle", "routed"):
        assert actual[same] == report[same]
    assert [task["parents"] for task in actual["per_task"]] == [task["parents"] for task in report["per_task"]]
    assert learner.registry.delta("mood@1").tried
    assert load_checkpoint(learner.registry, "core", number=1) is None
    assert collect_garbage(learner.registry, older_than=timedelta(0), dry_run=True) == []
    assert find_damage(learner.registry) == []


@pytest.mark.parametrize("damage", ["damaged", "another recipe"])
def test_an_unusable_checkpoint_is_reported_and_ignored(
    learner: Learner, bert_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    cut_short(learner, write_stream(tmp_path, tasks=("animals",)), task="animals", step=6)
    changed = {"seed": 1} if damage == "another recipe" else {}
    if damage == "damaged":
        with learner.registry.read_session() as session:
            (digest,) = session.query(CheckpointRow.digest).one()
        place = Path(learner.registry.blobs.path(digest))
        place.write_bytes(place.read_bytes()[:-1])
        assert ["its checkpoint" in line for line in find_damage(learner.registry)] == [True]
    stream = write_stream(tmp_path, tasks=("animals",), **changed)
    with open_home(bert_folder, tmp_path / "undisturbed") as undisturbed:
        assert undisturbed.run(stream) == {}
        expected = digests(undisturbed)
    with caplog.at_level(logging.WARNING):
        assert learner.run(stream) == {}
    assert "is learned from its beginning" in caplog.text
    assert digests(learner) == expected
    assert find_damage(learner.registry) == []


def test_checkpoints_have_a_limited_overhead(learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints: list[int] = []
    monkeypatch.setattr("continual.learning.checkpoint.MIN_INTERVAL_SECONDS", 1000.0)
    monkeypatch.setattr(
        "continual.learning.checkpoint.save_checkpoint", lambda *_, epoch, **__: checkpoints.append(epoch)
    )
    assert learner.run(write_stream(tmp_path, tasks=("animals",))) == {}
    assert checkpoints == []
    monkeypatch.setattr("continual.learning.checkpoint.MIN_INTERVAL_SECONDS", 0.0)
    assert learner.run(write_stream(tmp_path, tasks=("animals", "mood"))) == {}
    assert checkpoints == [0, 1, 2]


def test_a_failed_checkpoint_does_not_stop_training(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put = learner.registry.blobs._write

    def full(place: str, data: bytes) -> None:
        if b'"course' in data[:20000] or b"random/cpu" in data[:20000]:
            raise OSError(28, "No space left on device")
        put(place, data)

    monkeypatch.setattr(learner.registry.blobs, "_write", full)
    with caplog.at_level(logging.WARNING):
        assert learner.run(write_stream(tmp_path, tasks=("animals",))) == {}
    assert "No space left on device" in caplog.text


def test_a_failed_task_is_retried_after_the_others(learner: Learner, tmp_path: Path) -> None:
    """The disk is full for a moment; the failed task is learned and evaluated at the end."""
    failed: list[str] = []

    def once(task: str, done: int, total: int) -> None:
        if task == "mood" and not failed:
            raise OSError("the disk is full")

    stream = write_stream(tmp_path)
    order: list[str] = []
    watcher = RunCallbacks(on_start=order.append, on_step=once, on_failed=lambda task, error: failed.append(error))
    assert learner.run(stream, callbacks=watcher) == {}
    assert order == ["animals", "mood", "place", "mood"]
    assert failed == ["OSError: the disk is full"]
    assert [p.attempts for p in learner.registry.positions("core")] == [1, 2, 1]
    matrix = learner.report("core")["routed"]["matrix"]
    assert all(matrix[t][i] is not None for t in range(3) for i in range(t + 1))


@pytest.mark.parametrize("retries", [0, 2])
def test_a_failing_task_is_tried_a_limited_number_of_times(learner: Learner, tmp_path: Path, retries: int) -> None:
    hopeless = {"method": {"name": "adapter", "size": 2, "initial_scale": 1e30}}
    stream = write_stream(tmp_path, tasks=("animals",), changes={"animals": hopeless})
    for run in (1, 2):
        assert list(learner.run(stream, retries=retries)) == ["animals"]
        (position,) = learner.registry.positions("core")
        assert (position.state, position.attempts) == ("failed", run * (retries + 1))
    with pytest.raises(InputError, match="-1 times"):
        learner.run(stream, retries=-1)


def test_a_free_position_is_learned_while_an_earlier_one_is_held(learner: Learner, tmp_path: Path) -> None:
    """The stream is evaluated in its own order, which may differ from the order of learning."""
    stream = write_stream(tmp_path)
    cut_short(learner, stream, task="animals", step=1)
    assert claim_position(learner.registry, "core", number=0, holder="elsewhere:1:1")
    order: list[str] = []

    def give_back(task: str, holder: str) -> None:
        assert (task, holder) == ("animals", "elsewhere:1:1")
        assert order == ["mood", "place"], "nobody waits while anything is free"
        assert not learner.registry.scores(mode="routed"), "what came before is not there yet"
        with learner.registry.unit_of_work() as unit:
            unit.mark_failed("core", 0, error="gone", holder=holder)

    assert learner.run(stream, callbacks=RunCallbacks(on_start=order.append, on_wait=give_back), retries=3) == {}
    assert order == ["mood", "place", "animals"]
    report = learner.report("core")
    assert report["tasks"] == ["animals", "mood", "place"]
    assert all(report["routed"]["matrix"][t][i] is not None for t in range(3) for i in range(t + 1))
    assert report["routed"]["acc"] is not None


def test_a_lost_claim_is_noticed_at_the_next_epoch(learner: Learner, tmp_path: Path) -> None:
    stream = write_stream(tmp_path, tasks=("animals",))
    steps: list[int] = []

    def lose(task: str, done: int, total: int) -> None:
        steps.append(done)
        if done == 1:
            with learner.registry.unit_of_work() as unit:
                unit.mark_failed("core", 0, error="taken for dead", holder=current_process_id())

    watcher = RunCallbacks(on_step=lose)
    assert learner.run(stream, callbacks=watcher, retries=0) == {"animals": "taken for dead"}
    per_epoch = 60 // 16 + 1
    assert steps == list(range(1, per_epoch + 1)), "not trained to the end in vain"
