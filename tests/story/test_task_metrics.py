"""Tasks scored by metrics that need more than answers: label probabilities, source texts."""

import json
from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score

from continual import Learner
from continual.backbones.backbone import Backbone
from continual.settings import resolve_locations
from registry import Registry
from tasks.errors import InputError
from tests.conftest import backbone_of
from tests.helpers.tiny_tasks import write_task
from tests.story.test_compare import write_stream
from tests.story.test_kinds import write_kinds


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def open_home(backbone: Backbone, folder: Path) -> Learner:
    places = resolve_locations(folder / "home", {})
    return Learner(backbone, Registry.open(places.registry, places.blobs))


def test_a_task_is_learned_by_the_area_under_the_curve(bert: Backbone, tmp_path: Path) -> None:
    entries = [write_task(tmp_path, "mood") | {"metric": "auroc"}, write_task(tmp_path, "place") | {"metric": "f1"}]
    stream = write_stream(tmp_path, tasks=entries)
    rows = [json.loads(line) for line in (tmp_path / "mood" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    second = sorted({row["label"] for row in rows})[1]
    with open_home(bert, tmp_path) as learner:
        assert learner.run(stream) == {}
        report = learner.report("core")
        predictions = learner.predict([row["text"] for row in rows], "mood")
    mood = report["per_task"][0]
    probabilities = [p.score if p.label == second else 1 - (p.score or 0.0) for p in predictions]
    assert mood["score"] == pytest.approx(roc_auc_score([row["label"] == second for row in rows], probabilities))
    assert 0 <= mood["score_low"] <= mood["score"] <= mood["score_high"] <= 1
    assert report["routed"]["matrix"][1][0] <= mood["score"] + 1e-9, "a misrouted row is wrong"


def test_binary_f1_of_three_labels_is_refused_before_training(bert: Backbone, tmp_path: Path) -> None:
    stream = write_stream(tmp_path, tasks=[write_task(tmp_path, "animals") | {"metric": "f1"}])
    with open_home(bert, tmp_path) as learner:
        with pytest.raises(InputError, match=r"task 'animals': metric 'f1' .* the task has 3; use macro_f1"):
            learner.run(stream)
        assert learner.registry.deltas() == []


def test_the_calibration_error_is_no_tasks_metric(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="accuracy, macro_f1, mcc, f1, auroc; got 'ece'"):
        write_stream(tmp_path, tasks=[write_task(tmp_path, "mood") | {"metric": "ece"}])


def test_a_simplification_is_scored_against_its_source(tmp_path: Path) -> None:
    stream = write_kinds(tmp_path, "echo", changes={"metric": "sari"})
    with open_home(backbone_of("t5"), tmp_path) as learner:
        assert learner.run(stream) == {}
        (task,) = learner.report("kinds")["per_task"]
    assert 0 < task["score"] <= 1
    assert task["ece"] is None, "its answers have no labels"
