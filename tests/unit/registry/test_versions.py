"""Versions of a task: contests, promotion, archiving, deletion, purging and their events."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from registry import (
    Comparison,
    Contest,
    NotFound,
    NothingToDo,
    Parent,
    Registry,
    SignatureRecord,
    TaskChanged,
    TaskNeeded,
    archive_delta,
    current_process_id,
    delete_task,
    find_damage,
    promote_delta,
    purge_task,
)
from registry.schema.tables import Delta, Event, OutboxRow, Stream, Task
from tests.helpers.claims import claim_position
from tests.helpers.registries import BACKBONE, accuracy, begin, delta_record, learn, make_registry, task_record

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        yield opened


def statuses(registry: Registry) -> dict[str, str]:
    return {row["delta"]: row["status"] for row in registry.deltas()}


def history(registry: Registry) -> list[tuple[str, str, str | None]]:
    with registry.read_session() as session:
        query = select(Delta, Event).join(Event, Event.delta_id == Delta.id).order_by(Event.id)
        return [(delta.name, event.what, event.reason) for delta, event in session.execute(query)]


def messages(registry: Registry) -> list[tuple[str, str]]:
    with registry.read_session() as session:
        return [(row.message, row.subject) for row in session.scalars(select(OutboxRow).order_by(OutboxRow.id))]


def learn_after(registry: Registry, contest: Contest, *, score: float = 0.9) -> str:
    with registry.unit_of_work() as unit:
        unit.add_task(task_record("sst2"))
        return unit.add_delta(
            delta_record(registry, "sst2"), scores=[accuracy(score, split="validation")], contest=contest
        )


def compared(*pairs: tuple[float, float], doubt: str | None = None, champion: str = "sst2@1") -> Contest:
    comparisons = tuple(Comparison(rows=f"rows {number}", new=new, old=old) for number, (new, old) in enumerate(pairs))
    return Contest(champion=champion, comparisons=comparisons, undecided_reason=doubt)


@pytest.mark.parametrize(
    ("contest", "reason"),
    [
        (compared((0.5, 0.5), (0.4, 0.3)), None),
        (compared((0.9, 0.1), (0.2, 0.3)), "accuracy 0.2000 is lower than 0.3000 of sst2@1 on rows 1"),
        (compared((0.1, 0.2), (0.9, 0.3)), "accuracy 0.1000 is lower than 0.2000 of sst2@1 on rows 0"),
        (compared((0.9, 0.2), doubt="rows are gone"), "rows are gone. `continual deltas promote` decides by hand"),
        (compared((0.1, 0.2), doubt="rows are gone"), "accuracy 0.1000 is lower than 0.2000 of sst2@1 on rows 0"),
        (
            compared(champion="sst2@7"),
            "it was compared with sst2@7, and meanwhile sst2@1 serves. `continual deltas promote` decides by hand",
        ),
    ],
)
def test_a_contest_overrides_stored_scores(registry: Registry, contest: Contest, reason: str | None) -> None:
    learn(registry, "sst2", score=0.5)
    learn_after(registry, contest)
    assert registry.delta("sst2@2").reason == reason
    assert statuses(registry)["sst2@2"] == ("candidate" if reason else "champion")


def test_a_contest_without_a_champion_is_won(registry: Registry) -> None:
    assert learn_after(registry, compared((0.1, 0.2))) == "sst2@1"
    assert statuses(registry) == {"sst2@1": "champion"}


@pytest.mark.parametrize(
    ("new", "there", "reason"),
    [
        (0.5, None, None),
        (0.6, 0.6, None),
        (0.4, None, "worse than sst2@1 on tiny: validation accuracy 0.4000 against 0.5000"),
        (0.5, 0.6, "validation accuracy 0.5000 is lower than 0.6000 of sst2@2"),
    ],
)
def test_a_migrated_version_is_compared_with_its_original(
    registry: Registry, new: float, there: float | None, reason: str | None
) -> None:
    """With the score of the current champion on the other backbone in `there`."""
    learn(registry, "sst2", score=0.5)
    with registry.unit_of_work() as unit:
        unit.add_backbone(replace(BACKBONE, fingerprint="beef", name="other"))
        record = replace(delta_record(registry, "sst2"), backbone="beef")
        if there is not None:
            unit.add_delta(record, scores=[accuracy(there, split="validation")])
        name = unit.add_delta(record, scores=[accuracy(new, split="validation")], rival="sst2@1")
    assert registry.delta(name).reason == reason
    assert statuses(registry)[name] == ("candidate" if reason else "champion")
    assert statuses(registry)["sst2@1"] == "champion", "each backbone has a champion of its own"


def test_manual_decisions_are_recorded(registry: Registry) -> None:
    learn(registry, "sst2", score=0.5)
    learn(registry, "sst2", score=0.4)
    promote_delta(registry, "sst2@2", reason="it knows the new forms")
    archive_delta(registry, "sst2@2", reason="it does not")
    assert statuses(registry) == {"sst2@1": "archived", "sst2@2": "archived"}
    assert registry.delta("sst2@2").reason == "archived: it does not"
    worse = "validation accuracy 0.4000 is lower than 0.5000 of sst2@1"
    assert history(registry) == [
        ("sst2@1", "learned", None),
        ("sst2@1", "promoted", None),
        ("sst2@2", "learned", worse),
        ("sst2@1", "succeeded", "succeeded by sst2@2"),
        ("sst2@2", "promoted", "it knows the new forms"),
        ("sst2@2", "archived", "it does not"),
    ]
    assert messages(registry)[-2:] == [("champion", "sst2")] * 2
    assert learn(registry, "sst2", score=0.1) == "sst2@3"
    assert statuses(registry)["sst2@3"] == "champion", "nobody served"


def test_a_repeated_decision_is_refused(registry: Registry) -> None:
    learn(registry, "sst2")
    with pytest.raises(NothingToDo, match="serves already"):
        promote_delta(registry, "sst2@1")
    archive_delta(registry, "sst2@1")
    with pytest.raises(NothingToDo, match="archived already: archived by hand"):
        archive_delta(registry, "sst2@1")
    with pytest.raises(NotFound, match="nearest known: sst2@1"):
        promote_delta(registry, "sst2@3")
    assert len(history(registry)) == 3


def test_a_version_without_a_signature_has_its_predecessors(registry: Registry) -> None:
    learn(registry, "sst2")
    with registry.unit_of_work() as unit:
        unit.add_delta(delta_record(registry, "sst2", warm_start="imported"))
    assert registry.signature("sst2@2").digest == registry.signature("sst2@1").digest
    promote_delta(registry, "sst2@2")
    assert [row.delta for row in registry.signatures("f00d")] == ["sst2@2"]


def test_labels_may_be_added_and_old_versions_keep_theirs(registry: Registry) -> None:
    learn(registry, "sst2")
    labels = ("maybe", "no", "yes")
    with registry.unit_of_work() as unit:
        unit.add_task(task_record("sst2", labels=labels))
        unit.add_delta(delta_record(registry, "sst2", labels=labels), scores=[accuracy(0.9, split="validation")])
    assert [registry.delta(name).labels for name in ("sst2@1", "sst2@2")] == [("no", "yes"), labels]
    with pytest.raises(TaskChanged, match="archive the versions that answer with it"):
        learn(registry, "sst2")
    archive_delta(registry, "sst2@2")
    assert learn(registry, "sst2") == "sst2@3"


def test_the_last_version_is_the_champion_or_the_newest(registry: Registry) -> None:
    def last() -> str | None:
        delta = registry.last_version("sst2", "f00d")
        return None if delta is None else delta.name

    assert last() is None
    learn(registry, "sst2", score=0.5)
    learn(registry, "sst2", score=0.4)
    assert (last(), registry.last_version("sst2", "beef")) == ("sst2@1", None)
    archive_delta(registry, "sst2@1")
    assert last() == "sst2@2"
    purge_task(registry, "sst2")
    assert last() is None


@pytest.fixture
def family(registry: Registry) -> Registry:
    """Register a stream of three tasks: the second derived from the first, and its second version from its first."""
    learn(registry, "sst2", score=0.5, digest=registry.blobs.put(b"one"), predictions=registry.blobs.put(b"answers"))
    parents = [Parent(delta="sst2@1", kind="retrained", weight=1.0)]
    learn(registry, "sst2", score=0.6, parents=parents, digest=registry.blobs.put(b"two"))
    learn(registry, "sst2", score=0.1, digest=registry.blobs.put(b"three"))
    learn(registry, "trec", parents=[Parent(delta="sst2@2", kind="warm_start", weight=1.0)])
    spec = {"name": "core", "tasks": [{"name": "sst2", "text": "their column"}, {"name": "trec", "text": "text"}]}
    entries = [("sst2", "r1"), ("trec", "r2")]
    with registry.unit_of_work() as unit:
        unit.begin_stream("core", backbone="f00d", spec=spec, entries=entries)
        unit.mark_learned("core", 1, delta="trec@1")
        unit.set_mlflow_run("sst2@1", "run-1")
        unit.set_mlflow_run("sst2@2", "run-2")
    return registry


def test_a_parent_that_serves_is_not_deleted(family: Registry) -> None:
    with pytest.raises(TaskNeeded, match=r"trec@1 came from sst2@2. Archive sst2@3, sst2@2 first"):
        delete_task(family, "sst2")
    assert statuses(family)["sst2@2"] == "champion"
    for name in ("sst2@2", "sst2@3"):
        archive_delta(family, name)
    assert delete_task(family, "sst2") == {"versions": 3, "blobs": 4}
    assert statuses(family) == {"sst2@1": "purged", "sst2@2": "purged", "sst2@3": "purged", "trec@1": "champion"}
    edges = [(edge["delta"], edge["parent"]) for edge in family.lineage("trec@1")]
    assert edges == [("trec@1", "sst2@2"), ("sst2@2", "sst2@1")]
    assert find_damage(family) == []


def test_an_unneeded_version_is_deleted_and_its_number_not_reused(registry: Registry) -> None:
    for _ in range(3):
        learn(registry, "sst2")
    delete_task(registry, "sst2")
    assert (statuses(registry), registry.tasks()) == ({"sst2@3": "purged"}, [])
    assert [event[:2] for event in history(registry)][-1] == ("sst2@3", "purged")
    assert learn(registry, "sst2") == "sst2@4"
    assert find_damage(registry) == []


def test_a_purge_keeps_names_only(family: Registry) -> None:
    assert purge_task(family, "sst2", reason="asked to, letter 12") == {"versions": 3, "blobs": 4}
    assert [row["task"] for row in family.tasks()] == ["trec"]
    for content in (b"one", b"two", b"three", b"answers"):
        digest = family.blobs.put(content)
        family.blobs.delete(family.blobs.stat(digest), put_before=None)  # type: ignore[arg-type]
    assert family.signatures("f00d")[0].delta == "trec@1", "its signature is the same blob, and stays"
    assert {score.task for score in family.scores()} == {"trec"}
    with family.read_session() as session:
        task = session.scalar(select(Task).where(Task.name == "sst2"))
        assert task
        assert (task.labels, task.spec, task.fingerprints, task.rows) == ([], {}, {}, {})
        assert task.purged_at
        stream = session.scalar(select(Stream))
        assert stream
        assert stream.spec["tasks"] == [{"name": "sst2"}, {"name": "trec", "text": "text"}]
        (purged,) = session.scalars(select(OutboxRow).where(OutboxRow.message == "purged"))
        assert (purged.subject, purged.about) == ("sst2", {"runs": ["run-2", "run-1"]})
    assert [subject for message, subject in messages(family) if message in ("delta", "champion")] == ["trec@1", "trec"]
    gone = [event for event in history(family) if event[0].startswith("sst2")]
    assert {event for event in gone if event[1] != "purged"} & {event for event in gone if event[2]} == set()
    assert [event for event in gone if event[1] == "purged"] == [
        (f"sst2@{version}", "purged", "asked to, letter 12") for version in (3, 2, 1)
    ]
    with pytest.raises(NotFound, match="was purged"):
        family.task("sst2")
    with pytest.raises(NotFound, match="was purged on"):
        purge_task(family, "sst2")
    with pytest.raises(NotFound, match="was purged"):
        promote_delta(family, "sst2@1")
    assert find_damage(family) == []


def test_a_purged_name_can_be_learned_again_as_any_task(family: Registry) -> None:
    purge_task(family, "sst2")
    with family.unit_of_work() as unit:
        unit.add_task(task_record("sst2", kind="regression", metric="pearson", labels=()))
        assert unit.add_delta(delta_record(family, "sst2", labels=())) == "sst2@4"
    assert (family.task("sst2").kind, family.delta("sst2@4").status) == ("regression", "champion")
    assert [row["task"] for row in family.tasks()] == ["sst2", "trec"]


def test_a_stream_continues_after_a_purged_position(family: Registry) -> None:
    with family.unit_of_work() as unit:
        unit.mark_learned("core", 0, delta="sst2@2")
    purge_task(family, "sst2")
    first, second = family.positions("core")
    assert (first.state, first.delta, first.purged, first.recipe) == ("learned", "sst2@2", True, "")
    assert not second.purged
    spec = {"name": "core", "tasks": [{"name": "sst2", "text": "their column"}]}
    with family.unit_of_work() as unit:
        unit.begin_stream("core", backbone="f00d", spec=spec, entries=[("sst2", ""), ("trec", "r2"), ("new", "r3")])
    assert family.stream("core").spec == {"name": "core", "tasks": [{"name": "sst2"}]}
    assert family.positions("unknown") == ()


def test_a_task_that_is_being_learned_is_not_removed(registry: Registry) -> None:
    learn(registry, "sst2")
    begin(registry, "sst2")
    assert claim_position(registry, "core", number=0, holder=current_process_id())
    for remove in (purge_task, delete_task):
        with pytest.raises(TaskNeeded, match="is being learned by"):
            remove(registry, "sst2")


def test_only_unshared_blobs_are_deleted(registry: Registry) -> None:
    shared = registry.blobs.put(b"shared")
    learn(registry, "sst2", digest=shared)
    learn(registry, "trec", digest=shared)
    assert purge_task(registry, "sst2") == {"versions": 1, "blobs": 0}
    assert find_damage(registry) == []
    signature = SignatureRecord(digest=registry.blobs.put(b"its own"), rows=1, pooling="mean")
    with registry.unit_of_work() as unit:
        unit.add_task(task_record("mnli"))
        unit.add_delta(delta_record(registry, "mnli"), signature=signature)
    assert purge_task(registry, "mnli")["blobs"] == 2
