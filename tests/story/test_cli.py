"""The command line for scripts: exit codes, JSON documents, and error messages with a remedy."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from continual import Learner
from continual.backbones.backbone import Backbone
from continual.cli import PANELS, main
from continual.learning.wrong_answers import find_wrong_answers
from registry import Registry
from tasks import read_task
from tasks.errors import DataError
from tests.helpers.cli import CliRunner
from tests.helpers.registries import learn as register
from tests.helpers.registries import make_registry
from tests.helpers.tiny_models import WORDS
from tests.helpers.tiny_tasks import labels_of, rows_of, write_rows, write_task

TASKS = ("animals", "mood", "place")


@pytest.fixture
def stream(tmp_path: Path, bert_folder: Path) -> Path:
    return write_stream(tmp_path, bert_folder)


def write_stream(folder: Path, backbone: Path, **changes: Any) -> Path:
    content = {
        "name": "small",
        "backbone": str(backbone),
        "method": {"name": "lora", "rank": 2},
        "budget": {"epochs": 1, "batch_size": 8, "learning_rate": 1.0e-2, "max_length": 16},
        "tasks": changes.pop("tasks", None) or [write_task(folder, task) for task in TASKS],
    }
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(content | changes, sort_keys=False), encoding="utf-8")
    return file


def test_a_stream_is_run_and_listed_by_every_command(cli: CliRunner, stream: Path, tmp_path: Path) -> None:
    result = cli("run", str(stream), "--json")
    assert result.code == 0, result.err
    assert result.json["failed"] == []
    assert result.json["tasks"] == list(TASKS)
    report = cli("report", "--json").json
    assert report == {key: value for key, value in result.json.items() if key != "failed"}
    assert set(report) == {"stream", "backbone", "tasks", "oracle", "routed", "unfinished", "per_task"}
    measures = {"acc", "bwt", "fwt", "fwt_random_init", "forgetting", "la", "aia"}
    assert set(report["oracle"]) == {"matrix"} | measures
    assert set(report["routed"]) == {*report["oracle"], "routing_accuracy", "abstained", "confused"}
    promised = {"task", "method", "delta", "parameters", "share", "score", "scratch_score", "warm_start", "parents"}
    assert promised | {"seconds", "examples_per_second"} <= set(report["per_task"][0])
    few = "validation: 20 rows, of at least 50 "
    assert f"mood: warning: {few}" in result.err
    assert report["per_task"][1]["warnings"][-1].startswith(few)
    cli("report", "--html", str(tmp_path / "report.html"))
    assert few in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"mood: {few}" in cli("report").out

    deltas = cli("deltas", "--json").json
    promised = {"delta", "task", "version", "method", "parameters", "share", "bytes", "status", "score", "mlflow_run"}
    assert set(deltas[0]) == promised | {"created_at", "reason"}
    assert [row["delta"] for row in deltas] == [f"{task}@1" for task in TASKS]
    assert all(row["mlflow_run"] for row in deltas)
    assert [row["task"] for row in cli("tasks", "--json").json] == list(TASKS)
    assert {row["task"] for row in cli("similar", "mood", "--json").json} == {"animals", "place"}
    assert cli("lineage", "animals@1", "--json").json == []
    assert cli("verify", "--json").json == []
    audited = cli("audit", str(stream), "--json")
    assert audited.code == 0
    assert [row["changed"] for row in audited.json] == [0, 0, 0]
    for words in (("tasks",), ("deltas",), ("report",), ("verify",), ("similar", "mood"), ("lineage", "animals@1")):
        shown = cli(*words)
        assert shown.code == 0
        assert shown.out.strip()
    stored, rows = cli("similar", "mood").out, cli("similar", "mood", "--rows").out
    assert ("distance" in stored, "leep" in stored) == (True, False)
    assert ("distance" in rows, "leep" in rows) == (False, True)
    assert max(map(len, rows.splitlines())) <= 80, "though the terminal has room for more"
    again = cli("run", str(stream), "--json")
    assert again.json == result.json


def test_predictions_keep_order_and_shape(cli: CliRunner, stream: Path, tmp_path: Path) -> None:
    assert cli("run", str(stream)).code == 0
    lines = tmp_path / "lines.txt"
    texts = ["cat purr meow", ["wave coral", "tide sail"], "lovely bright superb"]
    odd = tmp_path / "odd.txt"
    odd.write_text("zzz qqq zzz qqq zzz qqq\n")
    lines.write_text(f"{texts[0]}\n\n{json.dumps({'text': texts[1]})}\n{json.dumps({'text': texts[2]})}\n")
    answers = [json.loads(line) for line in cli("predict", str(lines)).out.splitlines()]
    assert [answer["text"] for answer in answers] == [texts[0], "", *texts[1:]], "one line in, one line out"
    shape = {"text", "task", "label", "score", "routed", "confidence", "abstained", "delta", "possible", "error"}
    for answer in answers:
        assert set(answer) == shape
        assert answer["routed"]
        assert 0 <= answer["confidence"] <= 1
        if answer["abstained"]:
            assert answer["task"] is answer["label"] is answer["score"] is answer["delta"] is None
            assert [alternative["task"] for alternative in answer["possible"]]
        else:
            assert 0 <= answer["score"] <= 1
            assert answer["label"] in WORDS[answer["task"]]
    forced = [json.loads(line) for line in cli("predict", str(lines), "--abstain", "0", "--all").out.splitlines()]
    for answer in forced:
        best = answer["possible"][0]
        assert {key: best[key] for key in ("task", "label", "confidence")} == {
            key: answer[key] for key in ("task", "label", "confidence")
        }
    (odd_prediction,) = [json.loads(line) for line in cli("predict", str(odd)).out.splitlines()]
    assert odd_prediction["abstained"]
    assert cli("predict", str(lines), "--router", "rigde").code == 2
    named = [json.loads(line) for line in cli("predict", "--task", "mood", str(lines)).out.splitlines()]
    assert {(answer["task"], answer["routed"], answer["confidence"]) for answer in named} == {("mood", False, None)}
    rows = [{"id": 7, "text": texts[2], "task": "mood", "label": "good"}, {"id": 8, "text": texts[0], "task": None}]
    lines.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    first, second = (json.loads(line) for line in cli("predict", str(lines), "--task", "animals").out.splitlines())
    assert (first["id"], first["task"], first["input_label"], first["routed"]) == (7, "mood", "good", False)
    assert (second["id"], second["task"]) == (8, "animals"), "--task is for rows that name none"
    lines.write_text('{"text": "cat", "task": "mod"}\n')
    assert "nearest known: mood" in cli("predict", str(lines)).err


def test_tables_are_answered_row_by_row(cli: CliRunner, tmp_path: Path, bert_folder: Path) -> None:
    one_task = write_stream(tmp_path, bert_folder, tasks=[write_task(tmp_path, "animals")], budget={"epochs": 0})
    assert cli("run", str(one_task)).code == 0
    table = pd.DataFrame({"id": ["a", "b"], "ticket": ["cat purr meow", "wave coral"], "label": ["x", None]})
    table.to_csv(tmp_path / "tickets.csv", index=False)
    table.to_parquet(tmp_path / "tickets.parquet")
    ask = ("--task", "animals", "--text-column", "ticket")
    lines = [json.loads(line) for line in cli("predict", str(tmp_path / "tickets.csv"), *ask).out.splitlines()]
    assert [(line["text"], line["id"], line["input_label"]) for line in lines] == [
        ("cat purr meow", "a", "x"),
        ("wave coral", "b", ""),
    ]
    for suffix, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        file = tmp_path / f"answers.{suffix}"
        assert cli("predict", str(tmp_path / "tickets.parquet"), *ask, "--output", str(file)).code == 0
        answers = read(file)
        assert [*answers["label"]] == [line["label"] for line in lines]
        assert [*answers["id"]] == ["a", "b"]
    missing = cli("predict", str(tmp_path / "tickets.csv"))
    assert (missing.code, "no text" in missing.err) == (2, True)
    assert "allowed: .jsonl" in cli("predict", str(tmp_path / "tickets.csv"), "--output", "answers.xlsx").err
    with Learner.open(str(bert_folder), tmp_path / "home") as learner:
        (one,) = learner.predict("cat purr meow", task="animals")
        assert one.label == lines[0]["label"]
        framed = learner.predict(table.rename(columns={"ticket": "text"}), task="animals")
        assert [(answer.label, answer.columns["id"]) for answer in framed] == [
            (line["label"], line["id"]) for line in lines
        ]


def test_invalid_input_is_refused_before_training(cli: CliRunner, tmp_path: Path, bert_folder: Path) -> None:
    tasks = [write_task(tmp_path, task) for task in TASKS]
    tasks[0]["method"] = "lara"
    tasks[1]["label"] = "lable"
    tasks[2]["method"] = {"name": "lora", "sites": ["nowhere"]}
    file = write_stream(tmp_path, bert_folder, tasks=tasks)
    for words in (("run", str(file)), ("run", str(file), "--check")):
        result = cli(*words)
        assert result.code == 2
        assert "'lora'" in result.err
        assert "'label'" in result.err
        assert "nowhere" in result.err
    assert cli("tasks", "--json").json == []


def test_suspicious_rows_of_a_strict_task_are_refused(cli: CliRunner, tmp_path: Path, bert_folder: Path) -> None:
    tasks = [write_task(tmp_path, "mood", validation=20), write_task(tmp_path, "place", validation=50) | {"shots": 1}]
    budget = {"epochs": 0, "max_length": 8}
    file = write_stream(tmp_path, bert_folder, tasks=tasks, strict=True, budget=budget)
    for words in (("run", str(file)), ("run", str(file), "--check")):
        refused = cli(*words)
        assert refused.code == 2
        assert "task 'mood' is strict" in refused.err
        assert "validation: 20 rows, of at least 50 " in refused.err
    assert cli("tasks", "--json").json == []
    file = write_stream(tmp_path, bert_folder, tasks=tasks[1:], strict=True, budget=budget)
    assert re.search(r"'place'.*\n.*rows \(.* are longer than .*\.max_length \(now 8;", cli("run", str(file)).err)
    lenient = write_stream(tmp_path, bert_folder, tasks=[task | {"strict": False} for task in tasks], strict=True)
    assert cli("run", str(lenient), "--check").code == 0


def test_a_mistyped_home_is_an_error_with_near_names(
    cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home-2").mkdir()
    (tmp_path / "home-2" / "registry.db").touch()
    for words in (("tasks",), ("deltas", "--json"), ("report",), ("verify",)):
        missing = cli(*words)
        assert missing.code == 2
        assert f"there is no folder {tmp_path / 'home'}; near it are home-2" in missing.err
    (tmp_path / "home-2").rename(tmp_path / "elsewhere")
    assert cli("tasks", "--json").json == []
    assert not (tmp_path / "home").exists(), "reading creates nothing"


def test_help_is_grouped_and_short_forms_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["continual", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    assert printed("-h") == printed("--help")
    assert all(f"─ {panel} ─" in printed("-h") for panel in PANELS)
    assert printed("--version") == f"continual {version('continual-deltas')}\n"
    assert "CONTINUAL_HOME" in printed("tasks", "-h")


def test_check_estimates_without_training(cli: CliRunner, stream: Path) -> None:
    checked = cli("run", str(stream), "--check", "--json")
    assert checked.code == 0
    assert [row["task"] for row in checked.json] == list(TASKS)
    assert all(row["seconds"] > 0 and 2 < row["bytes"] / row["parameters"] < 2.3 for row in checked.json)
    assert cli("deltas", "--json").json == []


def test_learning_a_task_again_makes_a_version(cli: CliRunner, tmp_path: Path, bert_folder: Path) -> None:
    task = write_task(tmp_path, "mood") | {"backbone": str(bert_folder), "budget": {"epochs": 0}}
    file = tmp_path / "mood.yaml"
    file.write_text(yaml.safe_dump(task), encoding="utf-8")
    assert cli("learn", str(file), "--json").json[0]["delta"] == "mood@1"
    assert cli("learn", str(file), "--json").json[0]["delta"] == "mood@2"
    assert [row["version"] for row in cli("deltas", "--task", "mood", "--json").json] == [1, 2]


def test_invalid_arguments_are_refused_with_the_remedy(cli: CliRunner, stream: Path, tmp_path: Path) -> None:
    assert "run a" in cli("report").err.lower() or cli("report").code == 2
    assert cli("predict", str(stream)).code == 2
    assert cli("run", str(tmp_path / "none.yaml")).code == 2
    assert cli("run", str(stream), "--device", "tpu").code == 2
    assert cli("run", str(stream), "--backbone", str(tmp_path / "none")).code == 2
    assert cli("run", str(stream)).code == 0
    unknown = cli("lineage", "moood@1")
    assert unknown.code == 2
    assert "mood@1" in unknown.err
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"txt": "oops"}\n')
    answer = cli("predict", str(bad))
    assert answer.code == 2
    assert answer.out == ""
    assert "bad.jsonl:2" in answer.err
    assert "mood" in cli("predict", "--task", "moods", str(bad.with_name("small.yaml"))).err


def test_verify_reports_damage(cli: CliRunner, stream: Path, tmp_path: Path) -> None:
    assert cli("run", str(stream)).code == 0
    blob = next(path for path in (tmp_path / "home" / "blobs").rglob("*") if path.is_file())
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    result = cli("verify", "--json")
    assert result.code == 1
    assert blob.name[-12:] in json.dumps(result.json)


def test_a_failing_task_is_reported_and_the_others_are_learned(
    cli: CliRunner, tmp_path: Path, bert_folder: Path
) -> None:
    tasks = [write_task(tmp_path, task) for task in TASKS]
    tasks[1]["method"] = {"name": "adapter", "size": 2, "initial_scale": 1.0e30}
    result = cli("run", str(write_stream(tmp_path, bert_folder, tasks=tasks)), "--json")
    assert result.code == 1
    assert [row["task"] for row in result.json["failed"]] == ["mood"]
    assert result.json["tasks"] == ["animals", "place"]
    mended = cli("run", str(write_stream(tmp_path, bert_folder)), "--json")
    assert mended.code == 0
    assert mended.json["tasks"] == list(TASKS)
    assert all(value is not None for t, row in enumerate(mended.json["routed"]["matrix"]) for value in row[: t + 1])


def test_a_delta_is_exported_and_imported(cli: CliRunner, tmp_path: Path, bert_folder: Path) -> None:
    task = write_task(tmp_path, "mood") | {"backbone": str(bert_folder), "budget": {"epochs": 0}}
    file, out = tmp_path / "mood.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(task), encoding="utf-8")
    assert cli("learn", str(file)).code == 0
    written = cli("export", "mood@1", str(out), "--format", "peft", "--json")
    assert written.code == 0, written.err
    assert written.json[0]["delta"] == "mood@1"
    assert set(written.json[0]["files"]) == {file.name for file in out.iterdir()}
    assert cli("export", "mood@1", str(tmp_path / "whole"), "--format", "transformers").code == 0
    back = cli("import", str(out), "--task", "mood", "--json")
    assert back.code == 0, back.err
    assert [(row["delta"], row["status"]) for row in back.json] == [("mood@2", "candidate")]
    assert "no validation accuracy" in back.err
    scored = cli("import", str(out), "--task", "mood", "--rows", str(file))
    assert scored.code == 0
    assert "mood@3" in scored.out
    assert "serves" in scored.err
    assert cli("verify").code == 0


def test_failed_exports_and_imports_are_errors(cli: CliRunner, tmp_path: Path, bert_folder: Path) -> None:
    task = write_task(tmp_path, "mood") | {"backbone": str(bert_folder), "budget": {"epochs": 0}, "method": "bitfit"}
    file, out = tmp_path / "mood.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(task), encoding="utf-8")
    assert cli("learn", str(file)).code == 0
    refused = cli("export", "mood@1", str(out), "--format", "peft")
    assert refused.code == 2
    assert "lora, dora" in refused.err
    assert cli("export", "moood@1", str(out)).code == 2
    assert cli("export", "mood@1", str(out), "--format", "onnx").code == 2
    assert cli("import", str(out), "--task", "mood").code == 2
    assert cli("import", str(out)).code == 2, "a task must be named"
    assert not out.exists()


def test_versions_are_promoted_archived_deleted_and_purged(cli: CliRunner, tmp_path: Path, bert_folder: Path) -> None:
    for name in ("mood", "place"):
        task = write_task(tmp_path, name) | {"backbone": str(bert_folder), "budget": {"epochs": 0}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
        assert cli("learn", str(tmp_path / f"{name}.yaml")).code == 0
    assert cli("learn", str(tmp_path / "mood.yaml")).code == 0
    back = cli("deltas", "promote", "mood@1", "--reason", "the new one is rude", "--json")
    assert [(row["delta"], row["status"]) for row in back.json] == [("mood@1", "champion")]
    assert cli("deltas", "promote", "mood@1").code == 2, "it serves already"
    archived = cli("deltas", "archive", "mood@1")
    assert (archived.code, "archived" in archived.out) == (0, True)
    assert [row["champion"] for row in cli("tasks", "--json").json] == [None, "place@1"]
    unsure = cli("purge", "mood")
    assert (unsure.code, "--yes" in unsure.err, "mood@1, mood@2" in unsure.err) == (2, True, True)
    assert cli("purge", "mood", "--yes", "--reason", "asked to", "--json").json[0]["versions"] == 2
    unsure = cli("tasks", "delete", "place")
    assert (unsure.code, "--yes" in unsure.err, "place@1" in unsure.err) == (2, True, True)
    assert cli("tasks", "delete", "place", "--yes", "--json").json[0]["versions"] == 1
    assert cli("tasks", "--json").json == []
    assert [row["status"] for row in cli("deltas", "--json").json] == ["purged"] * 3
    assert cli("purge", "mood", "--yes").code == 2
    assert cli("verify").code == 0


def test_a_task_is_shown_in_full_with_its_errors(
    cli: CliRunner, tmp_path: Path, bert: Backbone, bert_folder: Path
) -> None:
    rows, file = rows_of("mood", 12, seed=2), tmp_path / "mood" / "test.jsonl"
    (tmp_path / "mood.yaml").write_text(yaml.safe_dump(write_task(tmp_path, "mood") | {"budget": {"epochs": 0}}))
    turned = dict(zip(labels_of("mood"), reversed(labels_of("mood")), strict=True))
    labels = [turned[label] if number in (3, 7) else label for number, label in enumerate(rows.labels)]
    write_rows(file, rows.texts, labels)  # two labels are wrong
    with Registry.open(f"sqlite:///{tmp_path}/home/registry.db", str(tmp_path / "home" / "blobs")) as registry:
        Learner(bert, registry).learn(read_task(tmp_path / "mood.yaml"))
        shown = cli("tasks", "show", "mood", "--json").json
        (version,) = shown["versions"]
        assert (shown["kind"], shown["labels"], shown["rows"]["test"]) == ("classification", [*labels_of("mood")], 12)
        assert (version["delta"], version["status"], version["seed"]) == ("mood@1", "champion", 0)
        assert version["source"]["data_files"]["test"] == "mood/test.jsonl"
        assert sum(entry["support"] for entry in version["per_class"]) == 12
        assert sum(entry["correct"] for entry in version["per_class"]) == round(12 * version["score"])
        assert sum(entry["rows"] for entry in version["reliability"]) == 12
        text = cli("tasks", "show", "mood").out
        for part in (
            "mood@1",
            "path=json",
            "precision",
            "Classes of mood@1",
            "label \\ answer",
            f"{version['ece']:.3f}",
        ):
            assert part in text
        assert cli("tasks", "show", "mod").code == 2

        wrong = cli("errors", "mood", "--backbone", str(bert_folder), "--json").json
        assert len(wrong) == 12 - round(12 * version["score"])
        assert {3, 7} <= {row["row"] for row in wrong}
        for row in wrong:
            assert (row["text"], row["label"]) == (rows.texts[row["row"]], labels[row["row"]])
            assert row["answer"] == turned[row["label"]]
        assert [row["score"] for row in wrong] == sorted((row["score"] for row in wrong), reverse=True)
        write_rows(file, [*rows.texts, "awful"], [*labels, "good"])
        again = find_wrong_answers(bert, registry, "mood")
        assert {row.row for row in again.wrong} == {row["row"] for row in wrong}
        assert again.change is None, "rows that were appended are not its own"
        write_rows(file, rows.texts[1:], labels[1:])
        changed = cli("errors", "mood", "--limit", "1", "--backbone", str(bert_folder))
        assert "has changed since mood@1 was learned: test has 11 rows now, 12 then" in changed.err
        assert f"{len(wrong)} of 11 test rows that mood@1 answers wrongly" in changed.out
        file.unlink()
        with pytest.raises(DataError, match="are not stored, and cannot be read again"):
            find_wrong_answers(bert, registry, "mood")


def test_garbage_is_listed_before_it_is_deleted(cli: CliRunner, tmp_path: Path, bert_folder: Path) -> None:
    assert cli("gc", "--json").json == []
    assert not (tmp_path / "home" / "registry.db").exists(), "nothing is learned yet, and reading creates nothing"
    task = write_task(tmp_path, "mood") | {"backbone": str(bert_folder), "budget": {"epochs": 0}}
    (tmp_path / "mood.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    assert cli("learn", str(tmp_path / "mood.yaml")).code == 0
    file = tmp_path / "home" / "blobs" / "ab" / ("c" * 62)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"nobody's")
    assert cli("gc", "--json").json == [], "somebody may be about to name it"
    (listed,) = cli("gc", "--dry-run", "--older-than", "0s", "--json").json
    assert (listed["name"], listed["bytes"], listed["deleted"]) == ("ab" + "c" * 62, 8, False)
    assert file.exists()
    assert cli("gc", "--older-than", "0s", "--json").json[0]["deleted"]
    assert not file.exists()
    refused = cli("gc", "--older-than", "soon")
    assert (refused.code, "such as 90m" in refused.err) == (2, True)


@pytest.mark.parametrize("lost", ["missing", "no bytes"])
def test_a_lost_registry_is_damage_and_is_not_replaced(cli: CliRunner, tmp_path: Path, lost: str) -> None:
    database, blob = tmp_path / "home" / "registry.db", tmp_path / "home" / "blobs" / "ab" / ("c" * 62)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"learned with much work")
    if lost == "no bytes":
        database.touch()
    verified = cli("verify", "--json")
    assert (verified.code, "there is no registry" in verified.json[0]["problem"]) == (1, True)
    commands = (
        ("tasks",),
        ("deltas",),
        ("report",),
        ("gc", "--older-than", "0s"),
        ("predict", "--backbone", "minilm", str(blob)),
        ("keys", "add", "ci"),
        ("purge", "mood", "--yes"),
    )
    for words in commands:
        result = cli(*words)
        assert (result.code, "no registry" in result.err) == (2, True), words
    assert blob.exists()
    assert not database.exists() or database.stat().st_size == 0


def test_blobs_of_another_registry_are_neither_written_nor_deleted(
    cli: CliRunner, tmp_path: Path, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_registry(tmp_path / "other") as other:
        register(other, "sst2")
        before = {blob.name for blob in other.blobs.iterate()}
    task = write_task(tmp_path, "mood") | {"backbone": str(bert_folder), "budget": {"epochs": 0}}
    (tmp_path / "mood.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    assert cli("keys", "add", "ci").code == 0
    monkeypatch.setenv("CONTINUAL_BLOBS_URL", other.blobs.url)
    commands = (
        ("learn", str(tmp_path / "mood.yaml")),
        ("import", str(tmp_path), "--task", "mood", "--backbone", str(bert_folder)),
        ("gc", "--older-than", "0s"),
        ("keys", "add", "ops"),
    )
    for words in commands:
        refused = cli(*words)
        assert (refused.code, "belong to registry" in refused.err) == (2, True), words
    verified = cli("verify", "--json")
    assert (verified.code, "belong to registry" in verified.json[0]["problem"]) == (1, True)
    assert cli("tasks", "--json").json == []
    assert {blob.name for blob in other.blobs.iterate()} == before


@pytest.mark.parametrize("into", [">&-", "2>&-", "| true", "| head -1"])
def test_a_closed_pipe_gives_no_traceback(tmp_path: Path, into: str) -> None:
    program = "from continual.cli import main; main()"
    command = f"'{sys.executable}' -c '{program}' tasks --json --home '{tmp_path / 'home'}' {into}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
