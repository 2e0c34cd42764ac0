"""Drafts of stream files: what files of many shapes suggest, and that the written file says the same."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import Budget, LabelledTexts, Source, Stream, TaskData, TaskSpec, load_stream, read_stream
from tasks.drafting import StreamDraft, TaskDraft, draft_stream, to_yaml
from tasks.drafting.grouping import group_files
from tasks.errors import DataError, InputError
from tests.helpers.paths import DOCS

SUBJECTS = ("the parcel", "my card", "an invoice", "the lamp", "our order", "a refund")
VERBS = ("was lost", "came late", "is broken", "was declined", "looks wrong")
TEXTS = [f"{subject} {verb} {when}" for subject in SUBJECTS for verb in VERBS for when in ("today", "last week")]
ROWS = len(TEXTS)


def cycle(values: Sequence[Any]) -> list[Any]:
    return [values[i % len(values)] for i in range(ROWS)]


def write(file: Path, **columns: Sequence[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(columns)
    match file.suffix:
        case ".jsonl":
            frame.to_json(file, orient="records", lines=True, force_ascii=False)
        case ".json":
            frame.to_json(file, orient="records", force_ascii=False)
        case ".parquet":
            frame.to_parquet(file)
        case suffix:
            frame.to_csv(file, index=False, sep="\t" if suffix == ".tsv" else ",")
    return file


def draft(folder: Path, *files: Path, **options: Any) -> StreamDraft:
    """Return the draft for files, once the stream file that is made of it is read and loaded as the same stream."""
    drafted = draft_stream(files, folder=folder, backbone="minilm", **options)
    file = folder / "drafted.yaml"
    file.write_text(to_yaml(drafted), encoding="utf-8")
    again = read_stream(file)
    assert again == drafted.stream
    assert [len(data.train) for data in load_stream(again)] == [len(task.data.train) for task in drafted.tasks]
    written = file.read_text(encoding="utf-8")
    assert not [text for text in TEXTS if text in written], "no text is copied"
    return drafted


def draft_one(folder: Path, file: Path, **options: Any) -> TaskDraft:
    (task,) = draft(folder, file, **options).tasks
    return task


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path / f"tickets.{suffix}", body=TEXTS, topic=cycle(["lost", "late", "broken"]))
    spec = draft_one(tmp_path, file).spec
    assert (spec.name, spec.kind, spec.text, spec.label) == ("tickets", "classification", "body", "topic")


SHAPES: dict[str, tuple[dict[str, Sequence[Any]], dict[str, Any]]] = {
    "an index as pandas writes it": (
        {"Unnamed: 0": range(ROWS), "text": TEXTS, "label": cycle(["a", "b"])},
        {"kind": "classification", "text": "text", "label": "label"},
    ),
    "identifiers": (
        {"uuid": [f"a{i:x}-{i}" for i in range(ROWS)], "text": TEXTS, "grade": cycle([1, 2, 3])},
        {"kind": "classification", "text": "text", "label": "grade"},
    ),
    "amounts": (
        {"text": TEXTS, "price": [i / 7 for i in range(ROWS)]},
        {"kind": "regression", "text": "text", "label": "price", "metric": "pearson"},
    ),
    "whole amounts, named": (
        {"text": TEXTS, "score": [i * 3 for i in range(ROWS)]},
        {"kind": "regression", "text": "text", "label": "score"},
    ),
    "a pair": (
        {"premise": TEXTS, "hypothesis": TEXTS[::-1], "label": cycle(["yes", "no", "maybe"])},
        {"kind": "classification", "text": ("premise", "hypothesis"), "label": "label"},
    ),
    "texts to write": (
        {"document": [f"{text}, and {text}" for text in TEXTS], "summary": TEXTS},
        {"kind": "generation", "text": "document", "target": "summary", "metric": "chrf"},
    ),
    "answers in passages": (
        {"question": [f"{i}?" for i in TEXTS], "context": TEXTS, "answer": [text.split()[1] for text in TEXTS]},
        {"kind": "span", "text": ("question", "context"), "answers": "answer", "metric": "f1"},
    ),
    "rare labels": (
        {"text": TEXTS, "label": ["no"] * (ROWS - 4) + ["yes"] * 4},
        {"kind": "classification", "metric": "macro_f1"},
    ),
    "several candidates, one named label": (
        {"text": TEXTS, "language": cycle(["de", "en"]), "label": cycle(["a", "b", "c"])},
        {"label": "label"},
    ),
    "odd and unicode names": (
        {'say "text": #1, [x]': TEXTS, "Fach\u2028gebiet\n2": cycle(["à, b", "{c}", "- d"])},
        {"text": 'say "text": #1, [x]', "label": "Fach\u2028gebiet\n2"},
    ),
    "words of YAML": ({"yes": TEXTS, "null": cycle(["on", "off"])}, {"text": "yes", "label": "null"}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_columns_are_guessed_from_their_values(tmp_path: Path, shape: str) -> None:
    columns, expected = SHAPES[shape]
    suffix = "jsonl" if "unicode" in shape else "csv"
    spec = draft_one(tmp_path, write(tmp_path / f"task.{suffix}", **columns)).spec
    assert {key: getattr(spec, key) for key in expected} == expected


def test_answers_with_places_are_spans(tmp_path: Path) -> None:
    rows = [
        {"question": f"{text}?", "passage": text, "answers": {"text": [text[:3]], "answer_start": [0]}}
        for text in TEXTS
    ]
    file = tmp_path / "squad.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    spec = draft_one(tmp_path, file).spec
    assert (spec.kind, spec.text, spec.answers) == ("span", ("question", "passage"), "answers")


CHATS = [
    [
        {"role": "user", "content": text},
        {"role": "assistant", "content": f"yes, {text}"},
        {"role": "user", "content": "?"},
    ]
    for text in TEXTS
]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"id": i, "messages": chat} for i, chat in enumerate(CHATS)], {"text": "messages", "messages": "messages"}),
        ([{"prompt": text, "completion": "yes"} for text in TEXTS], {"text": "prompt", "target": "completion"}),
        (
            [{"Prompt": chat[:1], "Completion": chat[1:2], "source": "a"} for chat in CHATS],
            {"text": "Prompt", "target": "Completion", "messages": None},
        ),
    ],
    ids=["messages", "prompts", "prompts of messages"],
)
def test_conversations_and_prompts_are_recognised(
    tmp_path: Path, rows: list[dict[str, Any]], expected: dict[str, Any]
) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    drafted = draft(tmp_path, file)
    (task,) = drafted.tasks
    assert task.spec.kind == "generation"
    assert {key: getattr(task.spec, key) for key in expected} == expected
    (tmp_path / "stream.yaml").write_text(to_yaml(drafted), encoding="utf-8")
    assert read_stream(tmp_path / "stream.yaml").tasks[0].model_dump() == task.spec.model_dump()


def test_options_name_the_columns(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", de=TEXTS, en=TEXTS[::-1], a=cycle([1, 2]), b=cycle(["x", "y", "z"]))
    with pytest.raises(
        DataError, match=r"2 columns could hold the labels; give --label COLUMN.*\n  'de': texts, 60"
    ) as e:
        draft_stream([file], folder=tmp_path, backbone=None)
    assert TEXTS[0] not in str(e.value)
    assert draft_one(tmp_path, file, label="b", text=["de", "en"]).spec.text == ("de", "en")
    translation = draft_one(tmp_path, file, label="en", text=["de"]).spec
    assert (translation.kind, translation.target) == ("generation", "en")
    with pytest.raises(DataError, match="no column 'topik'"):
        draft_stream([file], folder=tmp_path, label="topik", backbone=None)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": TEXTS, "note": TEXTS[::-1]}, "no column looks like labels; give --label COLUMN"),
        ({"a": cycle([1, 2, 3])}, "no column looks like texts; give --text COLUMN"),
        ({"text": TEXTS, "label": ["", *cycle(["x", "y"])[1:]]}, "row 1: '' is not a label"),
    ],
)
def test_files_that_say_nothing_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        draft_stream([write(tmp_path / "x.csv", **columns)], folder=tmp_path, backbone=None)


def test_the_problems_of_all_files_are_said_at_once(tmp_path: Path) -> None:
    bad = [write(tmp_path / f"{name}.csv", a=cycle([1, 2])) for name in ("x", "y")]
    with pytest.raises(DataError, match=r"(?s)x: no column looks.*y: no column looks"):
        draft_stream(bad, folder=tmp_path, backbone=None)
    (tmp_path / "torn.csv").write_text('text,label\n"never closed,a\n', encoding="utf-8")
    with pytest.raises(DataError, match="is never closed"):
        draft_stream([tmp_path / "torn.csv"], folder=tmp_path, backbone=None)


def test_separators_are_read_from_the_header(tmp_path: Path) -> None:
    file = tmp_path / "export.csv"
    pd.DataFrame({"text": TEXTS, "label": cycle(["a", "b"])}).to_csv(file, index=False, sep=";", encoding="utf-8-sig")
    assert draft_one(tmp_path, file).spec.source.sep == ";"


def test_files_of_splits_are_one_task(tmp_path: Path) -> None:
    columns = {"text": TEXTS, "label": cycle(["a", "b"])}
    for split in ("train", "dev", "test"):
        write(tmp_path / "mood" / f"{split}.csv", **columns)
    (tmp_path / "mood" / "README.md").write_text("about", encoding="utf-8")
    for split in ("train", "test"):
        write(tmp_path / f"place.{split}.jsonl", **columns)
    drafted = draft(tmp_path, tmp_path / "mood", tmp_path / "place.train.jsonl", tmp_path / "place.test.jsonl")
    mood, place = (task.spec for task in drafted.tasks)
    files = {"train": "mood/train.csv", "validation": "mood/dev.csv", "test": "mood/test.csv"}
    assert (mood.name, mood.source.data_files) == ("mood", files)
    assert place.source.data_files == {"train": "place.train.jsonl", "test": "place.test.jsonl"}
    write(tmp_path / "mood" / "test.csv", text=TEXTS)
    task = draft_one(tmp_path, tmp_path / "mood")
    assert task.spec.source.data_files == {key: files[key] for key in ("train", "validation")}
    assert task.notes == ("test is left out: its file has no column 'label'",)


def test_names_are_made_valid_and_distinct(tmp_path: Path) -> None:
    names = ["a/Größe & Preis.csv", "b/Größe & Preis.csv", "数据.csv", "1.csv", "x.csv"]
    files = [write(tmp_path / name, text=TEXTS) for name in names]
    groups = group_files([*files, files[-1]])
    assert [group.name for group in groups] == ["Groe-Preis", "Groe-Preis-2", "task", "1", "x"]
    assert "numbered since Groe-Preis is another task" in groups[1].reason
    assert groups[4].reason == "the name of its file"


def test_other_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.xlsx").touch()
    for path, message in (
        ("a.xlsx", "allowed are .csv"),
        ("empty", "has no data file"),
        ("none.csv", "neither a file"),
    ):
        with pytest.raises(InputError, match=message):
            group_files([tmp_path / path])


def test_relative_paths_start_from_the_folder_of_the_stream_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "data" / "t.csv", text=TEXTS, label=cycle(["a", "b"]))
    (tmp_path / "streams").mkdir()
    monkeypatch.chdir(tmp_path)
    drafted = draft_stream([Path("data/t.csv")], folder=Path("streams"), backbone=None)
    assert drafted.stream.tasks[0].source.data_files == {"train": "../data/t.csv"}
    assert draft_one(tmp_path / "streams", file).spec.source.data_files == {"train": "../data/t.csv"}


def test_the_helpdesk_is_drafted_as_the_documentation_writes_it(tmp_path: Path) -> None:
    drafted = draft(tmp_path, DOCS / "examples" / "helpdesk")
    written = read_stream(DOCS / "examples" / "helpdesk.yaml")
    assert drafted.stream.name == "helpdesk"
    for task in written.tasks:
        (same,) = (spec for spec in drafted.stream.tasks if spec.name == task.name)
        assert (same.text, same.label, same.kind, same.metric) == (task.text, task.label, task.kind, task.metric)


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


@given(text=NAMES, label=NAMES, file=NAMES, reason=st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=60, deadline=None)
def test_any_name_survives_the_document(
    text: str, label: str, file: str, reason: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = Source(path="csv", data_files={"train": file}, sep="\t")
    spec = TaskSpec(name="task", source=source, text=(text, label), label=label)
    stream = Stream(name="s", budget=Budget(max_length=64), tasks=(spec,))
    nothing = LabelledTexts((), ())
    reasons = dict.fromkeys(("name", "kind", "text", "label", "metric"), reason)
    task = TaskDraft(spec, TaskData(spec, (), nothing, nothing, nothing), reasons, (reason,))
    path = tmp_path_factory.mktemp("drafts") / "s.yaml"
    drafted = StreamDraft(stream, (task,), {"name": reason, "budget": reason})
    path.write_text(to_yaml(drafted), encoding="utf-8")
    assert read_stream(path) == stream.model_copy(update={"folder": path.parent})
