"""Stateful test of the registry: any sequence of operations agrees with a model in memory."""

import os
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import select
from sqlalchemy.orm import aliased

from registry import (
    Parent,
    Registry,
    SignatureRecord,
    TaskNeeded,
    archive_delta,
    collect_garbage,
    delete_task,
    find_damage,
    promote_delta,
    purge_task,
)
from registry.schema.base import Base
from registry.schema.tables import Delta, Event, Lineage
from tests.helpers.databases import registry_url
from tests.helpers.registries import BACKBONE, accuracy, delta_record, task_record

TASKS = ("mood", "animals", "place")
AFTER = {"promoted": "champion", "succeeded": "archived", "archived": "archived", "purged": "purged"}
AT_ONCE = timedelta(0)


@dataclass
class Version:
    """A version of a delta in the model.

    Attributes:
        blobs: Digests of the blobs that it references.
    """

    status: str
    score: float
    blobs: frozenset[str]
    parents: tuple[str, ...]


@dataclass
class Model:
    """The expected state: versions by name, each task's highest number, and unreferenced blobs."""

    versions: dict[str, Version] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    loose: set[str] = field(default_factory=set)

    def of(self, task: str) -> dict[str, Version]:
        return {name: version for name, version in self.versions.items() if name.split("@")[0] == task}

    def named(self, *statuses: str) -> list[str]:
        return [name for name, version in self.versions.items() if version.status in statuses]

    def tasks(self) -> list[str]:
        """Return the tasks that are not purged."""
        return [task for task in TASKS if any(version.status != "purged" for version in self.of(task).values())]

    def champion(self, task: str) -> Version | None:
        return next((version for version in self.of(task).values() if version.status == "champion"), None)

    def blobs(self) -> set[str]:
        return {blob for version in self.versions.values() for blob in version.blobs}

    def add(self, task: str, version: Version) -> str:
        number = self.last[task] = self.last.get(task, 0) + 1
        champion = self.champion(task)
        self.versions[f"{task}@{number}"] = version
        if champion is None or version.score >= champion.score:
            self.let_serve(f"{task}@{number}")
        return f"{task}@{number}"

    def let_serve(self, name: str) -> None:
        if champion := self.champion(name.split("@")[0]):
            champion.status = "archived"
        self.versions[name].status = "champion"

    def bury(self, task: str) -> None:
        for version in self.of(task).values():
            version.status, version.blobs = "purged", frozenset()

    def needed_by_others(self, task: str) -> bool:
        other_versions = (version for name, version in self.versions.items() if name.split("@")[0] != task)
        return any(parent in self.of(task) for version in other_versions for parent in version.parents)

    def drop_unneeded(self, task: str) -> None:
        for name in sorted(self.of(task), key=lambda name: -int(name.split("@")[1])):
            used = any(name in version.parents for version in self.versions.values())
            if not used and name != f"{task}@{self.last[task]}":
                del self.versions[name]


class InterruptedUnitError(Exception):
    """An error raised in the middle of a unit of work."""


class Machine(RuleBasedStateMachine):
    """Apply the same operations to a registry and to the model."""

    url: str  # of a database, which is emptied for each machine

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.places = (self.url, f"{self.folder.name}/blobs")
        self.registry, self.model = Registry.open(*self.places), Model()
        with self.registry.engine.begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(table.delete())
        with self.registry.unit_of_work() as unit:
            unit.add_backbone(BACKBONE)
            entries = [("never learned", "r")]  # a registry in use: blobs beside an empty one are not collected
            unit.begin_stream("core", backbone=BACKBONE.fingerprint, spec={"name": "core"}, entries=entries)

    def teardown(self) -> None:
        assert find_damage(self.registry) == []
        self.registry.close()
        self.folder.cleanup()

    def _blobs(self, registry: Registry) -> tuple[str, str, str]:
        values, predictions, signature = (registry.blobs.put(uuid4().bytes) for _ in range(3))
        return values, predictions, signature

    def _write(
        self, registry: Registry, task: str, score: float, blobs: tuple[str, str, str], parents: tuple[str, ...]
    ) -> str:
        with registry.unit_of_work() as unit:
            unit.add_task(task_record(task))
            name = unit.add_delta(
                delta_record(registry, task, digest=blobs[0], predictions=blobs[1]),
                parents=[Parent(delta=name, kind="merged", weight=1.0) for name in parents],
                scores=[accuracy(score), accuracy(score, split="validation")],
                signature=SignatureRecord(digest=blobs[2], rows=4, pooling="mean"),
            )
            if score < 0:
                raise InterruptedUnitError
            return name

    @rule(task=st.sampled_from(TASKS), score=st.sampled_from((0.2, 0.5, 0.8)), draw=st.data())
    def learn(self, task: str, score: float, draw: st.DataObject) -> None:
        names = self.model.named("champion", "candidate", "archived", "purged")
        parents = tuple(draw.draw(st.lists(st.sampled_from(names), max_size=2, unique=True))) if names else ()
        blobs = self._blobs(self.registry)
        name = self._write(self.registry, task, score, blobs, parents)
        assert name == self.model.add(task, Version("candidate", score, frozenset(blobs), parents))

    @rule(task=st.sampled_from(TASKS))
    def break_off(self, task: str) -> None:
        """Roll back a unit of work; blobs stored before stay, unreferenced."""
        blobs = self._blobs(self.registry)
        with pytest.raises(InterruptedUnitError):
            self._write(self.registry, task, -1.0, blobs, ())
        self.model.loose |= set(blobs)

    @rule(task=st.sampled_from(TASKS))
    def die(self, task: str) -> None:
        """Kill another process between its writes and its commit."""
        blobs = self._blobs(self.registry)
        if not (child := os.fork()):
            try:
                registry = Registry.open(*self.places)
                with registry.unit_of_work() as unit:
                    unit.add_task(task_record(task))
                    unit.add_delta(delta_record(registry, task, digest=blobs[0]), scores=[accuracy(0.9)])
                    unit.session.flush()
                    os._exit(9)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        self.model.loose |= set(blobs)

    @precondition(lambda self: self.model.named("candidate", "archived"))
    @rule(draw=st.data())
    def promote(self, draw: st.DataObject) -> None:
        name = draw.draw(st.sampled_from(self.model.named("candidate", "archived")))
        promote_delta(self.registry, name, reason="better to read")
        self.model.let_serve(name)

    @precondition(lambda self: self.model.named("candidate", "champion"))
    @rule(draw=st.data())
    def archive(self, draw: st.DataObject) -> None:
        name = draw.draw(st.sampled_from(self.model.named("candidate", "champion")))
        archive_delta(self.registry, name)
        self.model.versions[name].status = "archived"

    @precondition(lambda self: self.model.tasks())
    @rule(draw=st.data())
    def purge(self, draw: st.DataObject) -> None:
        task = draw.draw(st.sampled_from(self.model.tasks()))
        purge_task(self.registry, task)
        self.model.bury(task)

    @precondition(lambda self: self.model.tasks())
    @rule(draw=st.data())
    def delete(self, draw: st.DataObject) -> None:
        task = draw.draw(st.sampled_from(self.model.tasks()))
        open_ones = {version.status for version in self.model.of(task).values()} & {"champion", "candidate"}
        if self.model.needed_by_others(task) and open_ones:
            with pytest.raises(TaskNeeded, match="Archive"):
                delete_task(self.registry, task)
            return
        delete_task(self.registry, task)
        self.model.bury(task)
        self.model.drop_unneeded(task)

    @rule()
    def collect(self) -> None:
        assert collect_garbage(self.registry) == [], "nothing is old enough"
        listed = collect_garbage(self.registry, older_than=AT_ONCE, dry_run=True)
        assert {blob.name for blob in listed} == self.model.loose
        assert collect_garbage(self.registry, older_than=AT_ONCE) == listed
        self.model.loose = set()

    @invariant()
    def the_registry_is_what_the_model_says(self) -> None:
        actual = {row["delta"]: row["status"] for row in self.registry.deltas()}
        assert actual == {name: version.status for name, version in self.model.versions.items()}
        assert {row["task"] for row in self.registry.tasks()} == set(self.model.tasks())
        champions = {champion.delta for champion in self.registry.champions(BACKBONE.fingerprint)}
        assert champions == set(self.model.named("champion"))
        assert {signature.delta for signature in self.registry.signatures(BACKBONE.fingerprint)} == champions

    @invariant()
    def the_blobs_are_those_that_were_put(self) -> None:
        assert {blob.name for blob in self.registry.blobs.iterate()} == self.model.blobs() | self.model.loose

    @invariant()
    def the_history_tells_the_status(self) -> None:
        with self.registry.read_session() as session:
            events = session.execute(
                select(Delta, Event.what).join(Event, Event.delta_id == Delta.id).order_by(Event.id)
            )
            statuses = {delta.name: AFTER.get(kind, "candidate") for delta, kind in events}
        assert statuses == {name: version.status for name, version in self.model.versions.items()}

    @invariant()
    def the_lineage_is_what_was_said(self) -> None:
        child, parent = aliased(Delta), aliased(Delta)
        edges = select(child, parent).select_from(Lineage)
        edges = edges.join(child, child.id == Lineage.child_id).join(parent, parent.id == Lineage.parent_id)
        with self.registry.read_session() as session:
            pairs = {(younger.name, older.name) for younger, older in session.execute(edges)}
        assert pairs == {(name, parent) for name, version in self.model.versions.items() for parent in version.parents}


def checked(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.usefixtures("database")
def test_any_sequence_of_operations_agrees_with_the_model(tmp_path: Path) -> None:
    url = registry_url(tmp_path)
    examples = 8 if url.startswith("sqlite") else 3
    run_state_machine_as_test(type("Here", (Machine,), {"url": url}), settings=checked(examples, 20))
