"""Tables in narrow terminals: no word and no name is broken, and no line is longer than the terminal."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from continual.cli.options import out
from continual.cli.table_layout import TextTable, print_record, print_table
from registry import Parent, add_key
from tests.helpers.arrivals import task as arrival
from tests.helpers.cli import CliRunner
from tests.helpers.registries import begin, learn_in, make_registry

BILLING = "questions-about-bills-of-business-users"
DELIVERY = "questions-about-parcels_of-private-users"
LISTINGS = (
    ("tasks",),
    ("tasks", "show", DELIVERY),
    ("deltas",),
    ("lineage", f"{DELIVERY}@1"),
    ("report",),
    ("arrivals",),
    ("keys",),
    ("mlflow",),
    ("verify", "--quick"),
    ("study",),
    ("query", "best"),
    ("query", "changes"),
    ("query", "history", DELIVERY),
    ("query", "siblings", DELIVERY),
    ("query", "cost"),
    ("query", "dependents", "--task", BILLING),
)


@pytest.fixture
def printed_words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of all cells and headings of the tables that are printed."""
    words: list[str] = []

    def printed(table: TextTable, column: int) -> list[str]:
        texts = read(table, column)
        words.extend(word for text in texts for word in text.split())
        return texts

    read = TextTable.texts
    monkeypatch.setattr(TextTable, "texts", printed)
    return words


@pytest.fixture
def long_names(tmp_path: Path) -> None:
    with make_registry(tmp_path) as registry:
        begin(registry, BILLING, DELIVERY, "short")
        parents: tuple[Parent, ...] = ()
        for number, task in enumerate((BILLING, DELIVERY, "short")):
            with registry.unit_of_work() as unit:
                delta = learn_in(unit, registry, task, parents=parents)
                unit.mark_learned("core", number, delta=delta)
            parents = (Parent(delta=delta, kind="warm_start", weight=1.0),)
        registry.submit(arrival(BILLING))
        add_key(registry, DELIVERY, role="admin")


@pytest.mark.parametrize("columns", [80, 60])
def test_no_listing_breaks_a_word(
    cli: CliRunner,
    long_names: None,
    printed_words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
) -> None:
    monkeypatch.setattr(out, "width", columns)  # a variable COLUMNS counts only when the console is made
    for words in LISTINGS:
        printed_words.clear()
        result = cli(*words)
        assert result.code == (1 if words[0] == "verify" else 0), result.err
        assert set(printed_words) <= set(result.out.split()), words
        assert isinstance(cli(*words, "--json").json, list | dict)
        too_long = [line for line in result.out.splitlines() if len(line) > columns]
        assert all(max(map(len, line.split())) > columns - 20 for line in too_long), (words, too_long)


def printed(table: TextTable, width: int) -> list[str]:
    console = Console(width=width, file=StringIO())
    print_table(console, table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def matrix(names: Sequence[str], columns: int) -> TextTable:
    headings = ["after", *map(str, range(columns))]
    return TextTable(headings, [[name, *["0.123"] * columns] for name in names], [False, *[True] * columns])


def test_a_wide_table_goes_on_below_with_its_first_column() -> None:
    lines = printed(matrix(["a", "b"], 12), 50)
    assert [line.split() for line in lines if "after" in line] == [
        ["after", *map(str, range(6))],
        ["after", *map(str, range(6, 12))],
    ]
    assert sum(line.startswith(" a ") for line in lines) == 2
    assert not [line for line in printed(matrix(["a", "b"], 12), 100) if len(line) > 100]
    assert sum("after" in line for line in printed(matrix(["a", "b"], 12), 100)) == 1


def test_rows_become_records_where_a_word_does_not_fit_beside_the_first_column() -> None:
    path = "/data/" + "x" * 50
    table = TextTable(["task", "folder"], [[DELIVERY, f"at {path} since [bold]\x1b"]], [False, False], "what it is")
    assert printed(table, 75) == [
        "",
        f" task    {DELIVERY}",
        f" folder  at {path} since",
        "         [bold]\\x1b",
        "",
        "what it is",
    ]
    assert printed(table, 40)[2:4] == [" folder  at", f"         {path}"], "a longer word is left to the terminal"


def test_wide_characters_count_twice_and_text_is_folded_at_spaces() -> None:
    table = TextTable(["任务", "note"], [["客户问题" * 4, "one two three four five six"]], [False, False])
    lines = printed(table, 52)
    assert f" {'客户问题' * 4}  one two three" in lines
    assert max(map(cell_len, lines)) <= 52


def test_a_record_without_fields_of_length_is_printed() -> None:
    console = Console(width=30, file=StringIO())
    print_record(console, [("kind", ""), ("labels", "a, b")])
    assert console.file.getvalue() == "\n kind    \n labels  a, b\n\n"  # type: ignore[attr-defined]
