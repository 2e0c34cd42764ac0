"""The unit of work: all or nothing, and errors that name the reason."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from registry import (
    BlobError,
    NotFound,
    Parent,
    Registry,
    RegistryError,
    Score,
    SignatureRecord,
    StreamChanged,
    TaskChanged,
    find_damage,
)
from tasks.errors import InputError
from tests.helpers.fresh_processes import fresh_processes
from tests.helpers.registries import (
    BACKBONE,
    accuracy,
    begin,
    delta_record,
    die_in_a_unit,
    learn,
    learn_in,
    make_registry,
)
from tests.helpers.registries import task_record as task

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        yield opened


def test_an_exception_rolls_the_unit_back(registry: Registry) -> None:
    def interrupted() -> None:
        with registry.unit_of_work() as unit:
            learn_in(unit, registry, "sst2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [*registry.tasks(), *registry.deltas(), *registry.scores()] == []


def test_a_kill_rolls_the_unit_back(tmp_path: Path, registry: Registry) -> None:
    child = fresh_processes().Process(target=die_in_a_unit, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == 9
    assert [*registry.tasks(), *registry.deltas()] == []
    (problem,) = find_damage(registry)
    assert problem.startswith("the registry is empty"), "the blobs that were stored before the kill could be another's"
    assert learn(registry, "sst2") == "sst2@1"
    assert find_damage(registry) == []


def test_a_delta_is_read_back_unchanged(registry: Registry) -> None:
    record = delta_record(registry, "sst2", predictions=registry.blobs.put(b"answers"))
    learn(registry, "sst2", predictions=record.predictions)
    stored = registry.delta("sst2@1")
    assert {name: getattr(stored, name) for name in vars(record)} == vars(record)
    assert (stored.name, stored.version, stored.status, stored.kind) == ("sst2@1", 1, "champion", "classification")
    assert stored.created_at.utcoffset() is not None


@pytest.mark.parametrize(("second", "statuses"), [(0.6, ["archived", "champion"]), (0.5, ["archived", "champion"])])
def test_a_version_that_is_no_worse_becomes_champion(registry: Registry, second: float, statuses: list[str]) -> None:
    learn(registry, "sst2", score=0.5)
    learn(registry, "sst2", score=second)
    assert [row["status"] for row in registry.deltas("sst2")] == statuses
    assert registry.delta("sst2@1").reason == "succeeded by sst2@2"


def test_a_worse_version_stays_a_candidate_with_the_reason(registry: Registry) -> None:
    learn(registry, "sst2", score=0.5)
    learn(registry, "sst2", score=0.4)
    assert registry.delta("sst2@2").status == "candidate"
    assert registry.delta("sst2@2").reason == "validation accuracy 0.4000 is lower than 0.5000 of sst2@1"
    assert [champion.delta for champion in registry.champions("f00d")] == ["sst2@1"]


def test_a_version_without_a_score_stays_a_candidate(registry: Registry) -> None:
    learn(registry, "sst2")
    with registry.unit_of_work() as unit:
        unit.add_delta(delta_record(registry, "sst2"), scores=[accuracy(0.9)])
    assert registry.delta("sst2@2").reason == "no validation accuracy, and 0.5000 of sst2@1 serves"


def test_registering_a_backbone_or_task_again_changes_nothing(registry: Registry) -> None:
    learn(registry, "sst2")
    with registry.unit_of_work() as unit:
        unit.add_backbone(BACKBONE)
        unit.add_task(task("sst2", rows={"train": 9}))
    assert [row["rows"] for row in registry.tasks()] == [{"train": 9}]


def test_a_different_task_under_an_existing_name_is_refused(registry: Registry) -> None:
    learn(registry, "sst2")
    changed = task("sst2", labels=("bad", "good"))
    with (
        pytest.raises(TaskChanged, match=r"labels \('no', 'yes'\) became \('bad', 'good'\)"),
        registry.unit_of_work() as unit,
    ):
        unit.add_task(changed)


def test_names_must_not_hold_an_at_sign(registry: Registry) -> None:
    with pytest.raises(InputError, match="hold no '@'"), registry.unit_of_work() as unit:
        unit.add_task(task("sst2@1"))


def test_unknown_names_are_refused_with_close_matches(registry: Registry) -> None:
    learn(registry, "sst2")
    with pytest.raises(NotFound, match="nearest known: sst2@1"):
        registry.delta("sst@1")
    with pytest.raises(NotFound, match="TASK@VERSION"):
        registry.delta("sst2")
    with pytest.raises(NotFound, match="no stream is called 'core': the registry holds no stream yet"):
        registry.stream("core")
    with pytest.raises(NotFound, match="no task is called 'ss2'"):
        registry.deltas("ss2")


def test_a_delta_needs_its_blobs_and_its_parents(registry: Registry) -> None:
    learn(registry, "sst2")
    with pytest.raises(BlobError, match="is not stored"):
        learn(registry, "sst2", digest="0" * 64)
    with pytest.raises(NotFound, match="nearest known: sst2@1"):
        learn(registry, "sst2", parents=[Parent(delta="sst2@7", kind="warm_start", weight=1.0)])
    assert [row["delta"] for row in registry.deltas()] == ["sst2@1"]


def test_a_score_measured_again_replaces_the_earlier(registry: Registry) -> None:
    learn(registry, "sst2")
    begin(registry, "sst2")
    with registry.unit_of_work() as unit:
        unit.add_scores("sst2@1", [accuracy(0.7), accuracy(0.8), accuracy(0.6, mode="routed", stream="core")])
    assert [score.value for score in registry.scores(mode="oracle", split="test")] == [0.8]
    assert [(score.value, score.delta) for score in registry.scores(stream="core")] == [(0.6, "sst2@1")]


def test_a_stream_only_grows_at_its_end(registry: Registry) -> None:
    begin(registry, "sst2", "trec")
    begin(registry, "sst2", "trec", "mnli")
    assert [(place.number, place.task) for place in registry.stream("core").positions][2:] == [(2, "mnli")]
    with pytest.raises(StreamChanged, match="position 1: 'trec' was begun, 'mnli' is given"):
        begin(registry, "sst2", "mnli", "trec")
    with pytest.raises(StreamChanged, match=r"nothing is given.*another --home"):
        begin(registry, "sst2")
    with pytest.raises(StreamChanged, match="was begun on backbone f00d, not beef"), registry.unit_of_work() as unit:
        unit.begin_stream("core", backbone="beef", spec={}, entries=[])


def test_a_position_is_finished_once_and_by_its_own_task(registry: Registry) -> None:
    begin(registry, "sst2", "trec")
    learn(registry, "sst2")
    with pytest.raises(RegistryError, match="of another one"), registry.unit_of_work() as unit:
        unit.mark_learned("core", 1, delta="sst2@1")
    with registry.unit_of_work() as unit:
        unit.mark_learned("core", 0, delta="sst2@1")
        unit.mark_failed("core", 1, error="out of memory")
    first, second = registry.stream("core").positions
    assert (first.state, first.delta, second.state, second.error) == ("learned", "sst2@1", "failed", "out of memory")
    with pytest.raises(RegistryError, match="learned already"), registry.unit_of_work() as unit:
        unit.mark_learned("core", 0, delta="sst2@1")
    with pytest.raises(NotFound, match="no position 2"), registry.unit_of_work() as unit:
        unit.mark_failed("core", 2, error="")


def test_mlflow_run_ids_are_stored(registry: Registry) -> None:
    begin(registry, "sst2")
    learn(registry, "sst2")
    with registry.unit_of_work() as unit:
        unit.mark_learned("core", 0, delta="sst2@1")
        unit.set_mlflow_run("sst2@1", "run-1")
        unit.set_mlflow_run("core", "run-0")
    assert (registry.stream("core").mlflow_run, registry.deltas()[0]["mlflow_run"]) == ("run-0", "run-1")


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO tasks SELECT 9, name, kind, metric, labels, spec, fingerprints, rows, created_at, purged_at "
        "FROM tasks",
        "UPDATE deltas SET status = 'champion'",
        "UPDATE deltas SET version = 1",
        "UPDATE deltas SET status = 'winner'",
        "UPDATE positions SET number = 0",
        "UPDATE positions SET state = 'held'",
        "UPDATE scores SET mode = 'guessed'",
        "UPDATE scores SET split = 'test'",
        "INSERT INTO lineage (child_id, parent_id, kind, weight) VALUES (2, 1, 'warm_start', 1)",
        "INSERT INTO lineage (child_id, parent_id, kind, weight) VALUES (1, 2, 'warm_start', 1)",
        "INSERT INTO lineage (child_id, parent_id, kind, weight) VALUES (9, 1, 'warm_start', 1)",
        "INSERT INTO signatures SELECT 9, delta_id, digest, rows, layer, pooling, routing FROM signatures",
        "DELETE FROM tasks",
    ],
)
def test_database_constraints_refuse_invalid_rows(registry: Registry, statement: str) -> None:
    learn(registry, "sst2")
    learn(registry, "sst2", parents=[Parent(delta="sst2@1", kind="warm_start", weight=1.0)])
    begin(registry, "sst2", "trec")
    with pytest.raises(IntegrityError), registry.engine.begin() as connection:
        connection.execute(text(statement))
    with pytest.raises(RegistryError, match="could not write"), registry.unit_of_work() as unit:
        unit.session.execute(text(statement))


def test_a_candidate_keeps_the_champions_signature(registry: Registry) -> None:
    for value, content in ((0.9, b"first"), (0.8, b"worse"), (0.95, b"better")):
        with registry.unit_of_work() as unit:
            unit.add_task(task("sst2"))
            unit.add_delta(
                delta_record(registry, "sst2"),
                scores=[Score(split="validation", metric="accuracy", value=value, rows=10)],
                signature=SignatureRecord(digest=registry.blobs.put(content), rows=4, pooling="mean"),
            )
        (stored,) = registry.signatures("f00d")
        assert registry.blobs.get(stored.digest) == (b"better" if content == b"better" else b"first")


def test_a_new_row_can_be_added_concurrently(tmp_path: Path) -> None:
    """Neither unit finds the row, and both insert it: the second waits and uses the first one's."""
    make_registry(tmp_path).close()
    together = Barrier(4)

    def add(number: int) -> None:
        with make_registry(tmp_path) as registry:
            together.wait()
            with registry.unit_of_work() as unit:
                unit.add_backbone(replace(BACKBONE, fingerprint="new"))
                unit.begin_stream("shared", backbone="new", spec={}, entries=[("shared", "r")])
                unit.add_task(task("shared"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    with make_registry(tmp_path) as registry:
        assert [stream.name for stream in registry.streams()] == ["shared"]
        assert [row["task"] for row in registry.tasks()] == ["shared"]
        assert [backbone.fingerprint for backbone in registry.backbones()] == [BACKBONE.fingerprint, "new"]
