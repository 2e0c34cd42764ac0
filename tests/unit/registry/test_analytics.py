"""Analytic queries and views: correct answers, pagination, few statements, and indices instead of scans."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, event, text

from registry import DataRecord, NotFound, Parent, Registry, add_key
from registry.records import LineageKind
from registry.schema.base import now
from registry.schema.tables import Event
from tasks.errors import InputError
from tests.helpers.registries import accuracy, begin, learn, make_registry, task_record

Ask = Callable[..., Any]
# Queries of the command line that may grow without bound, a page at a time.
PAGED: dict[str, Ask] = {
    "tasks": lambda registry, **page: registry.tasks(**page),
    "deltas": lambda registry, **page: registry.deltas(**page),
    "deltas of a task": lambda registry, **page: registry.deltas("sst2", **page),
    "streams": lambda registry, **page: registry.streams(**page),
    "keys": lambda registry, **page: registry.keys(**page),
    "scores": lambda registry, **page: registry.scores(**page),
    "scores in a stream": lambda registry, **page: registry.scores(stream="core", **page),
    "scores of a task": lambda registry, **page: registry.scores(task="sst2", **page),
    "best": lambda registry, **page: registry.best(**page),
    "history": lambda registry, **page: registry.history("sst2", **page),
    "changes": lambda registry, **page: registry.changes(**page),
    "changes since": lambda registry, **page: registry.changes(since=now() - timedelta(days=9), **page),
    "changes of a task": lambda registry, **page: registry.changes(task="sst2", **page),
    "siblings": lambda registry, **page: registry.siblings("sst2", **page),
    "cost": lambda registry, **page: registry.cost(**page),
    "dependents of a backbone": lambda registry, **page: registry.dependents(backbone="f00d", **page),
    "dependents of a task": lambda registry, **page: registry.dependents(task="root", **page),
    "dependents of data": lambda registry, **page: registry.dependents(data="rows-of-root", **page),
}
NAMED = {"tasks": "task", "deltas": "delta", "keys": "key", "cost": "stream", "dependents": "delta"}  # others: an id
WHOLE: dict[str, Ask] = {
    "lineage": lambda registry: registry.lineage("sst2@2"),
    "descendants": lambda registry: registry.lineage("root@1", descendants=True),
    "stream": lambda registry: registry.stream("core"),
    "last stream": lambda registry: registry.last_stream(),
    "learned": lambda registry: registry.learned("core"),
    "parents": lambda registry: registry.parents("core"),
    "signature": lambda registry: registry.signature("sst2@1"),
    "delta": lambda registry: registry.delta("sst2@1"),
    "known tasks": lambda registry: registry.check_tasks_unchanged([task_record("sst2"), task_record("trec")]),
    "known stream": lambda registry: registry.check_stream_unchanged("core", [("sst2", "r-sst2"), ("trec", "r-trec")]),
}
GROWING = ("tasks", "deltas", "lineage", "scores", "splits", "events", "streams", "positions", "signatures")


@pytest.fixture
def registry(database: str, tmp_path: Path) -> Iterator[Registry]:
    """A registry that the test may change."""
    with filled(tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared(shared_database: Path) -> Iterator[Registry]:
    """A registry for tests that only read."""
    with filled(shared_database) as opened:
        yield opened


@contextmanager
def filled(folder: Path) -> Iterator[Registry]:
    """Register two tasks derived from a third, all in one stream, one of them with two versions."""
    with make_registry(folder) as opened:
        learn(opened, "root", data=data("rows-of-root"))
        begin(opened, "sst2", "trec")
        begin(opened, "late", name="other")
        for number, (task, score) in enumerate([("sst2", 0.5), ("trec", 0.7)]):
            name = learn(opened, task, score=score, parents=[from_("root@1")], data=data("shared"))
            with opened.unit_of_work() as unit:
                unit.mark_learned("core", number, delta=name)
                unit.add_scores(name, [accuracy(0.1 + number, mode="routed", stream="core", step=number)])
        learn(opened, "sst2", score=0.4, parents=[from_("sst2@1", "retrained")])
        for key in ("ci", "ops"):
            add_key(opened, key, role="read")
        yield opened


def data(fingerprint: str) -> DataRecord:
    return DataRecord(spec={}, folder=None, seed=0, fingerprints={"train": fingerprint}, rows={"train": 7})


def from_(delta: str, kind: LineageKind = "warm_start") -> Parent:
    return Parent(delta=delta, kind=kind, weight=1.0)


def test_best_returns_the_highest_score(registry: Registry) -> None:
    with registry.unit_of_work() as unit:
        unit.add_scores("sst2@2", [accuracy(0.9, metric="macro_f1"), accuracy(1.0, mode="frozen")])
    best = {(row["task"], row["metric"]): (row["delta"], row["score"]) for row in registry.best()}
    assert best == {
        ("root", "accuracy"): ("root@1", 0.5),
        ("sst2", "accuracy"): ("sst2@1", 0.5),
        ("sst2", "macro_f1"): ("sst2@2", 0.9),
        ("trec", "accuracy"): ("trec@1", 0.7),
    }
    (row,) = registry.best(task="sst2", metric="macro_f1")
    assert (row["status"], row["backbone"], row["split"], row["rows"]) == ("candidate", "tiny", "test", 10)
    assert registry.best(split="train") == []


def test_best_returns_the_newest_of_equals(registry: Registry) -> None:
    learn(registry, "trec", score=0.7)
    assert [row["delta"] for row in registry.best(task="trec")] == ["trec@2"]


def test_a_tasks_history_covers_versions_and_streams(registry: Registry) -> None:
    shown = [(row["delta"], row["mode"], row["stream"], row["score"]) for row in registry.history("sst2")]
    assert shown == [
        ("sst2@1", "oracle", None, 0.5),
        ("sst2@1", "routed", "core", 0.1),
        ("sst2@2", "oracle", None, 0.4),
    ]
    assert [row["score"] for row in registry.history("sst2", split="validation")] == [0.5, 0.4]
    assert registry.history("sst2", metric="macro_f1") == []


def test_changes_since_a_moment(registry: Registry) -> None:
    moment = now()
    with registry.unit_of_work() as unit:
        unit.session.execute(delete(Event))
        for hours, task in ((-2, 1), (0, 1), (1, 2), (1, 1)):
            unit.session.add(
                Event(task_id=task, delta_id=1, what="promoted", created_at=moment + timedelta(hours=hours))
            )
    changes = registry.changes(since=moment)
    assert [row["task"] for row in changes] == ["root", "sst2", "root"]
    assert datetime.fromisoformat(changes[0]["at"]) == moment
    assert changes[0] | {"id": 0, "at": ""} == {
        "id": 0,
        "at": "",
        "what": "promoted",
        "task": "root",
        "delta": "root@1",
        "reason": None,
    }
    assert len(registry.changes(task="root")) == 3
    with pytest.raises(InputError, match="in which zone"):
        registry.changes(since=datetime(2026, 1, 1))


def test_siblings_share_a_parent(registry: Registry) -> None:
    (row,) = registry.siblings("sst2")
    assert (row["task"], row["delta"], row["parent"], row["kind"]) == ("trec", "trec@1", "root@1", "warm_start")
    assert registry.siblings("root") == []


def test_the_costs_of_a_stream(registry: Registry) -> None:
    with registry.unit_of_work() as unit:
        unit.session.execute(text("UPDATE positions SET attempts = 3 WHERE number = 1"))
    costs = {"retries": 2, "seconds": 2.0, "examples": 14, "bytes": 12, "parameters": 20}
    assert registry.cost("core") == [
        {"stream": "core", "backbone": "tiny", "tasks": 2, "learned": 2, "failed": 0} | costs
    ]
    assert [(row["stream"], row["learned"], row["examples"]) for row in registry.cost()] == [
        ("core", 2, 14),
        ("other", 0, 0),
    ]


def test_dependents_of_a_backbone_a_task_or_data(registry: Registry) -> None:
    everything = ["root@1", "sst2@1", "trec@1", "sst2@2"]
    for backbone in ("f00d", "tiny"):
        assert [row["delta"] for row in registry.dependents(backbone=backbone)] == everything
    rows = [(row["delta"], row["depth"], row["stream"]) for row in registry.dependents(task="root")]
    assert rows == [("root@1", 0, None), ("sst2@1", 1, "core"), ("trec@1", 1, "core"), ("sst2@2", 2, None)]
    assert registry.dependents(data="rows-of-root") == registry.dependents(task="root")
    assert [(row["delta"], row["depth"]) for row in registry.dependents(data="shared")] == [
        ("sst2@1", 0),
        ("trec@1", 0),
        ("sst2@2", 1),
    ]
    dependents: Callable[..., object] = registry.dependents
    for unknown in ({"backbone": "big"}, {"task": "tree"}, {"data": "rows"}):
        with pytest.raises(NotFound):
            dependents(**unknown)
    for arguments in ({}, {"task": "root", "data": "shared"}):
        with pytest.raises(InputError, match="of one thing"):
            dependents(**arguments)


def test_lineage_follows_both_directions_up_to_a_depth(registry: Registry) -> None:
    def edges(*delta: str, **options: Any) -> list[tuple[str, str, int]]:
        return [(row["delta"], row["parent"], row["depth"]) for row in registry.lineage(*delta, **options)]

    below = [("sst2@1", "root@1", 1), ("trec@1", "root@1", 1), ("sst2@2", "sst2@1", 2)]
    assert edges("root@1", descendants=True) == below
    assert edges("root@1", descendants=True, depth=1) == below[:2]
    assert edges("sst2@2") == [("sst2@2", "sst2@1", 1), ("sst2@1", "root@1", 2)]
    assert edges("sst2@2", depth=1) == [("sst2@2", "sst2@1", 1)]
    assert edges("trec@1", descendants=True) == []


@pytest.mark.parametrize("name", PAGED)
def test_pages_add_up_to_the_whole_listing(shared: Registry, name: str) -> None:
    ask, key = PAGED[name], NAMED.get(name.split(" ")[0], "id")
    whole, pages = list(ask(shared)), list(ask(shared, limit=1))
    while page := ask(shared, limit=1, after=_last(name, pages[-1], key)):
        assert len(page) == 1
        pages += page
    assert pages == whole
    assert len(whole) > 1 or name == "siblings"
    with pytest.raises(InputError, match="at least 1"):
        ask(shared, limit=0)


def _last(name: str, row: Any, key: str) -> Any:
    if name.startswith("scores"):
        return row
    return row.name if name == "streams" else row[key]


def test_a_page_after_a_deleted_row_is_refused(registry: Registry) -> None:
    with pytest.raises(NotFound, match="measured again"):
        registry.best(limit=1, after=10_000)


@pytest.mark.parametrize("name", [*PAGED, *WHOLE])
def test_no_query_scans_a_growing_table(shared: Registry, name: str) -> None:
    if name in WHOLE:
        executed = statements(shared, lambda: WHOLE[name](shared))
    else:
        executed = statements(shared, lambda: PAGED[name](shared, limit=1))
    plans = [line for statement in executed for line in plan(shared, *statement)]
    assert plans
    assert [line for line in plans if reads_all(line)] == []


def statements(registry: Registry, ask: Callable[[], object]) -> list[tuple[str, Any]]:
    """Return the statements that `ask` sends, with their parameters."""
    executed: list[tuple[str, Any]] = []

    def note(*arguments: Any) -> None:
        executed.append((arguments[2], arguments[3]))

    event.listen(registry.engine, "before_cursor_execute", note)
    ask()
    event.remove(registry.engine, "before_cursor_execute", note)
    return [(statement, parameters) for statement, parameters in executed if not statement.startswith("BEGIN")]


def plan(registry: Registry, statement: str, parameters: Any) -> list[str]:
    """Return the query plan; PostgreSQL, which scans small tables, with scans disabled."""
    with registry.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            return [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
        for scan in ("seqscan", "bitmapscan"):
            connection.exec_driver_sql(f"SET LOCAL enable_{scan} = off")
        return [row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)]


def reads_all(line: str) -> bool:
    """Return whether a plan scans a table: SQLite's SCAN without an index, or PostgreSQL's Seq Scan."""
    words = line.replace("->", "").split()
    if words[0] == "SCAN":
        return words[1] in GROWING and "USING INDEX" not in line and "USING COVERING INDEX" not in line
    return words[:2] == ["Seq", "Scan"] and words[3] in GROWING


def test_views_agree_with_the_listings(registry: Registry) -> None:
    def view(columns: str, name: str, suffix: str = "ORDER BY id") -> list[dict[str, Any]]:
        with registry.read_session() as session:
            return [dict(row) for row in session.execute(text(f"SELECT {columns} FROM {name} {suffix}")).mappings()]

    columns = ("delta", "task", "version", "method", "parameters", "share", "bytes", "status", "score", "mlflow_run")
    listed = [{name: row[name] for name in columns} for row in registry.deltas()]
    assert view(", ".join(columns), "named_deltas") == listed
    served = {row["task"]: (row["champion"], row["score"]) for row in registry.tasks()}
    assert {row["task"]: (row["delta"], row["score"]) for row in view("*", "champions")} == served
    edges = ("delta", "parent", "kind", "weight", "score")
    lineage = [{name: row[name] for name in edges} for row in registry.lineage("root@1", descendants=True)]
    assert view(", ".join(edges), "named_lineage") == lineage
    scores = view("delta, task, split, metric, mode, stream, step, value", "named_scores", "ORDER BY step, id")
    assert scores == [{name: getattr(score, name) for name in scores[0]} for score in registry.scores()]
    changes = registry.changes()
    assert view("id, what, task, delta, reason", "named_events") == [
        {name: row[name] for name in ("id", "what", "task", "delta", "reason")} for row in changes
    ]
    assert [row["fingerprint"] for row in view("*", "named_splits")] == ["rows-of-root", "shared", "shared"]
    progress = view("*", "stream_progress")
    assert [{name: row[name] for name in cost} for row, cost in zip(progress, registry.cost(), strict=True)] == (
        registry.cost()
    )
    assert [(row["held"], row["tasks"]) for row in progress] == [(0, 2), (0, 1)]
