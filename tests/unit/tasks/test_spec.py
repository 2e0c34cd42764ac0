"""Stream and task files: parsing, defaults, and error messages with file and line."""

from __future__ import annotations

import dataclasses
import os
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks import Budget, Stream, StreamError, TaskSpec, read_stream, read_task
from tasks.source_spec import READER_OPTIONS, Source
from tasks.yaml_document import parse_yaml
from tests.helpers.paths import SHARED

STREAMS = SHARED / "streams"

TASK = """\
  - name: {name}
    source: {{path: json, data_files: {{train: a.jsonl}}}}
    text: text
    label: label
"""
STREAM = "name: s\ntasks:\n" + TASK.format(name="one") + TASK.format(name="two")


def written(folder: Path, text: str | bytes, name: str = "s.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def complaint(folder: Path, text: str | bytes) -> str:
    with pytest.raises(StreamError) as caught:
        read_stream(written(folder, text))
    return str(caught.value)


def test_a_task_inherits_its_streams_defaults(tmp_path: Path) -> None:
    head = "method: {name: lora, rank: 8}\nwarm_start: nearest\nbudget: {epochs: 7, learning_rate: 1e-3}\n"
    task_keys = "    method: bitfit\n    warm_start: scratch\n    budget: {epochs: 0}\n"
    first, two = read_stream(written(tmp_path, head + STREAM + task_keys)).resolved()
    assert first.method is not None
    assert first.method.model_dump() == {"name": "lora", "rank": 8}
    assert (first.warm_start, first.budget) == ("nearest", Budget(epochs=7, learning_rate=0.001))
    assert two.method is not None
    assert two.method.name == "bitfit"
    assert (two.warm_start, two.budget) == ("scratch", Budget(epochs=0, learning_rate=0.001))


def test_a_stream_survives_dumping_and_reading(tmp_path: Path) -> None:
    text = "budget: {batch_size: 4}\n" + STREAM + "    budget: {epochs: 1}\n"
    stream = read_stream(written(tmp_path, text))
    again = Stream.model_validate_json(stream.model_dump_json())
    assert again.resolved() == stream.resolved()
    assert again.folder != stream.folder == tmp_path
    resolved = stream.resolved()[1]
    assert TaskSpec.model_validate_json(resolved.model_dump_json()) == resolved


def test_a_task_file_is_a_stream_of_one_task(tmp_path: Path) -> None:
    text = (
        "name: one\nsource: {path: json, data_files: {train: a.jsonl}}\ntext: [a, b]\nlabel: y\n"
        "budget: {epochs: 1}\nbackbone: tiny\nseed: 3\n"
    )
    stream = read_task(written(tmp_path, text))
    assert (stream.name, stream.backbone, stream.seed, stream.folder) == ("one", "tiny", 3, tmp_path)
    assert [task.text for task in stream.tasks] == [("a", "b")]
    assert stream.resolved()[0].budget == Budget(epochs=1)


def test_a_task_files_errors_name_its_valid_keys(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match=r"t.yaml:2: sed: unknown key; did you mean 'seed'\?") as caught:
        read_task(written(tmp_path, "name: one\nsed: 1\n", "t.yaml"))
    assert "source: missing" in str(caught.value)


def test_every_problem_is_reported_with_its_line(tmp_path: Path) -> None:
    text = (
        "name: s\nwarm_start: warm\ntasks:\n"
        "  - name: one\n    sorce: 3\n    text: text\n    metric: bleu\n    label: y\n"
    )
    path = tmp_path / "s.yaml"
    lines = complaint(tmp_path, text).splitlines()
    assert lines[0] == (f"{path}:2: warm_start: input should be 'scratch', 'nearest', 'merge' or 'auto'; got 'warm'")
    assert lines[1] == f"{path}:4: tasks[0].source: missing; this key is required"
    assert lines[2].startswith(f"{path}:7: tasks[0].metric: ")
    assert lines[2].endswith("accuracy, macro_f1, mcc, f1, auroc; got 'bleu'")
    assert lines[3].startswith(f"{path}:5: tasks[0].sorce: unknown key; did you mean 'source'? allowed: name, kind, ")
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "s.yaml: the file is empty"),
        ("- 1\n", "s.yaml:1: should be a mapping of keys to values; got a list"),
        ("a: [1\nb: 2\n", "s.yaml:2:2: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "s.yaml:2:1: not valid YAML"),
        ("name: s\nbudget:\n  epochs: 1\n  epochs: 2\n", "s.yaml:4: key 'epochs' is given twice, first on line 3"),
        (b"name: s\nbackbone: \xff\n", "s.yaml:2: byte 0xff is not UTF-8"),
        ("name: s\nbackbone: a\x01\n", "s.yaml:2:12: not valid YAML"),
        ("a: 2001-99-99\n", "s.yaml: not valid YAML"),
        ("name: s\ntasks: []\n", "s.yaml:2: tasks: "),
        (STREAM + TASK.format(name="one"), "used twice: one"),
        (STREAM + "folder: /\n", "folder: unknown key"),
        (STREAM.replace("label: label", "metric: accuracy"), "must name the column of its labels"),
        (STREAM.replace("name: one", "name: a/b"), "s.yaml:3: tasks[0].name: "),
        (STREAM.replace("text: text", "text: [a, b, c]"), "tasks[0].text: should be the name of one column"),
        (
            STREAM.replace("label: label", "label: yes"),
            'label: input should be a valid string; got True; quote it: "yes"',
        ),
        (
            STREAM.replace("text: text", "text: 2024-01-01"),
            'pair of texts; got datetime.date(2024, 1, 1); quote it: "2024-',
        ),
        (STREAM.replace("path: json", "path: pandas"), "a pickle can run any code; save the table with to_parquet()"),
        (STREAM.replace("path: json", 'path: json, sep: ";"'), "json has no option sep; allowed are encoding, field"),
        (STREAM.replace("path: json", 'path: csv, sep: "||"'), "source.sep: string should have at most 1 character"),
        (
            STREAM.replace("path: json", "path: csv, encoding: klingon"),
            "source.encoding: should be an encoding of Python",
        ),
        (
            STREAM.replace("path: json", "path: csv, delimeter: x"),
            "unknown key; did you mean 'delimiter'? allowed: ",
        ),
        (STREAM.replace("train: a", "trian: a"), "'trian' would never be read"),
        (STREAM.replace("data_files: {train: a.jsonl}", "revision: x"), "json reads your own files"),
        (STREAM + "    rows: {dev: 3}\n", "rows.dev: input should be 'train', 'validation' or 'test'; got 'dev'"),
        (STREAM + "    rows: {train: 0}\n", "tasks[1].rows.train: input should be greater than or equal to 1; got 0"),
        (STREAM + "    budget: {epoch: 1}\n", "unknown key; did you mean 'epochs'? allowed: epochs, batch_size"),
        (
            STREAM + "    max_new_tokens: 9\n",
            "max_new_tokens: unknown key; it belongs in 'budget'; allowed: name, kind",
        ),
        (STREAM + "budget: {learning_rate: .nan}\n", "budget.learning_rate: "),
        (STREAM + "budget: {epochs: true}\n", "budget.epochs: should be a number, not true or false; got True"),
        (STREAM + "budget: {learning_rate: yes}\n", "budget.learning_rate: should be a number, not true or false"),
        (STREAM + "    rows: {train: true}\n", "tasks[1].rows: should be a number, not true or false; got"),
        (STREAM + "    shots: true\n", "tasks[1].shots: should be a number, not true or false; got True"),
        (
            STREAM + "    template: {txt: '{{ mask }}'}\n",
            "unknown key; did you mean 'text'? allowed: text, words",
        ),
        ("name: s\ntasks: {x: 1}\n", "s.yaml:2: tasks: input should be a list; got {'x': 1}"),
        ("name: s\ntasks: &a [*a]\n", "s.yaml:2:8: not valid YAML: this part holds itself"),
        (
            "seed: 0x" + "f" * 5000,
            "s.yaml:1: seed: input should be less than 4294967296; got a number too long to show",
        ),
        ("[" * 5000, "s.yaml: not valid YAML"),
    ],
)
def test_an_invalid_file_is_refused_with_line_and_reason(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert message in complaint(tmp_path, text)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="no such file"):
        read_stream(tmp_path / "none.yaml")
    with pytest.raises(StreamError, match="a folder, not a file"):
        read_stream(tmp_path)


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    base = "&base\n    source: {path: json, data_files: {train: a.jsonl}}\n    text: text\n    label: label\n"
    text = f"name: s\ntasks:\n  - {base}    name: one\n  - <<: *base\n    name: two\n    label: y\n"
    assert [task.label for task in read_stream(written(tmp_path, text)).tasks] == ["label", "y"]


def test_options_of_a_source_are_those_of_its_builder() -> None:
    for path, options in READER_OPTIONS.items():
        config = import_module(f"datasets.packaged_modules.{path}.{path}")
        allowed = {field.name for field in dataclasses.fields(getattr(config, f"{path.title()}Config"))}
        assert set(options) <= allowed


def test_options_that_are_not_given_are_not_stored() -> None:
    plain = {"path": "csv", "data_files": {"train": "a.csv"}}
    assert "sep" not in Source.model_validate(plain).model_dump()
    source = Source.model_validate(plain | {"sep": ";", "doublequote": False})
    assert source.options == {"sep": ";", "doublequote": False}
    assert Source.model_validate(source.model_dump()) == source


SNIPPETS = st.sampled_from([*STREAM.splitlines(keepends=True), "&a ", "*a", "<<: ", "? ", "!!", "{", "}", "[", "]"])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(), st.text().map(str.encode), st.lists(SNIPPETS).map(lambda p: "".join(p).encode())))
def test_any_file_is_a_stream_or_a_stream_error(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path, content)
    for read in (read_stream, read_task):
        try:
            stream = read(path)
        except StreamError as error:
            summary = str(error)
        else:
            summary = f"{path}: {len(stream.resolved())} tasks"
        assert summary.startswith(f"{path}:")


def test_the_shared_streams_parse() -> None:
    if not STREAMS.is_dir():
        pytest.skip(f"no stream files at {STREAMS}")
    for path in sorted(STREAMS.glob("*.yaml")):
        stream = read_stream(path)
        assert stream.name == path.stem
        assert all(task.budget is not None for task in stream.resolved())


BOMB = "".join(f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"name: s\nmethod:\n  name: lora\n  a0: &a0 [x]\n{BOMB}", "more than 1,000,000 parts"),
        ("name: s\nmethod: " + "{a: " * 400 + "1" + "}" * 400, "nested more than 32 deep"),
        ("name: s\nmethod: " + "{a: " * 40 + "1" + "}" * 40, "s.yaml:2:.*nested more than 32 deep"),
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 2000)), "nested more than 32 deep"),
        ("name: s\nmethod: &m {name: lora, rank: *m}\n", "s.yaml:2:.*holds itself"),
        ("name: s\nmethod: &m [*m]\n", "holds itself"),
        ("name: s\nbudget: {epochs: 1:30:00}\n", "s.yaml:2:18: .*1:30:00 is a number in base 60"),
        (STREAM + f"budget: {{epochs: {10**23}}}\n", "budget.epochs"),
        (STREAM + f"budget: {{batch_size: {10**23}}}\n", "budget.batch_size"),
        (STREAM + f"method: {{name: lora, rank: {10**23}}}\n", "rank is a number beyond 64 bits"),
        (STREAM + f"backbone: {'b' * 10**6}\n", "backbone"),
    ],
)
def test_a_file_beyond_all_bounds_is_refused_at_once(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(StreamError, match=message) as caught:
        read_stream(written(tmp_path, text))
    assert len(str(caught.value)) < 2000


def test_anchors_and_aliases_within_the_bounds_are_read(tmp_path: Path) -> None:
    document = parse_yaml(written(tmp_path, "a: &a {x: '1:30'}\nb: [*a, *a]\nc: {<<: *a, y: 2}\n"))
    assert document.value == {"a": {"x": "1:30"}, "b": [{"x": "1:30"}] * 2, "c": {"x": "1:30", "y": 2}}


def test_only_files_are_read_as_yaml(tmp_path: Path) -> None:
    """A pipe would be waited for, and a device never ends."""
    os.mkfifo(tmp_path / "pipe")
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(2**40)
    cases = {tmp_path / "pipe": "a device or a pipe", Path("/dev/zero"): "a device or a pipe", tmp_path: "a folder"}
    for path, message in (cases | {large: "bytes, and at most", tmp_path / ("n" * 10**6): "cannot be read"}).items():
        with pytest.raises(StreamError, match=message) as caught:
            read_stream(path)
        assert len(str(caught.value)) < 1000
