"""Tasks scored by metrics that need more than answers: label probabilities, source texts."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from continual import Learner
from continual.backbones.backbone import Backbone
from continual.callbacks import RunCallbacks
from continual.settings import resolve_locations
from registry import Registry
from tasks.errors import InputError
from tests.conftest import backbone_of
from tests.helpers.tiny_tasks import rows_of, write_task
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


def test_a_task_that_copying_would_serve_better_is_noted_beside_its_perplexity(tmp_path: Path) -> None:
    rows = rows_of("mood", 24)
    for split, count in {"train": 24, "validation": 8, "test": 6}.items():
        texts = rows.texts[:count]
        lines = (json.dumps({"text": f"{split} {text}", "target": text}) + "\n" for text in texts)
        (tmp_path / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    files = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
    task: dict[str, Any] = {
        "name": "copy",
        "kind": "generation",
        "text": "text",
        "target": "target",
        "metric": "rouge_l",
    }
    task |= {"source": {"path": "json", "data_files": files}}
    stream = write_stream(tmp_path, tasks=[task], budget={"epochs": 0, "max_length": 16})
    notes: list[str] = []
    backbone = backbone_of("gpt2")
    with open_home(backbone, tmp_path) as learner:
        learner.run(stream, callbacks=RunCallbacks(on_note=lambda task, note: notes.append(note)))
        (report,) = learner.report("core")["per_task"]
    assert report["baseline"] == "copy"
    assert report["baseline_score"] > 0.8
    sentence = f"test score {report['score']:.3f} is below {report['baseline_score']:.3f}, that of every text copied"
    assert [note for note in notes if note.startswith(sentence)]
    total, count = 0.0, 0
    for text in rows.texts[:6]:
        prompt, target = (backbone.tokenizer(part)["input_ids"] for part in (f"test {text}\n", str(text)))
        target = [*target, backbone.tokenizer.eos_token_id]
        with torch.no_grad():
            logits = backbone.language_model(torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1]
        total += float(F.cross_entropy(logits, torch.tensor(target), reduction="sum"))
        count += len(target)
    assert report["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
