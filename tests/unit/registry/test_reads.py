"""Listings: the fields of the contract, complete lineage, and a constant number of statements."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event

from continual.reports.report import stream_report
from registry import Parent, Registry, list_pending
from tests.helpers.registries import accuracy, begin, learn, make_registry, task_record

LISTINGS: dict[str, Callable[[Registry], object]] = {
    "tasks": lambda registry: registry.tasks(),
    "deltas": lambda registry: registry.deltas(),
    "lineage": lambda registry: registry.lineage("t0@1"),
    "champions": lambda registry: registry.champions("f00d"),
    "signatures": lambda registry: registry.signatures("f00d"),
    "stream": lambda registry: registry.stream("core"),
    "streams": lambda registry: registry.streams(),
    "scores": lambda registry: registry.scores(),
    "learned": lambda registry: registry.learned("core"),
    "parents": lambda registry: registry.parents("core"),
    "descendants": lambda registry: registry.lineage("t0@1", descendants=True),
    "siblings": lambda registry: registry.siblings("t1"),
    "dependents of a backbone": lambda registry: registry.dependents(backbone="f00d"),
    "dependents of a task": lambda registry: registry.dependents(task="t0"),
    "best": lambda registry: registry.best(),
    "history": lambda registry: registry.history("t0"),
    "changes": lambda registry: registry.changes(),
    "cost": lambda registry: registry.cost(),
    "report": lambda registry: stream_report(registry, "core"),
    "known tasks": lambda registry: registry.check_tasks_unchanged(
        [task_record(row["task"]) for row in registry.tasks()]
    ),
    "known stream": lambda registry: registry.check_stream_unchanged(
        "core", [(position.task, position.recipe) for position in registry.positions("core")]
    ),
    "serving": lambda registry: registry.serving("t0"),
    "stream_of": lambda registry: registry.stream_of("t0@1"),
    "waiting": list_pending,
}

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        yield opened


def test_listings_have_the_fields_of_the_contract(registry: Registry) -> None:
    learn(registry, "sst2", score=0.75)
    (delta,), (task,) = registry.deltas(), registry.tasks()
    assert task.pop("champion_created_at") == delta["created_at"]
    for row in (delta, task):
        assert row.pop("created_at").endswith("+00:00")
    size = {"method": "lora", "parameters": 10, "share": 0.1, "bytes": 6}
    state = {"status": "champion", "reason": None, "score": 0.75, "mlflow_run": None}
    assert delta == {"delta": "sst2@1", "task": "sst2", "version": 1} | size | state
    served = {"champion": "sst2@1", "score": 0.75}
    shape = {"kind": "classification", "metric": "accuracy", "labels": 2, "rows": {"train": 4}}
    assert task == {"task": "sst2"} | shape | served


def test_a_listed_score_is_the_oracle_score_of_the_tasks_metric(registry: Registry) -> None:
    learn(registry, "sst2", score=0.75)
    begin(registry, "sst2")
    with registry.unit_of_work() as unit:
        other_scores = [accuracy(0.1, mode="frozen"), accuracy(0.2, metric="f1"), accuracy(0.3, mode="curve", step=4)]
        unit.add_scores("sst2@1", [*other_scores, accuracy(0.4, mode="routed", stream="core")])
    assert [row["score"] for row in registry.deltas()] == [row["score"] for row in registry.tasks()] == [0.75]
    assert [score.value for score in registry.scores(delta="sst2@1", split="test", mode="curve")] == [0.3]


def test_lineage_reaches_every_ancestor_once(registry: Registry) -> None:
    def from_(*names: str) -> list[Parent]:
        return [Parent(delta=name, kind="merged", weight=1 / len(names), score=0.5) for name in names]

    learn(registry, "root")
    learn(registry, "left", parents=from_("root@1"))
    learn(registry, "right", parents=from_("root@1", "left@1"))
    learn(registry, "leaf", parents=from_("left@1", "right@1"))
    edges = [(row["depth"], row["delta"], row["parent"]) for row in registry.lineage("leaf@1")]
    assert edges == [
        (1, "leaf@1", "left@1"),
        (1, "leaf@1", "right@1"),
        (2, "right@1", "root@1"),
        (2, "right@1", "left@1"),
        (2, "left@1", "root@1"),
    ]
    assert (
        registry.lineage("leaf@1")[0] | {"kind": "merged", "weight": 0.5, "score": 0.5} == registry.lineage("leaf@1")[0]
    )
    assert registry.lineage("root@1") == []


def test_champions_are_ordered_by_first_learning(registry: Registry) -> None:
    for task in ("sst2", "trec", "sst2"):
        learn(registry, task)
    champions = registry.champions("f00d")
    assert [champion.delta for champion in champions] == ["sst2@2", "trec@1"]
    assert [champion.budget["max_length"] for champion in champions] == [16, 16]
    assert [row.task for row in registry.signatures("f00d")] == ["sst2", "trec"]
    earlier = registry.signatures("f00d", deltas=["sst2@1", "trec@1", "trec@2", "gone@1"])
    assert [row.delta for row in earlier] == ["sst2@1", "trec@1"]
    assert [*registry.champions("unknown"), *registry.signatures("unknown")] == []


def test_listings_use_a_constant_number_of_statements(registry: Registry) -> None:
    for number in range(2):
        learn_next(registry, number)
    few = {name: statements(registry, ask) for name, ask in LISTINGS.items()}
    for number in range(2, 7):
        learn_next(registry, number)
    assert {name: statements(registry, ask) for name, ask in LISTINGS.items()} == few


def test_deltas_are_one_statement(registry: Registry) -> None:
    learn(registry, "sst2")
    assert statements(registry, LISTINGS["deltas"]) == 1


def learn_next(registry: Registry, number: int) -> None:
    tasks = [f"t{index}" for index in range(number + 1)]
    parents = [Parent(delta=f"{task}@1", kind="merged", weight=1.0) for task in tasks[:-1]]
    name = learn(registry, tasks[-1], parents=parents)
    begin(registry, *tasks)
    with registry.unit_of_work() as unit:
        unit.mark_learned("core", number, delta=name)


def statements(registry: Registry, ask: Callable[[Registry], object]) -> int:
    """Return the number of statements that `ask` sends, without BEGIN."""
    executed: list[str] = []

    def note(*arguments: object) -> None:
        executed.append(str(arguments[2]))

    event.listen(registry.engine, "before_cursor_execute", note)
    ask(registry)
    event.remove(registry.engine, "before_cursor_execute", note)
    return sum(not statement.startswith("BEGIN") for statement in executed)
