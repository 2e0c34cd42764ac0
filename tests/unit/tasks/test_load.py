"""Loading a task's rows: splits, limits, file formats, and errors that name the file and line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import tarfile
import zipfile
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tasks import DataError, Stream, TaskData, TaskSpec, load_stream, load_task, load_validation
from tasks.source import read_split
from tasks.source_location import SourceLocation
from tasks.source_spec import Source

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


def test_labels_without_a_held_out_row_are_warned_of(tmp_path: Path) -> None:
    many: list[Row] = [{"text": f"text {i}", "label": "abcdefgh"[i % 8]} for i in range(136)]
    data = load(tmp_path, train=many[56:], validation=many[:50:8] * 8, test=many[:7])
    assert data.warnings[-2:] == (
        "validation: no row has label 'b', 'c', 'd', 'e', 'f', … (7 of 8 labels): a mean over labels, as in macro_f1, "
        "counts them only where they are answered",
        "test: no row has label 'h' (1 of 8 labels): a mean over labels, as in macro_f1, counts them only where they "
        "are answered",
    )


def test_train_rows_too_few_to_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'t', test: there is no such split, and the 2 rows of train cannot spare any"):
        load(tmp_path, train=good(2))


def test_repeated_texts_are_held_out_with_all_their_copies(tmp_path: Path) -> None:
    rows: list[Row] = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(20) for _ in range(5)]
    data = load(tmp_path, train=rows)
    parts = [set(part.texts) for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [14, 2, 4]
    assert len(set.union(*parts)) == 20
    with pytest.raises(DataError, match=r"without losing a label \(they hold 2 different texts, and equal texts stay"):
        load(tmp_path, train=good(2) * 10)


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


def test_a_hub_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"it waits for {seconds} s"))
    task = TaskSpec.model_validate({"name": "t", "source": {"path": "no/such"}, "text": "text", "label": "label"})
    with pytest.raises(DataError, match=r"cannot read 'no/such': .*; a hub dataset needs the network"):
        load_task(task, folder=tmp_path, seed=0)


@pytest.mark.parametrize(("path", "near"), [("js on", "json"), ("parquet!", "parquet"), ("a--b", "arrow, csv")])
def test_a_path_that_is_no_hub_id_is_refused_at_once(tmp_path: Path, path: str, near: str) -> None:
    task = TaskSpec.model_validate({"name": "t", "source": {"path": path}, "text": "text", "label": "label"})
    with pytest.raises(DataError, match=f"path '{path}' is no builder .*; correct it, or use one of: {near}"):
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


def csv_task(files: str | list[str] | None = None, **source: Any) -> TaskSpec:
    named = {"data_files": dict.fromkeys(("train", "validation", "test"), files)} if files else {}
    keys = {"name": "t", "source": {"path": "csv"} | named | source, "text": "text", "label": "label"}
    return TaskSpec.model_validate(keys)


CSV = "text,label\none,a\ntwo,b\n"


@pytest.mark.parametrize(
    "content",
    [
        ",text,label\n0,one,a\n1,two,b\n",
        "text,label,\none,a,\ntwo,b,\n",
        "x,text,x,label\n1,one,2,a\n1,two,2,b\n",
        "\ufefftext,label\r\none,a\r\n\r\ntwo,b",
        'text,"label"\n"one",a\n"two",b\n',
        "\n\ntext,label\none,a\n  \ntwo,b\n\n",
    ],
)
def test_columns_that_no_task_names_are_harmless(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content, encoding="utf-8", newline="")
    train = load_task(csv_task("a.csv"), folder=tmp_path, seed=0).train
    assert (train.texts, train.labels) == (("one", "two"), ("a", "b"))


def test_csv_by_url_in_archives_and_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)  # `datasets` takes every URL for the network
    (tmp_path / "a.csv").write_text(CSV, encoding="utf-8")
    (tmp_path / "b.csv.GZ").write_bytes(gzip.compress(CSV.encode()))
    (tmp_path / "c.csv.bz2").write_bytes(bz2.compress(CSV.encode()))
    (tmp_path / "d.csv.xz").write_bytes(lzma.compress(CSV.encode()))
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
        archive.writestr("a.csv", CSV)
    plain = load_task(csv_task("a.csv"), folder=tmp_path, seed=0)
    for path in ("b.csv.GZ", "c.csv.bz2", "d.csv.xz", "e.zip", "zip://a.csv::e.zip", f"file://{tmp_path}/a.csv"):
        assert load_task(csv_task(path), folder=tmp_path, seed=0).train == plain.train, path


def test_csv_from_a_web_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.DOWNLOADED_DATASETS_PATH", str(tmp_path / "downloads"))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        task = csv_task(f"http://127.0.0.1:{server.server_port}/a.csv.gz")
        assert load_task(task, folder=tmp_path, seed=0).train.texts == ("one", "two")
        server.shutdown()


def test_a_changed_archive_is_read_again(tmp_path: Path) -> None:
    for word in ("old", "new"):
        (tmp_path / "a.csv.gz").write_bytes(gzip.compress(CSV.replace("one", word).encode()))
        os.utime(tmp_path / "a.csv.gz", (1e9, 1e9))
        assert load_task(csv_task("a.csv.gz"), folder=tmp_path, seed=0).train.texts == (word, "two")


@pytest.mark.parametrize("name", ["rows.csv", "train.csv"])
def test_other_files_of_a_folder_are_harmless(tmp_path: Path, name: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40)))
    for other in ("README.md", "README", "notes.txt", ".gitignore", ".DS_Store"):
        (tmp_path / "d" / other).write_bytes(b"\x00\xff, not a table\n")
    data = load_task(csv_task(data_dir="d"), folder=tmp_path, seed=0)
    assert len(data.train) + len(data.validation) + len(data.test) == 40


@pytest.mark.parametrize("form", ["{}", "file://{}", "local://{}", "zip://a.csv::{}", "zip://a.csv::file://{}"])
def test_devices_and_pipes_are_refused(tmp_path: Path, form: str) -> None:
    """A pipe would be waited for, and a device never ends."""
    os.mkfifo(tmp_path / "pipe")
    for place in ("/dev/zero", str(tmp_path / "pipe")):
        with pytest.raises(DataError, match=f"{place} is a device or a pipe; give files"):
            load_task(csv_task(form.format(place)), folder=tmp_path, seed=0)


def test_two_columns_of_the_name_that_a_task_reads_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,text,label\none,1,a\ntwo,2,b\n")
    with pytest.raises(DataError, match=r"'t', train: .*a\.csv has more than one column 'text'"):
        load_task(csv_task("a.csv"), folder=tmp_path, seed=0)


def test_files_of_a_split_may_differ_in_columns_that_no_task_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text,label\n1,one,a\n")
    (tmp_path / "b.csv").write_text("label,text\nb,two\n")
    train = load_task(csv_task(["a.csv", "b.csv"]), folder=tmp_path, seed=0).train
    assert (train.texts, train.labels) == (("one", "two"), ("a", "b"))
    (tmp_path / "b.csv").write_text("label,txt\nb,two\n")
    with pytest.raises(DataError, match=r"b\.csv has no column 'text'"):
        load_task(csv_task(["a.csv", "b.csv"]), folder=tmp_path, seed=0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['a,"one', "b,two", 'a,"three', "b,four"], r"a\.csv, line 2: .*closes on line 4"),
        (["a,one", 'b,"two'], r"a\.csv, line 3: .*is never closed"),
        (["b,one", r'a,"he said \"no\" twice"'], r"a\.csv, line 3: .*escapechar"),
    ],
)
def test_open_and_escaped_quotes_are_refused_with_file_and_line(tmp_path: Path, rows: list[str], message: str) -> None:
    (tmp_path / "a.csv").write_text("\n".join(["label,text", *rows]), encoding="utf-8")
    with pytest.raises(DataError, match=f"'t', train: .*{message}"):
        load_task(csv_task("a.csv"), folder=tmp_path, seed=0)


@pytest.mark.parametrize(
    ("content", "options", "texts"),
    [
        ("text\tlabel\none, 1\ta\ntwo\tb\n", {"sep": "\t"}, ("one, 1", "two")),
        ("text;label\none;a\ntwo;b\n", {"delimiter": ";"}, ("one", "two")),
        ('text,label\n"say \\"one\\" twice",a\ntwo,b\n', {"escapechar": "\\"}, ('say "one" twice', "two")),
        ('text,label\n"one,a\ntwo,b\n', {"quoting": 3}, ('"one', "two")),
        ("text,label\n'one, 1',a\ntwo,b\n", {"quotechar": "'"}, ("one, 1", "two")),
        ("by us\n\ntext,label\none,a\ntwo,b\n", {"skiprows": 2}, ("one", "two")),
        ("one,a\ntwo,b\n", {"names": ["text", "label"]}, ("one", "two")),
        ("one,a\ntwo,b\n", {"column_names": ["text", "label"]}, ("one", "two")),
        ("x,y\ntext,label\none,a\ntwo,b\n", {"header": 1}, ("one", "two")),
        ("text,label\nön,a\ntwo,b\n", {"encoding": "latin-1"}, ("ön", "two")),
    ],
)
def test_options_of_the_csv_reader(tmp_path: Path, content: str, options: Row, texts: tuple[str, ...]) -> None:
    (tmp_path / "a.csv").write_text(content, encoding=options.get("encoding", "utf-8"))
    train = load_task(csv_task("a.csv", **options), folder=tmp_path, seed=0).train
    assert (train.texts, train.labels) == (texts, ("a", "b"))


@pytest.mark.parametrize(("separator", "written"), [("\t", r"\\t"), (";", ";")])
@pytest.mark.parametrize("text", ["one", "one, 1"])
def test_another_separator_is_hinted_at(tmp_path: Path, separator: str, written: str, text: str) -> None:
    (tmp_path / "a.csv").write_text(f"text{separator}label\n{text}{separator}a\n")
    with pytest.raises(DataError, match=f'add sep: "{written}" to the source'):
        load_task(csv_task("a.csv"), folder=tmp_path, seed=0)


def test_an_option_of_the_json_reader(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": good(4)}))
    files = dict.fromkeys(("train", "validation", "test"), "a.json")
    task = csv_task(path="json", data_files=files, field="data")
    assert load_task(task, folder=tmp_path, seed=0).train.labels == ("a", "b", "a", "b")


def test_a_folder_is_read_as_its_files_are(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.tsv").write_text("text\tlabel\nNA\t007\none\t7\n")
    (tmp_path / "d" / "test.tsv").write_text("text\tlabel\ntwo\t7\n")
    keys = {"name": "t", "source": {"path": "d", "splits": {"validation": "test"}}, "text": "text", "label": "label"}
    data = load_task(TaskSpec.model_validate(keys), folder=tmp_path, seed=0)
    assert (data.train.texts, data.train.labels, data.test.texts) == (("NA", "one"), ("007", "7"), ("two",))
    (tmp_path / "d" / "train.tsv").write_text('text\tlabel\n"one\ta\ntwo\tb\n')
    with pytest.raises(DataError, match=r"train\.tsv, line 2: .*is never closed"):
        load_task(TaskSpec.model_validate(keys), folder=tmp_path, seed=0)
    (tmp_path / "d" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  quoting: 3\n  sep: ';'\n  data_files:\n"
        "  - {split: train, path: train.csv}\n  - {split: test, path: train.csv}\n---\n"
    )
    (tmp_path / "d" / "train.csv").write_text('text;label\n"one;a\n2;b\n')
    data = load_task(TaskSpec.model_validate(keys), folder=tmp_path, seed=0)
    assert (data.train.texts, data.train.labels) == (('"one', "2"), ("a", "b"))


def test_class_labels_in_another_order_in_a_second_file_are_refused(tmp_path: Path) -> None:
    import datasets

    for name, labels in (("a", ["no", "yes"]), ("b", ["yes", "no"]), ("c", ["no", "yes"])):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=labels)})
        rows = {"text": [f"{name}{i}" for i in range(4)], "label": [0, 1, 0, 1]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{name}.parquet")
    same = csv_task(["a.parquet", "c.parquet"], path="parquet")
    assert load_task(same, folder=tmp_path, seed=0).train.labels == ("no", "yes") * 4
    turned = csv_task(["a.parquet", "b.parquet"], path="parquet")
    with pytest.raises(DataError, match=r"\[no, yes\], in this order, in .*a\.parquet but .*\[yes, no\].*b\.parquet"):
        load_task(turned, folder=tmp_path, seed=0)
    (tmp_path / "d").mkdir()
    for name in ("a", "b"):
        shutil.copy(tmp_path / f"{name}.parquet", tmp_path / "d" / f"train-{name}.parquet")
    with pytest.raises(DataError, match="in this order"):
        load_task(csv_task(path="d"), folder=tmp_path, seed=0)
    numbers = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]})
    numbers.to_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="but int64 in"):
        load_task(turned, folder=tmp_path, seed=0)


@pytest.mark.parametrize("key", ["text", "label"])
@pytest.mark.parametrize("listed", [False, True])
def test_quoted_json_dates_are_texts(tmp_path: Path, key: str, listed: bool) -> None:
    dates = ["2024-01-01", "2024-01-02T10:00:00", "2024-01-01 10:00:00Z", "2024-01-02"]
    rows = [{"text": f"t{i}", "label": "ab"[i % 2]} | {key: date} for i, date in enumerate(dates)]
    (tmp_path / "a.json").write_text(json.dumps(rows) if listed else "\n".join(map(json.dumps, rows)))
    files = dict.fromkeys(("train", "validation", "test"), "a.json")
    train = load_task(csv_task(path="json", data_files=files), folder=tmp_path, seed=0).train
    assert list(train.texts if key == "text" else train.labels) == dates
    half = csv_task(path="json", data_files=files, splits={"train": "train[1:3]"})
    if key == "text":
        assert list(load_task(half, folder=tmp_path, seed=0).train.texts) == dates[1:3]


def test_json_dates_after_other_texts_are_as_written(tmp_path: Path) -> None:
    for name, text in (("a", "plain"), ("b", "2024-01-01")):
        lines(tmp_path / f"{name}.jsonl", [{"text": text, "label": "xy"[i % 2]} for i in range(4)])
    task = csv_task(["a.jsonl", "b.jsonl"], path="json")
    assert load_task(task, folder=tmp_path, seed=0).train.texts == ("plain",) * 4 + ("2024-01-01",) * 4
    task = csv_task(["b.jsonl", "a.jsonl"], path="json")
    assert load_task(task, folder=tmp_path, seed=0).train.texts == ("2024-01-01",) * 4 + ("plain",) * 4


def test_parquet_columns_that_no_task_names_are_harmless(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    def write(name: str, **columns: list[Any]) -> None:
        names = [column.rstrip("_") for column in columns]
        table = pyarrow.Table.from_arrays([pyarrow.array(values) for values in columns.values()], names=names)
        pyarrow.parquet.write_table(table, tmp_path / name)

    write("a.parquet", text=["one"], label=["a"])
    write("b.parquet", x=[1], x_=["z"], label=["b"], text=["two"])
    write("c.parquet", text=["three"], text_=["3"], label=["b"])
    train = load_task(csv_task(["a.parquet", "b.parquet"], path="parquet"), folder=tmp_path, seed=0).train
    assert (train.texts, train.labels) == (("one", "two"), ("a", "b"))
    train = load_task(csv_task(["b.parquet", "a.parquet"], path="parquet"), folder=tmp_path, seed=0).train
    assert (train.texts, train.labels) == (("two", "one"), ("b", "a"))
    with pytest.raises(DataError, match=r"c\.parquet has more than one column 'text'"):
        load_task(csv_task(["a.parquet", "c.parquet"], path="parquet"), folder=tmp_path, seed=0)


def test_a_separator_at_the_end_of_rows_alone_is_refused(tmp_path: Path) -> None:
    """The reader would take the first column for an index, and shift the others."""
    (tmp_path / "a.csv").write_text("text,label\none,a,\ntwo,b,\n")
    with pytest.raises(DataError, match=r"line 2: 3 fields .*drop the separator at the end"):
        load_task(csv_task("a.csv"), folder=tmp_path, seed=0)


def test_a_folder_whose_name_is_a_pattern_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d[1]").mkdir()
    (tmp_path / "d[1]" / "train.csv").write_text(CSV)
    with pytest.raises(DataError, match=r"d\[1\] would be read as a pattern"):
        load_task(csv_task(data_dir="d[1]"), folder=tmp_path, seed=0)


@pytest.mark.parametrize("split", ["train", "train[:50%]"])
def test_a_folder_written_by_save_to_disk_is_a_source(tmp_path: Path, split: str) -> None:
    import datasets

    rows = datasets.Dataset.from_list(good(40))
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=rows, test=rows.select(range(6))).save_to_disk(tmp_path / "two")
    task = csv_task(path="two", splits={"train": split})
    data = load_task(task, folder=tmp_path, seed=0)
    assert data.test.texts == tuple(f"text {i}" for i in range(6))
    assert len(data.train) + len(data.validation) == (40 if split == "train" else 20)
    alone = load_task(csv_task(path="one"), folder=tmp_path, seed=0)
    assert len(alone.train) + len(alone.validation) + len(alone.test) == 40


def test_relative_files_of_every_builder_start_from_the_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for row in range(4):
            content = json.dumps(good()[row]).encode()
            info = tarfile.TarInfo(f"{row}.json")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    source = SourceLocation("t", Source(path="webdataset", data_files={"train": "a.tar"}), tmp_path)
    assert [row["text"] for row in read_split(source, "train").column("json").values] == [f"text {i}" for i in range(4)]
