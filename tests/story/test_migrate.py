"""Migration to another backbone: retraining, contests, unavailable rows, kills and concurrency."""

import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from continual import Learner, read_stream
from continual.backbones.backbone import Backbone
from continual.callbacks import RunCallbacks
from continual.errors import TrainingError
from continual.learning.prepared import PreparedTask, prepare_task
from continual.streams.migration.outcome import MigrationOutcome
from registry import DataRecord, StoredDelta, archive_delta, current_process_id, find_damage, promote_delta, release
from tasks import Stream, TaskData, TaskSpec
from tasks.errors import InputError
from tests.helpers.claims import claim_position
from tests.helpers.cli import CliRunner
from tests.helpers.fresh_processes import FreshPython
from tests.helpers.tiny_tasks import rows_of, save_backbone, tiny_backbone, write_rows, write_task
from tests.story.test_stream import open_home, write_stream

TASKS = ("animals", "mood", "place")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("continual.streams.worker_loop.POLL_SECONDS", 0.05)
        yield


@pytest.fixture(scope="module")
def blind_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone to which all words are the same."""
    blind = tiny_backbone("bert", seed=1)
    blind.model.embeddings.word_embeddings.weight.zero_()
    return save_backbone(blind, tmp_path_factory.mktemp("tiny-blind"))


@pytest.fixture(scope="module")
def learned(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three learned tasks: two in a stream, and an earlier one with another seed and folder."""
    folder = tmp_path_factory.mktemp("learned")
    (folder / "alone").mkdir()
    alone = write_stream(folder / "alone", tasks=("place",), seed=3)
    with open_home(bert_folder, folder / "home") as learner:
        learner.learn(alone.model_copy(update={"name": "place"}))
        assert learner.run(write_stream(folder, tasks=("animals", "mood"), warm_start="nearest")) == {}
    return folder


@pytest.fixture
def home(learned: Path, tmp_path: Path) -> Path:
    """A copy of the home to migrate; the rows stay where they were."""
    return Path(shutil.copytree(learned / "home", tmp_path / "home"))


def on_bert(learner: Learner, bert_folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return every record of the champions on the old backbone."""
    registry = learner.registry
    (old,) = (backbone for backbone in registry.backbones() if backbone.name == str(bert_folder))
    names = [champion.delta for champion in registry.champions(old.fingerprint)]
    return {name: (registry.delta(name), registry.signature(name), registry.scores(delta=name)) for name in names}


def by_task(rows: list[MigrationOutcome]) -> dict[str, MigrationOutcome]:
    return {row.task: row for row in rows}


def rows_of_version(delta: StoredDelta) -> DataRecord:
    """Return what a version was learned from, without how it answered."""
    assert delta.data
    return replace(delta.data, answers=None)


def test_every_task_is_learned_again_beside_the_old_one(
    bert_folder: Path, roberta_folder: Path, learned: Path, home: Path
) -> None:
    with open_home(roberta_folder, home) as learner:
        before, started = on_bert(learner, bert_folder), list[str]()
        rows = learner.migrate(callbacks=RunCallbacks(on_start=started.append))
        assert on_bert(learner, bert_folder) == before
        assert started == ["place", "animals", "mood"], "as they were learned"
        assert [(row.old, row.new, row.state) for row in rows] == [
            (f"{task}@1", f"{task}@2", "learned") for task in started
        ]
        for row in rows:
            old, new = learner.registry.delta(row.old), learner.registry.delta(f"{row.task}@2")
            assert rows_of_version(new) == rows_of_version(old)
            assert (new.settings, new.budget, new.seed) == (old.settings, old.budget, old.seed)
            assert {"parent": row.old, "kind": "retrained", "weight": 0.0}.items() <= learner.registry.lineage(
                new.name, depth=1
            )[-1].items()
            assert row.old_validation is not None
            assert row.new_validation is not None
            no_worse = row.new_validation >= row.old_validation
            assert row.serves == (row.new if no_worse else None)
            assert new.status == ("champion" if no_worse else "candidate")
        assert any(row.serves for row in rows)
        nearest = [
            edge["parent"] for edge in learner.registry.lineage("mood@2", depth=1) if edge["kind"] == "warm_start"
        ]
        assert set(nearest) <= {"place@2", "animals@2"}, "warm starts are from the new backbone's"
        stream = learner.registry.last_stream()
        assert stream
        report = learner.report(stream)
        assert report["tasks"] == started
        assert None not in (report["oracle"]["acc"], report["routed"]["acc"], report["routed"]["routing_accuracy"])
        assert find_damage(learner.registry) == []
        again = learner.migrate(callbacks=RunCallbacks(on_start=started.append))
        assert (again, len(started)) == (rows, 3), "what is migrated is not learned again"
    with open_home(bert_folder, home) as learner:
        assert learner.run(read_stream(learned / "stream.yaml"), callbacks=RunCallbacks(on_start=started.append)) == {}
        assert len(started) == 3
        assert {p.delta for p in learner.predict(["purr meow", "street tower"], false_abstentions=0)} <= set(before)


def test_a_worse_version_stays_a_candidate(bert_folder: Path, blind_folder: Path, home: Path) -> None:
    with open_home(blind_folder, home) as learner:
        (row,) = learner.migrate(tasks=["mood"])
        stored = learner.registry.delta("mood@2")
        message = f"worse than mood@1 on {bert_folder}: validation accuracy {row.new_validation:.4f} against 1.0000"
        assert (stored.status, stored.reason, row.reason, row.serves) == ("candidate", message, message, None)
        with pytest.raises(InputError, match="nothing has been learned"):
            learner.predict(["lovely bright"], "mood")
        promote_delta(learner.registry, "mood@2", reason="it will do")
        assert learner.predict(["lovely bright"], "mood")[0].delta == "mood@2"
        (row,) = learner.migrate(tasks=["mood"])
        assert (row.serves, row.reason) == ("mood@2", "promoted by hand")
        assert learner.registry.delta("mood@1").status == "champion"


def test_tasks_with_missing_or_changed_rows_are_skipped(bert_folder: Path, blind_folder: Path, home: Path) -> None:
    folder = home.parent
    entries = [TaskSpec.model_validate(write_task(folder, task)) for task in TASKS]
    budget = {"epochs": 0, "max_length": 16}
    stream = Stream.model_validate({"name": "own", "tasks": entries, "budget": budget, "folder": folder})
    with open_home(bert_folder, folder / "own") as old:
        assert old.run(stream) == {}
        archive_delta(old.registry, "mood@1")
        old.export("mood@1", folder / "out")
        assert old.import_peft(folder / "out", "mood") == "mood@2"
    with open_home(blind_folder, folder / "own") as learner:
        longer = rows_of("animals", 6, seed=7)
        original = (folder / "animals/train.jsonl").read_text()
        write_rows(folder / "animals/train.jsonl", longer.texts, longer.labels)
        lines = (folder / "animals/train.jsonl").read_text()
        (folder / "animals/train.jsonl").write_text(
            original + lines
        )  # appended rows are distinguished from the old ones
        rows = folder / "place/train.jsonl"
        right = rows.read_text()
        rows.write_text(right.replace("wave", "tower"))
        outcomes = by_task(learner.migrate())
        assert {task: row.state for task, row in outcomes.items()} == {
            "animals": "learned",
            "mood": "left",
            "place": "left",
        }
        assert "imported" in str(outcomes["mood"].reason)
        assert "others than those that place@1 was learned from" in str(outcomes["place"].reason)
        rows.unlink()
        assert "no file" in str(by_task(learner.migrate())["place"].reason)
        with pytest.raises(InputError, match=r"nothing to migrate:\nplace@1: .*no file"):
            learner.migrate(tasks=["place"])
        rows.write_text(right)
        assert by_task(learner.migrate())["place"].state == "learned", "once the rows are back"
        assert rows_of_version(learner.registry.delta("animals@2")) == rows_of_version(
            learner.registry.delta("animals@1")
        )


def test_a_later_version_is_migrated_under_another_name(bert_folder: Path, blind_folder: Path, home: Path) -> None:
    with open_home(blind_folder, home) as learner:
        learner.migrate(tasks=["animals", "mood"])
    with open_home(bert_folder, home) as old:
        data = old.registry.delta("mood@1").data
        assert data
        spec = TaskSpec.model_validate(data.spec)
        later = old.learn(spec.model_copy(update={"warm_start": "scratch"}), folder=Path(str(data.folder)))
        assert old.registry.delta(later).status == "champion"
    with open_home(blind_folder, home) as learner:
        rows = by_task(learner.migrate(tasks=["animals", "mood"]))
        assert (rows["animals"].state, rows["mood"].state) == ("learned", "left")
        assert "migrated before as mood@2" in str(rows["mood"].reason)
        (row,) = learner.migrate(tasks=["mood"], name="once-more")
        assert (row.old, row.new, row.state) == (later, "mood@4", "learned")
        with pytest.raises(InputError, match="stream 'core' does not belong to a migration"):
            learner.migrate(name="core")


def test_a_killed_migration_is_continued_by_two_processes(roberta_folder: Path, home: Path, tmp_path: Path) -> None:
    undisturbed = Path(shutil.copytree(home, tmp_path / "undisturbed"))
    processes = FreshPython("-m", "tests.helpers.processes.migration", roberta_folder, home, "animals", "6")
    assert processes.stdout.readline() == f"{-signal.SIGKILL}\n", (tmp_path / "home.log").read_text()
    with open_home(roberta_folder, home) as learner:
        assert find_damage(learner.registry) == []
        assert [row["delta"] for row in learner.registry.deltas() if row["version"] > 1] == ["place@2"]
    assert processes.communicate("\n") == "0\n0\n", (tmp_path / "home.log").read_text()
    log = (tmp_path / "home.log").read_text()
    assert log.count("animals goes on after epoch 1") == 1
    with open_home(roberta_folder, home) as learner, open_home(roberta_folder, undisturbed) as reference:
        assert len(learner.registry.deltas()) == 6, "each is learned once"
        assert find_damage(learner.registry) == []
        started: list[str] = []
        rows = learner.migrate(callbacks=RunCallbacks(on_start=started.append))
        assert ([row.state for row in rows], started) == (["learned"] * 3, [])
        routed = learner.report(str(learner.registry.last_stream()))["routed"]["matrix"]
        assert all(routed[t][i] is not None for t in range(3) for i in range(t + 1))
        reference.migrate(tasks=["place", "animals"])
        for delta in ("place@2", "animals@2"):
            assert learner.registry.delta(delta).digest == reference.registry.delta(delta).digest


def test_a_position_held_by_another_process_is_awaited(blind_folder: Path, home: Path) -> None:
    with open_home(blind_folder, home) as learner:

        def stop(task: str, done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            learner.migrate(tasks=["place"], callbacks=RunCallbacks(on_step=stop))
        stream = str(learner.registry.last_stream())
        assert claim_position(learner.registry, stream, number=0, holder=current_process_id())

        def let_go(task: str, holder: str) -> None:
            release(learner.registry, stream, number=0, holder=holder)

        (row,) = learner.migrate(tasks=["place"], callbacks=RunCallbacks(on_wait=let_go))
        assert row.state == "learned"


def test_invalid_input_is_refused_before_training(
    bert_folder: Path, roberta_folder: Path, home: Path, tmp_path: Path
) -> None:
    def refused(backbone: Path, says: str, *words: Any, **keys: Any) -> None:
        with open_home(backbone, home) as learner, pytest.raises(InputError, match=says):
            learner.migrate(*words, **keys)

    refused(bert_folder, "no delta serves on a backbone other than")
    refused(bert_folder, "is the backbone to move from", str(bert_folder))
    refused(roberta_folder, "no backbone is called 'other'", "other")
    refused(roberta_folder, "no task is called 'fod'", tasks=["fod"])
    with open_home(bert_folder, home) as old:
        spec = {"method": {"name": "last_layer", "count": 2}, "budget": {"epochs": 0, "max_length": 24}}
        task = TaskSpec.model_validate(write_task(tmp_path, "food") | spec)
        old.learn(task, folder=tmp_path)
    small = tiny_backbone("roberta", seed=2)
    small.model.encoder.layer = small.model.encoder.layer[:1]
    small.model.config.num_hidden_layers = 1
    small.model.config.max_position_embeddings = 18
    small.model.embeddings.position_embeddings.weight.data = small.model.embeddings.position_embeddings.weight[:18]
    shallow = save_backbone(small, tmp_path / "shallow")
    refused(shallow, "(?s)task 'mood'.*max_length 32 is more than the 16 tokens.*task 'food': layers.*are not there")
    with open_home(roberta_folder, home) as learner:
        assert learner.registry.last_stream() == "core", "nothing was begun"
        assert not [row for row in learner.registry.deltas() if row["version"] > 1]


def test_on_the_command_line(
    cli: CliRunner, bert_folder: Path, roberta_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(backbone: Backbone, data: TaskData) -> PreparedTask:
        if data.spec.name == "place":
            raise TrainingError("the loss is not a number")
        return prepare_task(backbone, data)

    content = {
        "name": "small",
        "backbone": str(bert_folder),
        "method": {"name": "adapter", "size": 2},
        "budget": {"epochs": 1, "batch_size": 8, "learning_rate": 1.0e-2, "max_length": 16},
        "tasks": [write_task(tmp_path, task) for task in ("mood", "place")],
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    new = ("--to", str(roberta_folder))
    assert cli("migrate", *new).code == 2
    assert cli("run", str(tmp_path / "small.yaml")).code == 0
    assert cli("migrate", "--to", str(tmp_path / "nowhere")).code == 2
    foreseen = cli("migrate", *new, "--check", "--json").json
    assert [(row["task"], row["state"], row["train_rows"]) for row in foreseen] == [
        ("mood", "waiting", 60),
        ("place", "waiting", 60),
    ]
    assert all(row["seconds"] > 0 for row in foreseen)
    assert len(cli("deltas", "--json").json) == 2, "nothing was learned"
    with monkeypatch.context() as patch:
        patch.setattr("continual.streams.position_learner.prepare_task", failing)
        result = cli("migrate", *new, "--from", str(bert_folder), "--json")
    assert result.code == 1
    assert all(set(row) == set(MigrationOutcome.__dataclass_fields__) for row in result.json)
    assert [(row["task"], row["new"], row["state"]) for row in result.json] == [
        ("mood", "mood@2", "learned"),
        ("place", None, "failed"),
    ]
    assert "task place failed: TrainingError: the loss is not a number" in result.err
    again = cli("migrate", *new, "--tasks", "place", "--json")
    assert (again.code, [row["new"] for row in again.json]) == (0, ["place@2"])
    if result.json[0]["serves"] is None:
        cli("deltas", "promote", "mood@2")
    assert cli("mlflow", "--json").json == [], "MLflow was told"
    (tmp_path / "texts").write_text("lovely bright\n")
    for backbone, delta in ((roberta_folder, "mood@2"), (bert_folder, "mood@1")):
        answered = cli("predict", str(tmp_path / "texts"), "--task", "mood", "--backbone", str(backbone))
        assert answered.json["delta"] == delta
