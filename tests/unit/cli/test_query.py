"""`continual query` and lineage graphs: their JSON, and every example in docs/reference/registry-views.md."""

import doctest
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from continual.cli import lineage_graph
from registry import DataRecord, Parent, Registry
from tasks.errors import InputError
from tests.helpers.cli import CliRunner
from tests.helpers.paths import DOCS, ROOT
from tests.helpers.registries import BACKBONE, begin, learn, learn_in

PAGE = (DOCS / "reference" / "registry-views.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ continual (.*)$", PAGE, flags=re.MULTILINE)
QUERIES = re.findall(r"^```sql\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
VIEWS = re.findall(r"^\| `(\w+)` \| .* \| (id, .*) \|$", PAGE, flags=re.MULTILINE)
DATA = DataRecord(spec={}, folder=None, seed=0, fingerprints={"train": "ab12"}, rows={"train": 8})
EVIL = 'a"]; b -> c; <script>&quot;#`\\'


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """The registry of the command line's home after a stream of two tasks."""
    with Registry.open(f"sqlite:///{tmp_path}/home/registry.db", f"{tmp_path}/home/blobs") as opened:
        with opened.unit_of_work() as unit:
            unit.add_backbone(BACKBONE)
        for stream in ("helpdesk", "later"):
            begin(opened, "billing", "delivery", name=stream)
        for number, (task, score) in enumerate([("billing", 0.8), ("delivery", 0.9)]):
            parents = [Parent(delta="billing@1", kind="warm_start", weight=1.0)] if number else []
            with opened.unit_of_work() as unit:
                name = learn_in(unit, opened, task, score=score, parents=parents, data=DATA)
                unit.mark_learned("helpdesk", number, delta=name)
        yield opened


def test_every_command_of_the_page_answers(cli: CliRunner, registry: Registry) -> None:
    assert len(COMMANDS) >= 10
    for words in COMMANDS:
        result = cli(*words.replace("minilm", BACKBONE.name).split())
        assert result.code == 0, result.err
        assert result.out.strip()


def test_the_pages_python_runs(tmp_path: Path, registry: Registry) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    moved = example.replace("continual-home", f"{tmp_path}/home")
    path = {"PYTHONPATH": str(ROOT)}
    completed = subprocess.run([sys.executable, "-c", moved], env=path, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.splitlines() == ["billing billing@1 0.8", "delivery delivery@1 0.9", "16 examples"]


def test_the_pages_sql_runs(registry: Registry) -> None:
    assert len(QUERIES) == 5
    with registry.read_session() as session:
        results = [session.execute(text(query)).all() for query in QUERIES]
    assert results[0] == [("delivery", "delivery@1", 0.9), ("billing", "billing@1", 0.8)]
    assert results[1] == [("helpdesk", 2, 2, 0, 2.0), ("later", 0, 2, 0, 0.0)]
    assert results[2] == []
    assert [row[0] for row in results[4]] == ["billing@1", "delivery@1"]


@pytest.mark.usefixtures("database")
def test_the_page_has_every_view_and_its_columns(tmp_path: Path, database: str) -> None:
    with Registry.open(database, f"{tmp_path}/blobs") as registry:
        inspector = inspect(registry.engine)
        documented = {name: columns.split(", ") for name, columns in VIEWS}
        assert documented == {
            name: [column["name"] for column in inspector.get_columns(name)] for name in inspector.get_view_names()
        }
        tables = set(inspector.get_table_names()) - {"registry_version", "identity"}
        assert {name for name in tables if f"`{name}`" not in PAGE} == set()


def test_json_listings_are_pages_of_objects(cli: CliRunner, registry: Registry) -> None:
    first = cli("deltas", "--limit", "1", "--json").json
    second = cli("deltas", "--limit", "1", "--after", first[0]["delta"], "--json").json
    assert [row["delta"] for row in first + second] == ["billing@1", "delivery@1"]
    best = cli("query", "best", "--limit", "1", "--json").json
    assert [row["task"] for row in cli("query", "best", "--after", str(best[0]["id"]), "--json").json] == ["delivery"]
    assert [row["stream"] for row in cli("query", "cost", "--after", "helpdesk", "--json").json] == ["later"]
    assert [row["task"] for row in cli("tasks", "--after", "billing", "--json").json] == ["delivery"]
    assert [row["score"] for row in cli("query", "history", "billing", "--json").json] == [0.8]
    assert len(cli("query", "dependents", "--data", "ab12", "--json").json) == 2
    assert {row["what"] for row in cli("query", "changes", "--since", "2020-01-01", "--json").json} >= {"learned"}
    assert cli("query", "changes", "--since", "2999-01-01T00:00+02:00", "--json").json == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("query", "changes", "--since", "yesterday"), "is no time"),
        (("query", "dependents"), "of one thing"),
        (("query", "dependents", "--data", "ff"), "no delta was learned from rows"),
        (("query", "history", "bill"), "nearest known: billing"),
        (("lineage", "billing@1", "--dot", "--json"), "three answers"),
        (("deltas", "--limit", "0"), "Usage"),
        (("tasks", "--after", "nothing"), "no task is called"),
    ],
)
def test_an_invalid_query_is_an_error_message(
    cli: CliRunner, registry: Registry, words: tuple[str, ...], message: str
) -> None:
    result = cli(*words)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_names_are_escaped_in_lineage_graphs(cli: CliRunner, registry: Registry) -> None:
    learn(registry, EVIL, parents=[Parent(delta="billing@1", kind="warm_start", weight=0.5)])
    dot = cli("lineage", f"{EVIL}@1", "--dot").out
    assert 'n0 [label="a\\"]; b -> c; <script>&amp;quot;#`\\\\@1", style=bold];' in dot
    assert dot.count(" -> n") == 1
    mermaid = cli("lineage", "billing@1", "--descendants", "--mermaid").out
    assert 'n2["a#34;#93;#59; b -#62; c#59; #60;script#62;#38;quot#59;#35;#96;#92;@1"]' in mermaid
    assert mermaid.count("-->") == 2
    assert json.loads(cli("lineage", f"{EVIL}@1", "--json").out)[0]["delta"] == f"{EVIL}@1"


def test_a_single_delta_is_a_lineage_graph_too(cli: CliRunner, registry: Registry) -> None:
    assert cli("lineage", "billing@1", "--mermaid").out.splitlines()[1] == '  n0["billing@1"]:::asked'
    with pytest.raises(InputError):
        registry.lineage("billing@1", depth=0)


def test_examples_run() -> None:
    failed, attempted = doctest.testmod(lineage_graph)
    assert (failed, attempted) == (0, 2)
