"""Loading a task's rows: splits, limits, file formats, and errors that name the file and line."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tasks import DataError, Stream, TaskData, TaskSpec, load_stream, load_task, load_validation

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def good(n: int = 20, start: int = 0) -> list[Row]:
    return [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(start, start + n)]


def lines(path: Path, rows: list[Row]) -> str:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path.name


def spec(files: dict[str, str], **keys: Any) -> TaskSpec:
    source = {"path": keys.pop("path", "json"), "data_files": files, "splits": keys.pop("splits", {})}
    return TaskSpec.model_validate({"name": "t", "source": source, "text": "text", "label": "label"} | keys)


def load(folder: Path, *, seed: int = 0, suffix: str = "jsonl", splits: Any = None, **rows: list[Row]) -> TaskData:
    files = {split: lines(folder / f"{split}.{suffix}", split_rows) for split, split_rows in rows.items()}
    return load_task(spec(files, splits=splits or {}), folder=folder, seed=seed)


def test_given_splits_are_unchanged(tmp_path: Path) -> None:
    test: list[Row] = [{"other": i, **row} for i, row in enumerate(good(4, 200))]  # columns may differ
    data = load(tmp_path, suffix="jsonl.gz", train=good(), validation=good(6, 100), test=test)
    assert data.train.texts == tuple(f"text {i}" for i in range(20))
    assert data.test.texts == tuple(f"text {i}" for i in range(200, 204))
    assert (len(data.validation), data.labels, data.notes) == (6, ("a", "b"), ())


def test_absent_splits_are_split_off_train_with_a_note(tmp_path: Path) -> None:
    data = load(tmp_path, train=good(100))
    assert [len(rows) for rows in (data.train, data.validation, data.test)] == [72, 8, 20]
    assert Counter(data.test.labels) == {"a": 10, "b": 10}
    assert len({*data.train.texts, *data.validation.texts, *data.test.texts}) == 100
    assert data.notes == (
        "test: not given; 20 of the 100 train rows were held out for it (seed 0)",
        "validation: not given; 8 of the 80 train rows were held out for it (seed 0)",
    )
    assert load(tmp_path, train=good(100)) == data
    assert load(tmp_path, seed=1, train=good(100)).test != data.test


def test_labels_without_a_held_out_row_are_noted(tmp_path: Path) -> None:
    many: list[Row] = [{"text": f"text {i}", "label": "abcdefgh"[i % 8]} for i in range(80)]
    data = load(tmp_path, train=many, validation=many[:1], test=many[:7])
    assert data.notes == (
        "validation: no row has label 'b', 'c', 'd', 'e', 'f', … (7 of 8 labels): a mean over labels, as in macro_f1, "
        "counts them only where they are answered",
        "test: no row has label 'h' (1 of 8 labels): a mean over labels, as in macro_f1, counts them only where they "
        "are answered",
    )


def test_train_rows_too_few_to_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'t', test: there is no such split, and the 2 rows of train cannot spare any"):
        load(tmp_path, train=good(2))


def test_limits_apply_after_splitting(tmp_path: Path) -> None:
    files = {"train": lines(tmp_path / "a.jsonl", good(100))}
    plain = load_task(spec(files), folder=tmp_path, seed=0)
    small = load_task(spec(files, rows={"train": 10, "test": 5, "validation": 50}), folder=tmp_path, seed=0)
    assert [len(rows) for rows in (small.train, small.validation, small.test)] == [10, 8, 5]
    assert set(small.test.texts) < set(plain.test.texts)
    assert small.notes[2:] == (
        "train: 10 of 72 rows were taken (seed 0)",
        "test: 5 of 20 rows were taken (seed 0)",
    )
    few = load_task(spec(files, shots=3), folder=tmp_path, seed=0)
    assert Counter(few.train.labels) == {"a": 3, "b": 3}
    assert few.test == plain.test
    with pytest.raises(DataError, match=r"'t', train: 1 rows cannot keep all 2 labels"):
        load_task(spec(files, rows={"train": 1}), folder=tmp_path, seed=0)


def test_pairs_and_renamed_splits(tmp_path: Path) -> None:
    rows = [{"q": f"q{i}", "p": f"p{i}", "label": i % 2 == 0} for i in range(10)]
    files = {"fit": lines(tmp_path / "a.jsonl", rows), "dev": lines(tmp_path / "b.jsonl", rows)}
    names = {"train": "fit", "validation": "dev", "test": "dev"}
    data = load_task(spec(files, splits=names, text=["q", "p"]), folder=tmp_path, seed=0)
    assert data.train.texts[1] == ("q1", "p1")
    assert data.labels == ("False", "True")
    assert data.validation == data.test


def test_csv_words_that_look_like_missing_values_are_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nNA,1\nnull,2\n,1\nnone,2\n", encoding="utf-8")
    data = load_task(
        spec({"train": "a.csv", "validation": "a.csv", "test": "a.csv"}, path="csv"), folder=tmp_path, seed=0
    )
    assert data.train.texts == ("NA", "null", "", "none")
    assert data.labels == ("1", "2")


def test_class_labels_are_matched_by_name(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]}, features=features)
    table.to_parquet(tmp_path / "a.parquet")
    files = dict.fromkeys(("train", "validation", "test"), "a.parquet")
    assert load_task(spec(files, path="parquet"), folder=tmp_path, seed=0).train.labels == ("no", "yes", "no")
    table.map(lambda row: {"label": -1}, features=features).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 1: -1 is not a label"):
        load_task(spec(files, path="parquet"), folder=tmp_path, seed=0)


def test_a_changed_file_with_the_same_mtime_is_read_again(tmp_path: Path) -> None:
    for word in ("old", "new"):
        rows = [{**row, "text": f"{word} {i}"} for i, row in enumerate(good())]
        lines(tmp_path / "train.jsonl", rows)
        os.utime(tmp_path / "train.jsonl", (1e9, 1e9))
        data = load_task(spec({"train": "train.jsonl"}), folder=tmp_path, seed=0)
        assert all(str(text).startswith(word) for text in data.train.texts)


def test_patterns_and_folders(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    lines(tmp_path / "d" / "train-1.jsonl", good(10))
    lines(tmp_path / "d" / "train-2.jsonl", good(10, 10))
    lines(tmp_path / "d" / "test.jsonl", good(4))
    data = load_task(spec({"train": "d/train-*.jsonl", "test": "d/test.jsonl"}), folder=tmp_path, seed=0)
    assert (len(data.train) + len(data.validation), len(data.test)) == (20, 4)
    keys = {"name": "t", "source": {"path": "json", "data_dir": "d"}, "text": "text", "label": "label"}
    assert load_task(TaskSpec.model_validate(keys), folder=tmp_path, seed=0).test == data.test


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"txt": "a", "label": "a"}, r"train: no column 'text'; did you mean 'txt'\? \(the columns are txt, label\)"),
        ({"text": None, "label": "a"}, r"train: column 'text', row 21: None is not a text"),
        ({"text": 3, "label": "a"}, r"train: column 'text', row 21: 3 is not a text"),
        ({"text": ["b"], "label": "a"}, r"train: column 'text', row 21: \['b'\] is not a text"),
        ({"text": "b", "label": None}, r"train: column 'label', row 21: None is not a label"),
        ({"text": "b", "label": " "}, r"train: column 'label', row 21: ' ' is not a label"),
        ({"text": "b", "label": 0.5}, r"train: column 'label', row 21: 0.5 is not a label"),
    ],
)
def test_an_invalid_row_is_reported_with_its_number(tmp_path: Path, bad: Row, message: str) -> None:
    rows = [bad] if "txt" in bad else [*good(), bad]
    with pytest.raises(DataError, match=f"task 't', {message}"):
        load(tmp_path, train=rows)


def test_labels_need_two_classes_all_in_train(tmp_path: Path) -> None:
    rows: list[Row] = [{"text": "x", "label": "z"}, {"text": "y", "label": "c"}]
    with pytest.raises(DataError, match="'t', validation: labels that train does not have: 'c', 'z'"):
        load(tmp_path, train=good(), validation=rows)
    with pytest.raises(DataError, match="'t', train: at least two labels are needed; got only 'z'"):
        load(tmp_path, train=rows[:1] * 20, validation=good(), test=good())


def test_empty_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task 't', test: cannot read 'json': .*not empty"):
        load(tmp_path, train=good(), test=[])
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\nnot json\n', encoding="utf-8")
    with pytest.raises(DataError, match="task 't', train: cannot read 'json': JSON parse error"):
        load_task(spec({"train": "bad.jsonl"}), folder=tmp_path, seed=0)
    (tmp_path / "head.csv").write_text("text,label\n", encoding="utf-8")
    with pytest.raises(DataError, match="task 't', train: "):
        load_task(spec({"train": "head.csv"}, path="csv"), folder=tmp_path, seed=0)


def test_a_named_split_must_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'t', validation: the source has no split 'dev'; it has train"):
        load(tmp_path, splits={"validation": "dev"}, train=good())
    with pytest.raises(DataError, match=r"'t', train: the source has no split 'train'; it has test"):
        load(tmp_path, test=good())


def test_an_unreachable_hub_is_an_error(tmp_path: Path) -> None:
    task = TaskSpec.model_validate({"name": "t", "source": {"path": "no/such"}, "text": "text", "label": "label"})
    with pytest.raises(DataError, match=r"cannot read 'no/such': .*Couldn't reach .*; a hub dataset needs the network"):
        load_task(task, folder=tmp_path, seed=0)


def test_all_tasks_of_a_stream_are_checked_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines(tmp_path / "ok.jsonl", good(40))
    numbers = spec({"train": "ok.jsonl"}, kind="regression").model_copy(update={"name": "c"})
    fine = spec({"train": "ok.jsonl"}).model_copy(update={"name": "a"})
    gone = spec({"train": "ok.jsonl", "test": "gone.jsonl"}).model_copy(update={"name": "b"})
    with pytest.raises(DataError) as caught:
        load_stream(Stream(name="s", tasks=(fine, gone, numbers), folder=tmp_path))
    missing, words = str(caught.value).splitlines()
    assert missing.startswith(f"task 'b', test: no file {tmp_path / 'gone.jsonl'}; ")
    assert words.startswith("task 'c', train: column 'label', row 1: 'a' is not a number; ")
    (data,) = load_stream(Stream(name="s", tasks=(fine,), folder=tmp_path))
    assert data.spec.budget is not None
    assert capfd.readouterr() == ("", "")


def test_csv_fields_are_verbatim_texts(tmp_path: Path) -> None:
    """Parsing numbers would merge labels and lose leading zeros."""
    lines = [f"{4 * i + j},{label}" for i in range(8) for j, label in enumerate(("007", "7", "TRUE", "NA"))]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    spec = TaskSpec.model_validate(
        {"name": "t", "source": {"path": "csv", "data_files": {"train": "t.csv"}}, "text": "text", "label": "label"}
    )
    data = load_task(spec, folder=tmp_path, seed=0)
    assert data.labels == ("007", "7", "NA", "TRUE")
    assert set(data.train.texts) <= {str(i) for i in range(32)}


@pytest.mark.parametrize("rows", [["hello, world,d", "so, so,e"], ["fine,d", "a,b,c"], ["alone"]])
def test_a_csv_row_of_wrong_length_is_refused_with_its_line(tmp_path: Path, rows: list[str]) -> None:
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    spec = TaskSpec.model_validate(
        {"name": "t", "source": {"path": "csv", "data_files": {"train": "t.csv"}}, "text": "text", "label": "label"}
    )
    with pytest.raises(DataError, match=r"t\.csv, line \d"):
        load_task(spec, folder=tmp_path, seed=0)


def test_a_file_whose_name_is_a_pattern_is_refused(tmp_path: Path) -> None:
    """It would be expanded, and other files read in its place."""
    (tmp_path / "a[1].csv").write_text("text,label\nx,y\n", encoding="utf-8")
    spec = TaskSpec.model_validate(
        {"name": "t", "source": {"path": "csv", "data_files": {"train": "a[1].csv"}}, "text": "text", "label": "label"}
    )
    with pytest.raises(DataError, match="pattern"):
        load_task(spec, folder=tmp_path, seed=0)


@pytest.mark.parametrize(
    "splits", [("train", "validation", "test"), ("train", "test"), ("train", "validation"), ("train",)]
)
@pytest.mark.parametrize("rows", [{}, {"validation": 4}])
def test_validation_rows_loaded_alone_are_the_tasks(
    tmp_path: Path, splits: tuple[str, ...], rows: dict[str, int]
) -> None:
    files = {split: lines(tmp_path / f"{split}.jsonl", good(60, 100 * i)) for i, split in enumerate(splits)}
    task = spec(files, rows=rows)
    expected = load_task(task, folder=tmp_path, seed=3).validation
    if "test" in files:
        (tmp_path / "test.jsonl").write_text("nobody reads this")
    if "validation" in files:
        (tmp_path / "train.jsonl").write_text("nor this")
    assert load_validation(task, folder=tmp_path, seed=3) == expected
