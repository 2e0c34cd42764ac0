"""Versions of a task: warm starts, contests, new labels, archiving, and purging."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from continual import Learner
from continual.backbones.backbone import Backbone
from continual.callbacks import RunCallbacks
from continual.deltas import load_delta
from continual.streams.audit import audit_stream
from registry import Registry, archive_delta, collect_garbage, find_damage, promote_delta, purge_task
from registry.errors import NotFound, TaskChanged
from tasks import Budget, Method, Stream, TaskSpec
from tests.helpers.tiny_tasks import rows_of, write_rows, write_task

CAT, DOG, BIRD = "purr meow whisker", "bark fetch leash", "wing feather nest"
SPLITS = ("train", "validation", "test")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(f"sqlite:///{tmp_path / 'registry.db'}", str(tmp_path / "blobs")) as opened:
        yield opened


@pytest.fixture
def learner(bert: Backbone, registry: Registry) -> Learner:
    return Learner(bert, registry)


def animals(
    folder: Path,
    *splits: str,
    labels: Sequence[str] = ("cat", "dog"),
    seed: int = 0,
    poisoned: bool = False,
    **keys: Any,
) -> Stream:
    """Write the rows of these splits again and return the task; `poisoned` rows have wrong labels."""
    entry = {"name": "animals", "text": "text", "label": "label", "budget": {"epochs": 1, "max_length": 16}} | keys
    files = {split: f"{split}.jsonl" for split in SPLITS}
    for number, split in enumerate(SPLITS):
        if split in splits or not splits:
            labelled = rows_of("animals", 60 if split == "train" else 30, seed=100 * seed + number)
            rows = labelled.select(i for i, label in enumerate(labelled.labels) if label in labels)
            turned = dict(zip(labels, (*labels[1:], labels[0]), strict=True))
            write_rows(folder / files[split], rows.texts, [turned[x] if poisoned else x for x in rows.labels])
    spec = TaskSpec.model_validate({"source": {"path": "json", "data_files": files}} | entry)
    budget = Budget(learning_rate=1e-2, batch_size=16)
    return Stream(name="animals", tasks=(spec,), folder=folder, method=Method(name="lora"), budget=budget)


def statuses(learner: Learner) -> dict[str, str]:
    return {row["delta"]: row["status"] for row in learner.registry.deltas("animals")}


def events(learner: Learner) -> list[tuple[str, str]]:
    """Return the history of the task."""
    from sqlalchemy import select

    from registry.schema.tables import Delta, Event

    with learner.registry.read_session() as session:
        rows = session.execute(select(Delta, Event.what).join(Event, Event.delta_id == Delta.id).order_by(Event.id))
        return [(delta.name, kind) for delta, kind in rows]


def test_a_new_version_starts_from_the_last_one(learner: Learner, tmp_path: Path) -> None:
    learner.learn(animals(tmp_path))
    again = animals(tmp_path, "train", seed=1)
    assert learner.learn(again) == "animals@2"
    (edge,) = learner.registry.lineage("animals@2")
    assert (edge["parent"], edge["kind"]) == ("animals@1", "retrained")
    assert learner.registry.delta("animals@2").warm_start == "retrained"
    unmoved = again.model_copy(update={"tasks": (again.tasks[0].model_copy(update={"budget": Budget(epochs=0)}),)})
    learner.learn(unmoved)
    first, second = (
        load_delta(learner.registry.blobs.get(learner.registry.delta(f"animals@{n}").values)) for n in (2, 3)
    )
    assert {name: value.tolist() for name, value in second.values.items()} == {
        name: value.tolist() for name, value in first.values.items()
    }, "without a step it is what it started from"


@pytest.mark.parametrize(
    ("keys", "seed"), [({"warm_start": "scratch"}, 0), ({"method": {"name": "lora", "rank": 2}}, 0), ({}, 1)], ids=str
)
def test_with_changed_settings_it_starts_as_any_task(
    learner: Learner, tmp_path: Path, keys: dict[str, Any], seed: int
) -> None:
    """From scratch, with other settings, or with another seed, whose held-out rows the last version may have seen."""
    learner.learn(animals(tmp_path))
    stream = animals(tmp_path, "validation", seed=1, **keys).model_copy(update={"seed": seed})
    learner.learn(stream)
    assert learner.registry.lineage("animals@2") == []


def test_with_the_same_held_out_rows_stored_scores_are_compared(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner.learn(animals(tmp_path))
    monkeypatch.setattr("continual.learning.champion_contest.query_delta", None)  # nothing is measured again
    learner.learn(animals(tmp_path, "train", seed=1))
    assert statuses(learner) == {"animals@1": "archived", "animals@2": "champion"}
    learner.learn(animals(tmp_path, "train", poisoned=True, warm_start="scratch"))
    worse = learner.registry.delta("animals@3")
    assert worse.status == "candidate"
    assert "is lower than" in str(worse.reason)
    assert "of animals@2" in str(worse.reason)


def test_with_other_held_out_rows_both_versions_are_scored_on_both(learner: Learner, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    animals(old)
    learner.learn(animals(old, "train", poisoned=True))
    learner.learn(animals(new, seed=1, warm_start="scratch"))
    assert learner.registry.delta("animals@2").reason is None
    assert statuses(learner) == {"animals@1": "archived", "animals@2": "champion"}
    assert events(learner) == [
        ("animals@1", "learned"),
        ("animals@1", "promoted"),
        ("animals@2", "learned"),
        ("animals@1", "succeeded"),
        ("animals@2", "promoted"),
    ]


def test_a_version_better_on_its_own_rows_only_does_not_serve(learner: Learner, tmp_path: Path) -> None:
    """It learned other labels for the same words: right on its own held-out rows, wrong on the earlier ones."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    learner.learn(animals(old))
    (old / "test.jsonl").unlink()  # the contest does not need the test rows
    learner.learn(animals(new, seed=1, poisoned=True, warm_start="scratch"))
    second = learner.registry.delta("animals@2")
    assert second.status == "candidate"
    assert str(second.reason).endswith("on the validation rows of animals@1")
    assert learner.predict([CAT], "animals")[0].label == "cat"


def test_a_version_worse_on_the_new_rows_does_not_serve(learner: Learner, tmp_path: Path) -> None:
    learner.learn(animals(tmp_path))
    animals(tmp_path, "validation", seed=1)
    learner.learn(
        animals(tmp_path, "train", poisoned=True, warm_start="scratch", budget={"epochs": 0, "max_length": 16})
    )
    assert str(learner.registry.delta("animals@2").reason).endswith("on the new validation rows")


def test_missing_rows_leave_the_contest_undecided(learner: Learner, tmp_path: Path) -> None:
    learner.learn(animals(tmp_path))
    learner.learn(animals(tmp_path, "validation", seed=1))  # over the old file
    reason = str(learner.registry.delta("animals@2").reason)
    assert reason.startswith("the validation rows of animals@1 cannot be read again as they were")
    assert "`continual deltas promote` decides by hand" in reason
    promote_delta(learner.registry, "animals@2", reason="read through")
    assert statuses(learner) == {"animals@1": "archived", "animals@2": "champion"}
    assert events(learner)[-2:] == [("animals@1", "succeeded"), ("animals@2", "promoted")]


def test_appended_rows_are_distinguished_from_the_old_ones(learner: Learner, tmp_path: Path) -> None:
    learner.learn(animals(tmp_path))
    old = (tmp_path / "validation.jsonl").read_text()
    stream = animals(tmp_path, "validation", seed=1, budget={"epochs": 4, "max_length": 16})
    (tmp_path / "validation.jsonl").write_text(old + (tmp_path / "validation.jsonl").read_text())
    learner.learn(stream)
    assert statuses(learner) == {"animals@1": "archived", "animals@2": "champion"}


def test_a_new_label_makes_a_version_whose_head_grows(learner: Learner, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    learner.learn(animals(old))
    learner.export("animals@1", tmp_path / "out")
    grown = animals(new, labels=("bird", "cat", "dog"), seed=1)
    learner.learn(grown)
    assert statuses(learner) == {"animals@1": "archived", "animals@2": "champion"}
    assert [learner.registry.delta(name).labels for name in ("animals@1", "animals@2")] == [
        ("cat", "dog"),
        ("bird", "cat", "dog"),
    ]
    texts = [BIRD, CAT, DOG]
    assert [p.label for p in learner.predict(texts, false_abstentions=0)] == ["bird", "cat", "dog"]
    with pytest.raises(TaskChanged, match=r"labels \('bird', 'cat', 'dog'\) became \('cat', 'dog'\)"):
        learner.learn(animals(old))
    assert learner.import_peft(tmp_path / "out", "animals") == "animals@3", "an export of before the label came"
    assert learner.registry.delta("animals@3").labels == ("cat", "dog")
    promote_delta(learner.registry, "animals@1")
    assert {p.label for p in learner.predict(texts, false_abstentions=0)} <= {"cat", "dog"}
    assert all(p.delta == "animals@1" for p in learner.predict(texts, false_abstentions=0))
    assert find_damage(learner.registry) == []


def test_archiving_a_version_restores_the_previous_one(learner: Learner, tmp_path: Path) -> None:
    learner.learn(animals(tmp_path))
    learner.learn(animals(tmp_path, labels=("bird", "cat", "dog")))  # over the old files: it waits for a person
    assert statuses(learner)["animals@2"] == "candidate"
    with pytest.raises(TaskChanged, match="archive the versions that answer with it"):
        learner.learn(animals(tmp_path))
    archive_delta(learner.registry, "animals@2", reason="birds were a mistake")
    assert learner.learn(animals(tmp_path)) == "animals@3"


def both(folder: Path) -> Stream:
    """A stream of two tasks."""
    mood = TaskSpec.model_validate(write_task(folder, "mood") | {"budget": {"epochs": 1, "max_length": 16}})
    return animals(folder).model_copy(update={"name": "both", "tasks": (*animals(folder).tasks, mood)})


def test_a_stream_and_its_audit_continue_beside_later_versions(learner: Learner, tmp_path: Path) -> None:
    later = tmp_path / "later"
    later.mkdir()
    stream = both(tmp_path)
    assert learner.run(stream) == {}
    before = learner.report("both")
    assert [task["serving"] for task in before["per_task"]] == ["animals@1", "mood@1"]
    learner.learn(animals(later, labels=("bird", "cat", "dog"), seed=1))
    assert learner.registry.delta("animals@2").status == "champion"
    started: list[str] = []
    assert learner.run(stream, callbacks=RunCallbacks(on_start=started.append)) == {}
    before["per_task"][0]["serving"] = "animals@2"
    assert (started, learner.report("both")) == ([], before)
    assert all(row.identical for row in audit_stream(learner.backbone, learner.registry, stream))


def test_a_task_whose_champion_is_archived_does_not_serve(learner: Learner, tmp_path: Path) -> None:
    assert learner.run(both(tmp_path)) == {}
    archive_delta(learner.registry, "animals@1", reason="out of date")
    assert {p.task for p in learner.predict([CAT, "lovely bright"], false_abstentions=0)} == {"mood"}
    with pytest.raises(NotFound, match="animals"):
        learner.predict([CAT], "animals")
    promote_delta(learner.registry, "animals@1")
    assert learner.predict([CAT], false_abstentions=0)[0].task == "animals"


def test_routing_uses_the_champions_signature(learner: Learner, tmp_path: Path) -> None:
    learner.learn(animals(tmp_path))
    learner.learn(animals(tmp_path, "train", seed=1))
    signatures = [learner.registry.signature(f"animals@{version}").digest for version in (1, 2)]
    assert signatures[0] != signatures[1]
    for version in (1, 2):
        if statuses(learner)[f"animals@{version}"] != "champion":
            promote_delta(learner.registry, f"animals@{version}")
        (routes,) = learner.registry.signatures(learner.backbone.fingerprint)
        assert (routes.delta, routes.digest) == (f"animals@{version}", signatures[version - 1])


def test_a_purged_task_leaves_names_only(learner: Learner, tmp_path: Path) -> None:
    stream = both(tmp_path)
    assert learner.run(stream) == {}
    blobs = blobs_of(tmp_path) - named_by(learner, "mood@1")
    assert len(blobs) == 5
    purge_task(learner.registry, "animals", reason="asked to")
    assert blobs_of(tmp_path) & blobs == set()
    assert statuses(learner) == {"animals@1": "purged"}
    assert [row["task"] for row in learner.registry.tasks()] == ["mood"]
    assert {p.task for p in learner.predict([CAT, "lovely bright"], false_abstentions=0)} == {"mood"}
    with pytest.raises(NotFound, match="was purged"):
        learner.export("animals@1", tmp_path / "out")
    for split in SPLITS:  # the rows themselves may be gone by now
        (tmp_path / f"{split}.jsonl").unlink()
    report = learner.report("both")
    assert report["tasks"] == ["animals", "mood"]
    assert [row[0] for row in report["oracle"]["matrix"]] == [None, None]
    assert report["oracle"]["acc"] == report["per_task"][1]["score"]
    assert report["per_task"][0]["score"] is None
    started: list[str] = []
    assert learner.run(stream, callbacks=RunCallbacks(on_start=started.append)) == {}
    assert started == [], "a purged position stays learned"
    assert [row.delta for row in audit_stream(learner.backbone, learner.registry, stream)] == ["mood@1"]
    assert find_damage(learner.registry) == []
    assert no_trace(learner, ("'cat'", "'dog'", "'validation.jsonl'")) == []
    assert learner.learn(animals(tmp_path)) == "animals@2"
    assert learner.registry.lineage("animals@2") == []
    assert [blob for blob in collect_garbage(learner.registry) if "router" not in blob.name] == []


def test_a_purged_parent_stays_in_the_lineage(learner: Learner, tmp_path: Path) -> None:
    stream = both(tmp_path).model_copy(update={"warm_start": "nearest"})
    assert learner.run(stream) == {}
    purge_task(learner.registry, "animals")
    (edge,) = learner.registry.lineage("mood@1")
    assert (edge["parent"], edge["kind"]) == ("animals@1", "warm_start")


def test_a_task_is_independent_of_a_stream_of_its_name(learner: Learner, tmp_path: Path) -> None:
    assert learner.run(both(tmp_path).model_copy(update={"name": "animals"})) == {}
    assert learner.learn(animals(tmp_path)) == "animals@2"


def blobs_of(folder: Path) -> set[str]:
    return {file.parent.name + file.name for file in (folder / "blobs").glob("*/*") if file.is_file()}


def named_by(learner: Learner, delta: str) -> set[str | None]:
    stored = learner.registry.delta(delta)
    signature = learner.registry.signature(delta)
    return {stored.digest, stored.predictions, stored.replay, signature.digest, signature.routing}


def no_trace(learner: Learner, words: Sequence[str]) -> list[str]:
    """Return the tables in which one of the words occurs in a value."""
    from sqlalchemy import select

    from registry.schema.base import Base

    with learner.registry.read_session() as session:
        return [
            table.name
            for table in Base.metadata.sorted_tables
            for row in session.execute(select(table))
            if any(word in str(tuple(row)) for word in words)
        ]
