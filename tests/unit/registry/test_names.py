"""Hostile names of tasks, streams and labels: handled as data in SQL, blobs, archives and terminals."""

import json
from pathlib import Path

import pytest

from continual.cli import main
from registry import NotFound, Registry, add_key, dump_registry, find_damage, restore_registry
from tasks.errors import InputError
from tests.helpers.databases import registry_url
from tests.helpers.registries import accuracy, begin, learn, make_registry

NAMES = {
    "path": "../../../etc/passwd",
    "absolute": "/etc/passwd",
    "quotes": 'it\'s "quoted" `so`',
    "sql": "x'); DROP TABLE deltas; --",
    "like": "100%_of\\it",
    "placeholder": "%s %(name)s :name ? {0} {name} $1",
    "html": "<script>alert('x')</script>&amp;",
    "markup": "[bold red]mood[/] [link=http://evil]x[/link] \\[",
    "terminal": "mood\x1b[2J\x1b]0;title\x07\x9b31m\r",
    "right to left": "\u202emood\u202c \u200fשלום",
    "emoji": "👩\u200d👩\u200d👧 é\u0301 ﷽",
    "lines": "one\ntwo\u2028three\tfour",
    "long": "ü" * 500,
    "space": " ",
    "null": "NULL",
}
SAID = "cannot be called|half a surrogate pair"
REFUSED = {"empty": "", "at": "a@1", "NUL": "a\0b", "surrogate": "a\ud800", "10 kB": "x" * 10_000}


def labels_with(name: str) -> tuple[str, ...]:
    return (name, "other", name + "\0")


def learn_under(registry: Registry, name: str) -> str:
    """Register a task, a delta, a stream, a key and scores under a name; return the delta."""
    delta = learn(registry, name, labels=labels_with(name), settings={name: name}, warm_start="scratch")
    begin(registry, name, "plain", name=name)
    add_key(registry, name, role="read")
    with registry.unit_of_work() as unit:
        unit.mark_learned(name, 0, delta=delta)
        unit.mark_failed(name, 1, error=f"{name}\0\ud800")
        unit.add_scores(delta, [accuracy(0.3, stream=name, mode="routed")])
    assert registry.delta(delta).labels == labels_with(name)
    assert registry.delta(delta).settings == {name: name}
    assert [row["task"] for row in registry.deltas(name)] == [name]
    assert [score.stream for score in registry.scores(stream=name)] == [name]
    assert registry.stream(name).positions[1].error == f"{name}\\x00\\ud800"
    assert registry.lineage(delta) == []
    with pytest.raises(NotFound):
        registry.task(name + "%")
    return delta


def test_any_name_is_data_to_the_registry(tmp_path: Path, database: str) -> None:
    deltas: dict[str, str] = {}
    with make_registry(tmp_path) as registry:
        learn(registry, "plain")
        for name in NAMES.values():
            deltas[name] = learn_under(registry, name)
        assert [row["key"] for row in registry.keys(limit=50)] == [*NAMES.values()]
        assert find_damage(registry) == []
        dump_registry(registry, tmp_path / "archive.zip")
    moved = f"sqlite:///{tmp_path}/moved.db", f"{tmp_path}/moved"
    restore_registry(tmp_path / "archive.zip", *moved)
    with Registry.open(*moved) as registry:
        for name, delta in deltas.items():
            assert registry.delta(delta).labels == labels_with(name)
    outside = {path.name for path in tmp_path.iterdir()}
    assert outside <= {"home", "moved", "moved.db", "moved.db-shm", "moved.db-wal", "archive.zip", "registry-url"}


@pytest.mark.parametrize("name", REFUSED.values(), ids=REFUSED)
def test_names_that_one_database_cannot_hold_are_refused_by_all(name: str, tmp_path: Path, database: str) -> None:
    with make_registry(tmp_path) as registry:
        with pytest.raises(InputError, match=SAID):
            learn(registry, name)
        with pytest.raises(InputError, match=SAID):
            begin(registry, "plain", name=name)
        with pytest.raises(InputError, match=SAID):
            begin(registry, name)
        with pytest.raises(InputError, match=SAID):
            add_key(registry, name, role="read")
        assert [registry.tasks(), list(registry.streams()), registry.keys(limit=1)] == [[], [], []]


def test_a_name_that_is_not_text_is_no_crash(tmp_path: Path, database: str) -> None:
    with make_registry(tmp_path) as registry, pytest.raises(InputError, match="half a surrogate pair"):
        registry.task("a\ud800")


@pytest.mark.parametrize("name", ["\0", "a\0", "a\0@1", "a\ud800", "\0" * 10_000])
def test_names_that_cannot_be_stored_are_not_found(name: str, tmp_path: Path, database: str) -> None:
    with make_registry(tmp_path) as registry:
        learn(registry, "plain")
        for query in (registry.task, registry.deltas, registry.delta, registry.lineage, registry.stream):
            with pytest.raises(NotFound) as caught:
                query(name)
            assert "SELECT" not in str(caught.value)
            assert len(str(caught.value)) < 2000
        with pytest.raises(NotFound):
            registry.tasks(after=name)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_name_is_data_to_the_terminal(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["continual", *words, "--home", f"{tmp_path}/home"])
        monkeypatch.setenv("COLUMNS", "2000")
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr()

    with make_registry(tmp_path) as registry:
        learn(registry, "plain")
        delta = learn(registry, name)
        begin(registry, name, name=name)
        add_key(registry, name, role="read")
        with registry.unit_of_work() as unit:
            unit.mark_failed(name, 0, error=name)
    assert registry_url(tmp_path).startswith("sqlite")
    shown = ""
    for words in (
        ["tasks"],
        ["keys"],
        ["deltas"],
        ["deltas", "--task", name],
        ["lineage", delta],
        ["similar", name],
        ["report"],
    ):
        out, err = run(*words)
        shown += out + err
    output = run("lineage", f"{name}@77")[1] + run("predict", "--task", name)[1]
    for text in (shown, output):
        assert not set(text) & set("\x1b\x07\x9b\r\u202e\u202c\u200f\u2028"), ascii(text)
    if name.isprintable() and name.strip():
        assert name[:200] in shown, "markup is shown, not obeyed, and cut where it is long"
    assert [row["task"] for row in json.loads(run("tasks", "--json")[0])] == ["plain", name]
