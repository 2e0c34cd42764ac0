"""Tasks whose rows are given in Python: every type of data is read as files are, and errors say what is allowed."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from tasks import TaskData, TaskSpec, load_task, read_task, task_from_rows, text_parts
from tasks.errors import DataError, InputError
from tests.helpers.tiny_tasks import rows_of

ROWS = [
    {"text": text, "label": label, "id": 7} for text, label in zip(*vars(rows_of("mood", 30)).values(), strict=True)
]
FRAME = pd.DataFrame(ROWS)
COLUMNS = {"text": "text", "label": "label"}


def as_file(suffix: str, write: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def written(folder: Path) -> Path:
        write(folder / f"rows{suffix}")
        return Path(f"rows{suffix}")

    return written


DATA: dict[str, Callable[[Path], Any]] = {
    "list": lambda _: ROWS,
    "frame": lambda _: FRAME,
    "categories": lambda _: FRAME.astype({"label": "category"}).set_index("id"),
    "numpy": lambda _: [{key: np.asarray([value])[0] for key, value in row.items()} for row in ROWS],
    "dataset": lambda _: datasets.Dataset.from_list(ROWS).class_encode_column("label"),
    "dict": lambda _: datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}),
    "csv": as_file(".csv", lambda file: FRAME.to_csv(file, index=False)),
    "TSV": as_file(".TSV", lambda file: FRAME.to_csv(file, index=False, sep="\t")),
    "json": as_file(".json", lambda file: file.write_text(json.dumps(ROWS))),
    "jsonl": as_file(".jsonl", lambda file: FRAME.to_json(file, orient="records", lines=True)),
    "parquet": as_file(".parquet", lambda file: FRAME.to_parquet(file)),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def load(data: Any, folder: Path = Path(), **settings: Any) -> TaskData:
    return load_task(task_from_rows("mood", data, **(COLUMNS | settings)), folder=folder, seed=3)


@pytest.mark.parametrize("kind", DATA)
def test_every_type_of_data_has_the_rows_of_a_file(kind: str, tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "expected.csv", index=False)
    (tmp_path / "mood.yaml").write_text(
        "{name: mood, source: {path: csv, data_files: {train: expected.csv}}, text: text, label: label, seed: 3}"
    )
    task = read_task(tmp_path / "mood.yaml")
    expected, data = load_task(task.tasks[0], folder=tmp_path, seed=3), load(DATA[kind](tmp_path), tmp_path)
    for split in ("train", "validation", "test"):
        assert getattr(data, split).fingerprint == getattr(expected, split).fingerprint
    assert (data.labels, data.notes, data.warnings) == (expected.labels, expected.notes, expected.warnings)
    assert len(data.notes) == 2
    assert data.spec.model_copy(update={"source": expected.spec.source}) == expected.spec


def test_splits_and_settings_are_those_of_a_file() -> None:
    data = load(FRAME, validation=ROWS[:4], test=FRAME[4:10], rows={"test": 3}, shots=2, budget={"epochs": 1})
    assert (len(data.train), len(data.validation), len(data.test)) == (4, 4, 3)
    assert data.validation.texts == tuple(row["text"] for row in ROWS[:4])
    assert data.spec.budget is not None
    assert data.spec.budget.model_fields_set == {"epochs"}


def test_other_kinds_read_nested_values() -> None:
    """Frames from Parquet hold arrays in place of lists."""
    answers = {"text": np.array(["tower"], dtype=object), "answer_start": np.array([4])}
    frame = pd.DataFrame([{"q": f"what is {i}?", "c": "the tower", "a": answers} for i in range(12)])
    span = load_task(task_from_rows("qa", frame, kind="span", text=("q", "c"), answers="a"), folder=Path(), seed=0)
    assert text_parts(span.train.texts[0])[1] == "the tower"
    assert span.train.targets[0] == (("tower", 4),)
    frame = pd.DataFrame({"text": [f"text {i}" for i in range(12)], "score": np.arange(12) / 2})
    numbers = load_task(
        task_from_rows("n", frame, kind="regression", text="text", label="score"), folder=Path(), seed=0
    )
    assert sorted(numbers.train.targets + numbers.validation.targets + numbers.test.targets) == list(frame["score"])


def test_a_spec_as_json_has_no_rows() -> None:
    spec = task_from_rows("mood", FRAME, **COLUMNS)
    stored = spec.model_dump(mode="json")
    assert stored["source"] == TaskSpec.model_validate(stored).source.model_dump(mode="json")
    assert str(ROWS[0]["text"]) not in json.dumps(stored) + repr(spec)
    assert pickle.loads(pickle.dumps(spec)).source.tables["train"].rows.equals(FRAME), "for the workers of a cluster"
    with pytest.raises(
        DataError, match=r"'mood': its rows were given from the memory .* learner\.learn\('mood', frame"
    ):
        load_task(TaskSpec.model_validate(stored), folder=Path(), seed=0)


def without(column: str, value: Any) -> pd.DataFrame:
    """The frame with a value in the column's second row."""
    return FRAME.assign(**{column: [FRAME[column][0], value, *FRAME[column][2:]]})


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (FRAME, {"text": "txt"}, r"train \(DataFrame\): no column 'txt'; did you mean 'text'\? .*text, label, id"),
        (FRAME[:0], {}, r"train \(DataFrame\): the split is empty; give it at least one row"),
        ([], {}, r"train \(list\): the split is empty"),
        (FRAME, {"validation": FRAME[:0]}, r"validation \(DataFrame\): the split is empty"),
        (without("text", float("nan")), {}, r"\(DataFrame\): column 'text', row 2: nan is not a text; write it as a"),
        (without("text", 5), {}, r"\(DataFrame\): column 'text', row 2: 5 is not a text"),
        (without("text", pd.NA), {}, r"column 'text', row 2: (<NA>|nan) is not a text"),
        (without("label", None), {}, r"column 'label', row 2: (None|nan) is not a label; allowed are texts, whole num"),
        (without("label", 0.5), {}, r"column 'label', row 2: 0\.5 is not a label"),
        ([{"text": "a"}, {"label": "b"}], {}, r"\(list\): column 'text', row 2: None is not a text"),
        ([{"text": "a"}, "b"], {}, r"\(list\), row 2: 'b' is no mapping of columns to values; give every row as one"),
        (pd.concat([FRAME, FRAME[["text"]]], axis=1), {}, "more than one column 'text'; rename or drop one"),
        (FRAME, {"validation": [{"text": "a", "label": "odd"}]}, r"validation \(list\): labels that train does not"),
        (iter(ROWS), {}, r"train: <list_iterator .*> is of type list_iterator; give a pandas DataFrame, a datasets"),
        (None, {}, "train: None is of type NoneType; give a pandas DataFrame"),
        ("rows.pkl", {}, r"'rows\.pkl' has none of the suffixes \.csv, \.tsv, .*give a TaskSpec with source="),
        ("none.csv", {}, r"train: no file .*none\.csv"),
        ("a.csv", {"test": FRAME}, "a file is given for train, and a table in memory for test; give files for all"),
        ("a.csv", {"test": "b.json"}, r"a\.csv, b\.json are of different formats"),
        ({"train": FRAME, "dev": FRAME}, {}, "'dev' of the dict would never be read; allowed are train, validation"),
        ({"train": FRAME, "test": FRAME}, {"test": FRAME}, "test is given twice, also in the dict; give one"),
        ({"test": FRAME}, {}, "there is no train split, only test"),
        (FRAME, {"lable": "label"}, r"unknown keyword 'lable'; did you mean 'label'\? allowed: validation, test, kind"),
        (FRAME, {"epochs": 1}, r"unknown keyword 'epochs'; it belongs in 'budget'; allowed: validation, test, kind"),
        (FRAME, {"source": "x"}, "unknown keyword 'source'"),
        (FRAME, {"label": None}, "task 'mood': label: a classification task must name the column of its labels"),
        (FRAME, {"budget": {"epocs": 1}}, r"task 'mood': budget\.epocs: unknown key; did you mean 'epochs'\?"),
        (
            FRAME,
            {"shots": 0, "metric": "bleu"},
            r"(?s)metric: .*accuracy.*; got 'bleu'\n.*shots: input should be great",
        ),
        (FRAME, {"strict": True}, "'mood' is strict, and its rows are suspicious"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_data_is_refused_with_the_reason(data: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(data, **settings)


def test_text_is_required() -> None:
    with pytest.raises(InputError, match="task 'mood': text: missing; this key is required"):
        task_from_rows("mood", FRAME, label="label")
