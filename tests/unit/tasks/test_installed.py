"""The demo corpus of docstrings, from packages made here and from installed ones."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from tasks import DataError, load_stream, read_stream, write_demo_stream, write_writing_stream
from tasks.docstring_corpus import area_rows, module_rows, role_rows

AREAS = ("birds", "boats", "bread", "tests", "_inner")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Two packages that must not be imported, with 80 documented functions in each subpackage."""
    names = ("demo_one", "demo_two")
    for name in names:
        for area in AREAS:
            folder = tmp_path / "site" / name / area
            folder.mkdir(parents=True)
            body = "".join(
                f'def f{i}():\n    r"""About {area} in {name},\n    number {i}.\n\n    More \\d.\n    """\n'
                for i in range(80)
            )
            (folder / "code.py").write_text(body, encoding="utf-8")
        (tmp_path / "site" / name / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return names


def test_a_text_is_the_first_paragraph_of_a_public_docstring(tmp_path: Path, packages: tuple[str, ...]) -> None:
    odd = '''
class Loud:
    """Makes a great deal of noise."""
    def shout(self):
        """Calls out across the water."""
        def inner(): "Nobody outside can ever call this."
    def _hush(self): "This is private to the class."
class _Quiet:
    def open(self): "A public name inside private walls."
def short(): "Too short."
def shared(): "This is said in two areas."
def escaped(): "An invalid escape \\d is no trouble."
'''
    (tmp_path / "site/demo_one/birds/odd.py").write_text(odd, encoding="utf-8")
    (tmp_path / "site/demo_one/boats/odd.py").write_text('def f(): "This is said in two areas."\n', encoding="utf-8")
    (tmp_path / "site/demo_one/boats/broken.py").write_text("def f(:\n", encoding="utf-8")
    rows = area_rows("demo_one")
    assert Counter(area for _, area in rows) == {"birds": 83, "boats": 80, "bread": 80}
    texts = {text for text, _ in rows if not text.startswith("About")}
    assert texts == {
        "Makes a great deal of noise.",
        "Calls out across the water.",
        "An invalid escape \\d is no trouble.",
    }
    assert ("About boats in demo_one, number 7.", "boats") in rows
    assert "demo_one" not in sys.modules


STYLES = '''
def numpydoc(x):
    """Return the :class:`.Graph` of `x`. It is new.

    Parameters
    ----------
    x : int
        Number of *nodes* that there are. Not negative.

    Returns
    -------
    Graph
        A graph with that many nodes.

    Raises
    ------
    ValueError
        If there is no such number.

    Notes
    -----
    It takes linear time to build.
    """
def google(x):
    """Draw a picture of something.

    Args:
        x (int): The width of the picture in points.

    Returns:
        Graph: The picture that was drawn here.

    Raises:
        KeyError: If nobody knows how to draw.
    """
def rest(x):
    """Send a letter to somebody.

    :param x: where the letter is sent to
    :return: whether the letter has arrived there
    """
def plain(x):
    "This docstring has no sections at all."
'''


def test_sections_of_every_style_are_told_apart(tmp_path: Path, packages: tuple[str, ...]) -> None:
    (tmp_path / "site/demo_one/styles.py").write_text(STYLES, encoding="utf-8")
    assert {role: {text for text, of in role_rows("demo_one") if of == role} for _, role in role_rows("demo_one")} == {
        "summary": {"Return the Graph of x.", "Draw a picture of something.", "Send a letter to somebody."},
        "argument": {
            "Number of nodes that there are.",
            "The width of the picture in points.",
            "where the letter is sent to",
        },
        "result": {
            "A graph with that many nodes.",
            "The picture that was drawn here.",
            "whether the letter has arrived there",
        },
        "error": {"If there is no such number.", "If nobody knows how to draw."},
        "note": {"It takes linear time to build."},
    }


def test_the_demo_is_a_stream_that_loads(
    tmp_path: Path, packages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = write_demo_stream(tmp_path / "demo", packages=(*packages, "no_such_package"), label="area")
    stream = read_stream(path)
    assert (stream.name, stream.backbone, stream.measure_gain) == ("demo", "minilm", True)
    for data in load_stream(stream):
        assert data.labels == ("birds", "boats", "bread")
        assert data.notes == ()
        assert len({*data.train.texts, *data.validation.texts, *data.test.texts}) == 240
        assert len(data.train) > len(data.test) > len(data.validation) > 0
    assert capfd.readouterr() == ("", "")
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    write_demo_stream(tmp_path / "demo", packages=packages, label="area")
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_an_installed_package_gives_a_capped_and_even_task(tmp_path: Path, packages: tuple[str, ...]) -> None:
    path = write_demo_stream(tmp_path / "demo", packages=("sqlalchemy", packages[0]), label="area")
    labels = Counter(
        line.rpartition('"label": ')[2] for line in (path.parent / "sqlalchemy.train.jsonl").read_text().splitlines()
    )
    assert labels.total() <= 500
    assert 3 <= len(labels) <= 8
    assert min(labels.values()) >= 25


def test_too_few_packages_are_an_error(tmp_path: Path, packages: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"two installed packages .* usable of demo_one, nowhere: demo_one"):
        write_demo_stream(tmp_path / "demo", packages=("demo_one", "nowhere"), label="area")
    assert not (tmp_path / "demo").exists()
    with pytest.raises(DataError, match="no package 'nowhere' is installed"):
        area_rows("nowhere")
    with pytest.raises(DataError, match="no label 'topic' of docstrings; allowed: role, area"):
        write_demo_stream(tmp_path / "demo", packages=packages, label="topic")  # type: ignore[arg-type]


def test_a_language_model_writes_summaries_from_signatures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.docstring_corpus.WRITING_PACKAGES", ("alembic",))  # the real ones take long to parse
    monkeypatch.setattr("tasks.docstring_corpus.READING_PACKAGE", "networkx")
    stream = read_stream(write_writing_stream(tmp_path / "demo"))
    assert [(task.name, task.kind) for task in stream.tasks] == [
        ("alembic", "generation"),
        ("networkx", "classification"),
    ]
    writing, reading = load_stream(stream)
    assert [len(writing.train), len(writing.validation), len(writing.test)] == [96, 16, 24]
    assert all(str(text).startswith("def ") for text in writing.train.texts)
    assert len(set(reading.labels)) > 2


def test_a_module_has_the_sentences_of_all_parts_of_its_docstrings(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        '''
def plain():
    """Counts the boats in the harbour. They may be moored.

    Each one is counted only once. Small ones are left out

    >>> plain() and nothing else is here
    """
def sectioned(depth):
    """Measures how deep the water is.

    It is taken at low tide.

    Args:
        depth: How deep all of it is. In metres of salt water.

    Returns:
        A number that is not negative.
    """
def _hidden(): "Nobody reads what this one says."
''',
        encoding="utf-8",
    )
    assert sorted(module_rows(file)) == [
        ("A number that is not negative.", "result"),
        ("Counts the boats in the harbour.", "summary"),
        ("Each one is counted only once.", "note"),
        ("How deep all of it is.", "argument"),
        ("In metres of salt water.", "argument"),
        ("It is taken at low tide.", "note"),
        ("Measures how deep the water is.", "summary"),
        ("Small ones are left out", "note"),
        ("They may be moored.", "summary"),
    ]
    file.write_text("def f(:\n", encoding="utf-8")
    assert module_rows(file) == []
