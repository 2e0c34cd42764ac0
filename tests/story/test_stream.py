"""A stream of three tasks on a tiny backbone through the public API: learned, repeated, failed, killed, shared."""

import json
import math
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from continual import Learner, read_stream
from continual.callbacks import RunCallbacks
from continual.deltas import load_delta
from continual.errors import TrainingError
from continual.learning.prepared import prepare_task
from continual.learning.record import deserialize_outputs, serialize_outputs
from continual.settings import resolve_locations
from registry import Registry, Score, current_process_id, release
from registry.errors import NotFound, StreamChanged
from registry.operations.verify import find_damage
from registry.records import require_digest
from tasks import Stream, TaskSpec, load_stream, read_task
from tasks.errors import InputError, StreamError
from tests.helpers.claims import claim_position
from tests.helpers.fresh_processes import FreshPython
from tests.helpers.paths import DOCS
from tests.helpers.registries import digest_of
from tests.helpers.tiny_tasks import labels_of, logits, rows_of, write_rows, write_task

TASKS = ("animals", "mood", "place")
BUDGET = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "max_length": 32}
MEASURES = {"acc", "bwt", "fwt", "fwt_random_init", "forgetting", "la", "aia"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(cache: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(cache))
        patch.setattr("continual.streams.worker_loop.POLL_SECONDS", 0.05)
        yield


def write_stream(folder: Path, *, tasks: tuple[str, ...] = TASKS, changes: Any = None, **keys: Any) -> Stream:
    """Write and read a stream of tiny tasks; `changes` holds keys of single tasks."""
    entries = [write_task(folder, task) | (changes or {}).get(task, {}) for task in tasks]
    content = {"name": "core", "seed": 0, "method": {"name": "lora", "rank": 2}, "budget": BUDGET, "tasks": entries}
    (folder / "stream.yaml").write_text(yaml.safe_dump(content | keys))
    return read_stream(folder / "stream.yaml")


def open_home(backbone: Path, home: Path) -> Learner:
    """Open a learner with a registry and without MLflow."""
    places = resolve_locations(home, {})
    registry = Registry.open(places.registry, places.blobs)
    return Learner.open(str(backbone), registry, device="cpu", dtype="float32")


def rows_in_sql(learner: Learner) -> dict[str, int]:
    from sqlalchemy import func, select

    from registry.schema.base import Base

    with learner.registry.read_session() as session:
        tables = Base.metadata.sorted_tables
        return {table.name: session.scalars(select(func.count()).select_from(table)).one() for table in tables}


@pytest.fixture(scope="module")
def learned(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a learned stream and its home; tests must not change it."""
    folder = tmp_path_factory.mktemp("learned")
    stream = write_stream(folder, warm_start="nearest", measure_gain=True)
    with open_home(bert_folder, folder / "home") as learner:
        assert learner.run(stream) == {}
    return folder


@pytest.fixture
def folder(learned: Path, tmp_path: Path) -> Path:
    """A copy of the learned folder at another path, on which nothing may depend."""
    return Path(shutil.copytree(learned, tmp_path / "copy"))


@pytest.fixture
def learner(bert_folder: Path, folder: Path) -> Iterator[Learner]:
    with open_home(bert_folder, folder / "home") as opened:
        yield opened


@pytest.fixture
def empty(bert_folder: Path, tmp_path: Path) -> Iterator[Learner]:
    with open_home(bert_folder, tmp_path / "home") as opened:
        yield opened


def digests(learner: Learner) -> dict[str, str]:
    return {row["delta"]: digest_of(learner.registry, row["delta"]) for row in learner.registry.deltas()}


def test_the_report_has_the_contracts_fields(learner: Learner) -> None:
    report = json.loads(json.dumps(learner.report("core")))
    assert report.keys() >= {"stream", "backbone", "tasks", "oracle", "routed", "per_task"}
    assert (report["stream"], report["tasks"]) == ("core", list(TASKS))
    assert report["oracle"].keys() >= {"matrix"} | MEASURES
    assert report["routed"].keys() >= {"matrix", "routing_accuracy"} | MEASURES
    for mode in ("oracle", "routed"):
        matrix = report[mode]["matrix"]
        assert [len(row) for row in matrix] == [3, 3, 3]
        assert all(0 <= matrix[t][i] <= 1 for t in range(3) for i in range(t + 1))
    assert all(report["routed"]["matrix"][t][i] is None for t in range(3) for i in range(t + 1, 3))
    assert 0 <= report["routed"]["routing_accuracy"] <= 1
    assert report["routed"]["fwt"] is report["routed"]["fwt_random_init"] is None
    assert report["oracle"]["matrix"][0][2] is None, "two tasks ahead nothing is measured"
    fields = {"task", "method", "delta", "parameters", "share", "score", "scratch_score", "warm_start", "parents"}
    for task, delta in zip(report["per_task"], ("animals@1", "mood@1", "place@1"), strict=True):
        assert task.keys() >= fields | {"seconds", "examples_per_second"}
        assert task["delta"] == delta
        assert 0 < task["share"] < 1
        assert task["share"] * learner.backbone.parameter_count == pytest.approx(task["parameters"])
        assert task["examples_per_second"] > 0


def test_separable_tasks_are_learned_and_routed(learner: Learner) -> None:
    report = learner.report("core")
    assert report["oracle"]["acc"] > 0.9
    assert report["routed"]["routing_accuracy"] > 0.9
    assert report["routed"]["acc"] > 0.8


def test_forgetting_is_exactly_zero(learner: Learner, folder: Path) -> None:
    """Exactly zero, with bit-identical outputs for every stored answer."""
    oracle = learner.report("core")["oracle"]
    assert (oracle["forgetting"], oracle["bwt"]) == (0.0, 0.0)
    assert [row[0] for row in oracle["matrix"]] == [oracle["matrix"][0][0]] * 3
    for data in load_stream(read_stream(folder / "stream.yaml")):
        stored = learner.registry.delta(f"{data.spec.name}@1")
        delta = load_delta(learner.registry.blobs.get(require_digest(stored.digest, stored.name)))
        again = logits(learner.backbone, delta, prepare_task(learner.backbone, data).test.tokens)
        assert stored.predictions is not None
        blob = learner.registry.blobs.get(stored.predictions)
        assert torch.equal(again, deserialize_outputs(blob)["logits"])
        assert serialize_outputs({"logits": again}) == blob


def test_the_routed_matrix_agrees_with_predict(learner: Learner, folder: Path) -> None:
    """The last row, scored again by predict: the right task and the right label."""
    last = learner.report("core")["routed"]["matrix"][-1]
    for score, task in zip(last, TASKS, strict=True):
        rows = rows_of(task, 12, seed=2)
        predictions = learner.predict(rows.texts, false_abstentions=0)
        right = [p.task == task and p.label == label for p, label in zip(predictions, rows.labels, strict=True)]
        assert sum(right) / 12 == pytest.approx(score)


def test_running_again_trains_and_writes_nothing(learner: Learner, folder: Path) -> None:
    before, rows, report = digests(learner), rows_in_sql(learner), learner.report("core")
    events: list[str] = []
    watcher = RunCallbacks(on_start=events.append, on_learned=lambda task, delta: events.append(delta))
    assert learner.run(read_stream(folder / "stream.yaml"), callbacks=watcher) == {}
    assert events == ["animals@1", "mood@1", "place@1"]
    assert (digests(learner), rows_in_sql(learner), learner.report("core")) == (before, rows, report)
    assert find_damage(learner.registry) == []


def test_learning_is_repeatable_to_the_bit(learner: Learner, folder: Path, bert_folder: Path, tmp_path: Path) -> None:
    with open_home(bert_folder, tmp_path / "other") as second_learner:
        assert second_learner.run(read_stream(folder / "stream.yaml")) == {}
        assert digests(second_learner) == digests(learner)


def test_nearest_records_the_parent(learner: Learner) -> None:
    per_task = {task["task"]: task for task in learner.report("core")["per_task"]}
    assert per_task["animals"]["parents"] == []
    assert per_task["animals"]["warm_start"] == "scratch"
    assert per_task["mood"]["parents"] == [{"delta": "animals@1", "weight": 1.0}]
    assert per_task["mood"]["warm_start"] == "nearest"
    (edge,) = learner.registry.lineage("mood@1")
    assert (edge["parent"], edge["kind"], edge["depth"]) == ("animals@1", "warm_start", 1)
    assert per_task["place"]["parents"][0]["delta"] in ("animals@1", "mood@1")
    assert all(task["scratch_score"] is not None for task in per_task.values()), "measure_gain trains scratch too"


def test_forward_transfer_uses_earlier_deltas_only(learner: Learner) -> None:
    oracle = learner.report("core")["oracle"]
    scores = learner.registry.scores(split="test")
    ahead = {s.task: s.value for s in scores if s.mode == "neighbour"}
    frozen = {s.task: s.value for s in scores if s.mode == "frozen"}
    assert [oracle["matrix"][0][1], oracle["matrix"][1][2]] == [ahead["mood"], ahead["place"]]
    gains = [ahead[task] - frozen[task] for task in ("mood", "place")]
    assert oracle["fwt"] == pytest.approx(sum(gains) / 2)


def test_forward_transfer_over_random_initialisation(learner: Learner, folder: Path) -> None:
    """b̄[i] is the accuracy of an untrained head on the frozen backbone's pooled vectors."""
    report, scores = learner.report("core"), learner.registry.scores(split="test")
    ahead = {s.task: s.value for s in scores if s.mode == "neighbour"}
    random_init = {row["task"]: row["random_init_score"] for row in report["per_task"]}
    gains = [ahead[task] - random_init[task] for task in ("mood", "place")]
    assert report["oracle"]["fwt_random_init"] == pytest.approx(sum(gains) / 2)
    for data in load_stream(read_stream(folder / "stream.yaml")):
        task = prepare_task(learner.backbone, data)
        head = task.random_head()
        assert head is not None
        assert 0.01 < float(head.weight.std()) < 0.03
        answers = (task.frozen_views[2].vectors @ head.weight.T).argmax(dim=1).tolist()
        right = [data.labels[i] == label for i, label in zip(answers, data.test.labels, strict=True)]
        assert random_init[data.spec.name] == pytest.approx(sum(right) / len(right))


def test_the_calibration_error_lies_beside_the_score(learner: Learner, folder: Path) -> None:
    report = {row["task"]: row for row in learner.report("core")["per_task"]}
    for data in load_stream(read_stream(folder / "stream.yaml")):
        name = data.spec.name
        predictions = learner.predict(data.test.texts, name)
        gaps: dict[int, float] = {}
        for prediction, label in zip(predictions, data.test.labels, strict=True):
            assert prediction.score is not None
            m = math.ceil(prediction.score * 15)
            gaps[m] = gaps.get(m, 0.0) + (prediction.label == label) - prediction.score
        assert report[name]["ece"] == pytest.approx(sum(map(abs, gaps.values())) / len(predictions), abs=1e-5)
    assert {row["metric"] for row in learner.registry.best()} == {"accuracy"}, "lower is better: it is no best score"


def test_without_epochs_the_closed_form_answers(empty: Learner, tmp_path: Path) -> None:
    stream = write_stream(tmp_path, budget=BUDGET | {"epochs": 0}, warm_start="scratch")
    assert empty.run(stream) == {}
    report = empty.report("core")
    assert report["oracle"]["acc"] > 0.8
    for task in report["per_task"]:
        assert task["score"] == pytest.approx(task["frozen_score"]), "LoRA starts as the frozen backbone itself"
        assert task["examples_per_second"] is None
    rows = rows_of("mood", 8, seed=3)
    assert sum(p.label == label for p, label in zip(empty.predict(rows.texts, "mood"), rows.labels, strict=True)) >= 6


def test_training_moves_the_delta_and_never_harms_it_on_held_out_rows(learner: Learner) -> None:
    for name in digests(learner):
        curve = [s for s in learner.registry.scores(delta=name, mode="curve") if s.split == "validation"]
        (score,) = [s for s in learner.registry.scores(delta=name, mode="oracle") if s.split == "validation"]
        assert [s.step for s in curve] == [0, 1, 2]
        assert score.value == max(s.value for s in curve)


def test_predict_keeps_order_and_names_tasks(learner: Learner) -> None:
    texts = ["purr meow whisker", "lovely bright superb", "wave coral tide", "bark fetch leash"]
    predictions = learner.predict(texts)
    assert [p.text for p in predictions] == texts
    assert [(p.task, p.label) for p in predictions] == [
        ("animals", "cat"), ("mood", "good"), ("place", "sea"), ("animals", "dog"),
    ]  # fmt: skip
    assert all(p.routed and not p.abstained for p in predictions)
    assert all(p.score is not None and 0 <= p.score <= 1 for p in predictions)
    assert all(p.confidence is not None and 0 <= p.confidence <= 1 for p in predictions)
    named = learner.predict(texts, task="mood")
    assert all(p.task == "mood" and not p.routed and p.confidence is None and p.delta == "mood@1" for p in named)
    assert {p.label for p in named} <= set(labels_of("mood"))
    assert learner.predict([]) == []
    with pytest.raises(NotFound, match=r"zzz.*animals"):
        learner.predict(texts, task="zzz")


def test_predicting_with_nothing_learned_is_refused(empty: Learner) -> None:
    with pytest.raises(InputError, match="nothing has been learned"):
        empty.predict(["purr"])


def test_a_failing_task_stops_no_other_and_is_retried(empty: Learner, tmp_path: Path) -> None:
    stream = write_stream(tmp_path, changes={"mood": {"method": {"name": "adapter", "size": 2, "initial_scale": 1e30}}})
    failed = empty.run(stream)
    assert list(failed) == ["mood"]
    assert TrainingError.__name__ in failed["mood"]
    assert "learning_rate" in failed["mood"]
    assert list(digests(empty)) == ["animals@1", "place@1"]
    assert {row["task"] for row in empty.registry.tasks()} == {"animals", "place"}
    position = empty.registry.stream("core").positions[1]
    assert (position.state, position.delta, position.holder) == ("failed", None, None)
    assert "learning_rate" in (position.error or "")
    report = empty.report("core")
    assert report["tasks"] == ["animals", "place"]
    assert report["routed"]["acc"] is not None
    assert find_damage(empty.registry) == []

    before = digests(empty)
    assert list(empty.run(stream)) == ["mood"], "it is tried again, and fails again"
    assert empty.run(write_stream(tmp_path)) == {}, "what is not learned yet may be mended"
    assert {name: digest for name, digest in digests(empty).items() if name in before} == before
    report = empty.report("core")
    assert report["tasks"] == list(TASKS)
    assert all(report["routed"]["matrix"][t][i] is not None for t in range(3) for i in range(t + 1))
    assert report["routed"]["forgetting"] is not None
    assert find_damage(empty.registry) == []


def test_a_failure_while_registering_is_rolled_back(
    empty: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from registry import UnitOfWork

    finish = UnitOfWork.mark_learned

    def fail_for_mood(self: UnitOfWork, stream: str, number: int, **keys: Any) -> None:
        if number == 1:
            raise OSError("the disk is full")
        finish(self, stream, number, **keys)

    monkeypatch.setattr(UnitOfWork, "mark_learned", fail_for_mood)
    stream = write_stream(tmp_path)
    assert empty.run(stream) == {"mood": "OSError: the disk is full"}
    assert list(digests(empty)) == ["animals@1", "place@1"]
    assert {row["task"] for row in empty.registry.tasks()} == {"animals", "place"}
    monkeypatch.undo()
    assert empty.run(stream) == {}
    assert sorted(digests(empty)) == ["animals@1", "mood@1", "place@1"]


@pytest.mark.parametrize("moment", ["on_start", "on_step"])
def test_an_interrupted_run_resumes_at_once(empty: Learner, tmp_path: Path, moment: str) -> None:
    def stop(task: str, *_: object) -> None:
        if task == "mood":
            raise KeyboardInterrupt

    stream = write_stream(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        empty.run(stream, callbacks=replace(RunCallbacks(), **{moment: stop}))
    # A position left to this process, which is alive, would make its next run wait for itself for ever.
    assert [p.state for p in empty.registry.stream("core").positions] == ["learned", "waiting", "waiting"]
    assert empty.run(stream) == {}


def test_a_position_lost_to_another_controller_is_learned_once(empty: Learner, tmp_path: Path) -> None:
    """Claimed by a controller that took it for dead and then released it: no duplicate, no other task lost."""
    from sqlalchemy import update

    from registry.schema.tables import Position

    stream = write_stream(tmp_path)
    stolen: list[str] = []

    def steal(task: str, done: int, total: int) -> None:
        if task == "mood" and not stolen:
            with empty.registry.unit_of_work() as unit:
                values = {"state": "waiting", "holder": None, "lease_until": None}
                unit.session.execute(update(Position).where(Position.number == 1).values(**values))
            stolen.append(task)

    assert empty.run(stream, callbacks=RunCallbacks(on_step=steal)) == {}, (
        "what is another's task is not reported as failed"
    )
    assert stolen
    assert sorted(digests(empty)) == ["animals@1", "mood@1", "place@1"]


def child(bert_folder: Path, folder: Path, *moments: str) -> FreshPython:
    arguments = [bert_folder, folder / "home", folder / "stream.yaml", *moments]
    return FreshPython("-m", "tests.helpers.processes.controller", *arguments)


def begin(process: FreshPython) -> None:
    assert process.stdout.readline() == "ready\n", process.stderr
    process.stdin.write("\n")


def test_a_run_resumes_after_a_kill_at_any_step(bert_folder: Path, tmp_path: Path) -> None:
    stream = write_stream(tmp_path)
    victims = [
        child(bert_folder, tmp_path, moment) for moment in ("step", "learned")
    ]  # both start now, and run in turn
    for process, done in zip(victims, (["animals@1"], ["animals@1", "mood@1"]), strict=True):
        begin(process)
        assert process.wait(120) == -signal.SIGKILL
        with open_home(bert_folder, tmp_path / "home") as learner:
            assert list(digests(learner)) == done
            assert find_damage(learner.registry) == []
            learner.report("core")
    started: list[str] = []
    with open_home(bert_folder, tmp_path / "home") as learner:
        before = digests(learner)
        assert learner.run(stream, callbacks=RunCallbacks(on_start=started.append)) == {}
        assert started == ["place"], "what was learned is not trained again"
        assert {name: digests(learner)[name] for name in before} == before
        report, actual = learner.report("core"), digests(learner)
        assert None not in (report["oracle"]["acc"], report["routed"]["acc"], report["routed"]["routing_accuracy"])
        assert find_damage(learner.registry) == []
    with open_home(bert_folder, tmp_path / "undisturbed") as undisturbed:
        assert undisturbed.run(stream) == {}
        assert digests(undisturbed) == actual
        assert undisturbed.report("core")["routed"]["matrix"] == report["routed"]["matrix"]


def test_two_controllers_learn_every_task_once(bert_folder: Path, tmp_path: Path) -> None:
    stream = write_stream(tmp_path)
    process = child(bert_folder, tmp_path)
    with open_home(bert_folder, tmp_path / "home") as learner:
        started: list[str] = []
        begin(process)
        assert learner.run(stream, callbacks=RunCallbacks(on_start=started.append)) == {}
        assert process.wait(120) == 0, process.stderr
        assert sorted(digests(learner)) == ["animals@1", "mood@1", "place@1"]
        assert len(started) == len(set(started))
        assert [p.state for p in learner.registry.stream("core").positions] == ["learned"] * 3
        matrix = learner.report("core")["routed"]["matrix"]
        assert all(matrix[t][i] is not None for t in range(3) for i in range(t + 1))
        assert find_damage(learner.registry) == []


def test_a_position_held_by_another_controller_is_awaited(empty: Learner, tmp_path: Path) -> None:
    stream = write_stream(tmp_path)

    def stop(task: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        empty.run(stream, callbacks=RunCallbacks(on_step=stop))
    assert claim_position(empty.registry, "core", number=0, holder=current_process_id())

    def let_go(task: str, holder: str) -> None:
        assert (task, holder) == ("animals", current_process_id())
        release(empty.registry, "core", number=0, holder=holder)

    assert empty.run(stream, callbacks=RunCallbacks(on_wait=let_go)) == {}


@pytest.mark.parametrize(
    "changes",
    [{"budget": {"epochs": 1}}, {"method": {"name": "lora", "rank": 3}}, {"warm_start": "scratch"}, {"metric": "mcc"}],
    ids=str,
)
def test_a_learned_task_with_changed_settings_is_refused(
    learner: Learner, folder: Path, changes: dict[str, Any]
) -> None:
    before = rows_in_sql(learner)
    stream = write_stream(folder, changes={"mood": changes}, warm_start="nearest", measure_gain=True)
    with pytest.raises(InputError, match="mood"):
        learner.run(stream)
    assert rows_in_sql(learner) == before


def test_changed_rows_seed_or_order_are_refused(learner: Learner, folder: Path) -> None:
    keys: dict[str, Any] = {"warm_start": "nearest", "measure_gain": True}
    with pytest.raises(StreamChanged):
        learner.run(write_stream(folder, seed=1, **keys))
    with pytest.raises(StreamChanged):
        learner.run(write_stream(folder, tasks=("mood", "animals", "place"), **keys))
    with pytest.raises(StreamChanged):
        learner.run(write_stream(folder, tasks=TASKS[:2], **keys))
    stream = write_stream(folder, **keys)
    rows = rows_of("animals", 24, seed=9)
    write_rows(folder / "animals" / "train.jsonl", rows.texts, rows.labels)
    with pytest.raises(StreamChanged, match="animals"):
        learner.run(stream)


def test_an_error_says_what_of_a_stream_changed_and_what_to_do(learner: Learner, folder: Path) -> None:
    """Rows that were added, another seed, and settings, for every task at once, and the command for each."""
    keys: dict[str, Any] = {"warm_start": "nearest", "measure_gain": True}
    stream = write_stream(folder, changes={"mood": {"method": "bitfit", "budget": {"epochs": 1, "joint": 2}}}, **keys)
    more = rows_of("animals", 72)
    write_rows(folder / "animals" / "train.jsonl", more.texts, more.labels)
    with pytest.raises(StreamChanged) as caught:
        learner.run(stream)
    animals, mood, advice = str(caught.value).splitlines()[1:]
    assert animals == "task 'animals': train has 72 rows, 60 when it was learned"
    assert mood == (
        "task 'mood': method.name is 'bitfit', 'lora' when it was learned; budget.epochs is '1', '2' when it was "
        "learned; method.rank is not given, '2' when it was learned"
    )
    assert "`continual learn STREAM.yaml --task animals`, `continual learn STREAM.yaml --task mood`" in advice
    with pytest.raises(StreamChanged, match="task 'place': seed is 1, 0 when it was learned"):
        learner.run(write_stream(folder, seed=1, **keys))


def test_a_task_of_a_stream_is_learned_again_beside_its_position(learner: Learner, folder: Path) -> None:
    write_stream(folder, warm_start="nearest", measure_gain=True, seed=0)
    before, recorded = learner.registry.stream("core"), learner.registry.delta("animals@1").data
    more = rows_of("animals", 72)
    write_rows(folder / "animals" / "train.jsonl", more.texts, more.labels)
    assert learner.learn(read_task(folder / "stream.yaml", "animals")) == "animals@2"
    again = learner.registry.delta("animals@2").data
    assert recorded is not None
    assert again is not None
    assert (again.spec, again.seed, again.rows) == (recorded.spec, recorded.seed, recorded.rows | {"train": 72})
    assert learner.registry.stream("core") == before


def test_a_task_of_a_stream_file_must_be_named(folder: Path) -> None:
    stream = folder / "stream.yaml"
    with pytest.raises(StreamError, match="--task NAME` learns one of animals, mood, place, `continual run "):
        read_task(stream)
    with pytest.raises(StreamError, match="no task 'foood'; give one of animals, mood, place"):
        read_task(stream, "foood")
    entry = yaml.safe_load(stream.read_text(encoding="utf-8"))["tasks"][0]
    (folder / "task.yaml").write_text(yaml.safe_dump(entry), encoding="utf-8")
    assert read_task(folder / "task.yaml", "animals") == read_task(folder / "task.yaml")
    with pytest.raises(StreamError, match="of task 'animals', not of 'mood'"):
        read_task(folder / "task.yaml", "mood")
    examples = DOCS / "examples"
    (billing,) = load_stream(read_task(examples / "billing.yaml"))
    assert load_stream(read_task(examples / "helpdesk.yaml", "billing")) == (billing,)


def test_changed_labels_are_refused(learner: Learner, folder: Path) -> None:
    stream = write_stream(folder, warm_start="nearest", measure_gain=True, name="another")
    for split in ("train", "validation", "test"):
        rows = rows_of("animals", 12, seed=4)
        write_rows(folder / "animals" / f"{split}.jsonl", rows.texts, [label.upper() for label in rows.labels])
    with pytest.raises(InputError, match=r"animals.*labels"):
        learner.run(stream)


def test_an_appended_task_is_learned_and_the_others_stay(learner: Learner, folder: Path) -> None:
    before = digests(learner)
    stream = write_stream(folder, tasks=(*TASKS, "food"), warm_start="nearest", measure_gain=True)
    started: list[str] = []
    assert learner.run(stream, callbacks=RunCallbacks(on_start=started.append)) == {}
    assert started == ["food"]
    assert {name: digest for name, digest in digests(learner).items() if name != "food@1"} == before
    report = learner.report("core")
    assert report["tasks"] == [*TASKS, "food"]
    assert all(report["routed"]["matrix"][t][i] is not None for t in range(4) for i in range(t + 1))
    assert report["oracle"]["forgetting"] == 0.0


def poison_tests(folder: Path) -> None:
    """Replace texts and labels of every test split."""
    for task in TASKS:
        labels, rows = labels_of(task), rows_of(task, 12, seed=77)
        swapped = dict(zip(labels, (*labels[1:], labels[0]), strict=True))
        write_rows(folder / task / "test.jsonl", rows.texts, [swapped[label] for label in rows.labels])


def test_test_rows_affect_nothing_but_scores(learner: Learner, bert_folder: Path, tmp_path: Path) -> None:
    """With poisoned test rows: the same deltas to the bit, parents and curves, and different scores."""
    stream = write_stream(tmp_path, warm_start="nearest", measure_gain=True)
    poison_tests(tmp_path)
    with open_home(bert_folder, tmp_path / "poisoned") as poisoned:
        assert poisoned.run(stream) == {}
        assert digests(poisoned) == digests(learner)
        assert [s.digest for s in poisoned.registry.signatures(poisoned.backbone.fingerprint)] == [
            s.digest for s in learner.registry.signatures(learner.backbone.fingerprint)
        ]
        poisoned_scores, clean_scores = (
            [(s.split, s.value) for s in candidate.registry.scores(delta="mood@1") if s.split != "test"]
            for candidate in (poisoned, learner)
        )
        assert poisoned_scores == clean_scores
        assert poisoned.report("core")["oracle"]["acc"] < 0.5 < learner.report("core")["oracle"]["acc"]


def test_the_registry_holds_no_row_of_a_task(learner: Learner, folder: Path) -> None:
    texts = [str(text).encode() for task in TASKS for seed in range(3) for text in rows_of(task, 12, seed=seed).texts]
    for file in (folder / "home").rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert not any(text in data for text in texts), file.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lorra"}, "did you mean 'lora'"),
        ({"method": {"name": "lora", "rank": 0}}, "rank"),
        ({"method": {"name": "lora", "sites": ["attn.zzz"]}}, "attn.zzz"),
        ({"text": "txt"}, "did you mean 'text'"),
    ],
    ids=str,
)
def test_all_tasks_are_checked_before_any_is_learned(
    empty: Learner, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    stream = write_stream(tmp_path, changes={"place": changes, "mood": {"label": "lable"}})
    with pytest.raises(InputError) as caught:
        empty.run(stream)
    for part in ("'place'", message, "'mood'", "did you mean 'label'"):
        assert part in str(caught.value), "one message for all that is to be mended"
    assert set(rows_in_sql(empty).values()) == {0}


def test_a_stream_on_another_backbone_is_refused(learner: Learner, folder: Path, roberta_folder: Path) -> None:
    with open_home(roberta_folder, folder / "home") as other_learner, pytest.raises(StreamChanged, match="backbone"):
        other_learner.run(read_stream(folder / "stream.yaml"))


def test_roberta_learns_a_stream_too(roberta_folder: Path, tmp_path: Path) -> None:
    stream = write_stream(tmp_path, tasks=TASKS[:2], method="adapter", changes={"mood": {"method": "bitfit"}})
    with open_home(roberta_folder, tmp_path / "home") as learner:
        assert learner.run(stream) == {}
        report = learner.report("core")
        assert [task["method"] for task in report["per_task"]] == ["adapter", "bitfit"]
        assert report["oracle"]["acc"] > 0.8
        assert report["oracle"]["forgetting"] == 0.0


def test_learning_a_lone_task_again_makes_its_next_version(learner: Learner, folder: Path) -> None:
    entry = write_task(folder, "mood") | {"method": {"name": "lora", "rank": 2}, "budget": BUDGET}
    (folder / "task.yaml").write_text(yaml.safe_dump(entry))
    assert learner.learn(read_task(folder / "task.yaml")) == "mood@2"
    assert learner.learn(TaskSpec.model_validate(entry), folder=folder) == "mood@3"
    by_name = {row["delta"]: row for row in learner.registry.deltas("mood")}
    assert sum(row["status"] == "champion" for row in by_name.values()) == 1
    report = learner.report("core")
    assert report["per_task"][1]["delta"] == "mood@1", "a stream keeps the delta that it learned"


def test_a_tasks_own_earlier_version_is_no_forward_transfer(empty: Learner, tmp_path: Path) -> None:
    entry = TaskSpec.model_validate(write_task(tmp_path, "mood") | {"budget": BUDGET, "warm_start": "nearest"})
    empty.learn(entry, folder=tmp_path)
    name = empty.learn(entry, folder=tmp_path)
    assert [edge["parent"] for edge in empty.registry.lineage(name)] == ["mood@1"]
    assert empty.registry.scores(mode="neighbour") == (), "there is no other task to look ahead from"


def test_signatures_of_different_pooling_are_not_mixed(learner: Learner, folder: Path) -> None:
    """The fingerprint does not cover pooling: signatures by the mean do not serve another pooling."""
    other_learner = Learner(replace(learner.backbone, pooling="cls"), learner.registry)
    with pytest.raises(InputError, match="pool"):
        other_learner.predict(["purr meow"])


def test_scores_are_read_with_their_interval(learner: Learner) -> None:
    (score,) = [s for s in learner.registry.scores(delta="mood@1", mode="oracle") if s.split == "test"]
    assert isinstance(score, Score)
    assert score.low is not None
    assert score.high is not None
    assert score.low <= score.value <= score.high
    assert score.rows == 12
