"""Methods chosen by a search, or trained in the subspace of earlier deltas."""

from pathlib import Path

import pytest

from continual.deltas import load_delta
from continual.errors import MethodError
from tests.helpers.registries import digest_of
from tests.story.test_stream import open_home, write_stream

FEW = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01, "max_length": 32}
CANDIDATES = [{"name": "lora", "rank": 2}, "bitfit", "ia3"]


def test_auto_chooses_a_method_and_stores_its_trials(bert_folder: Path, tmp_path: Path) -> None:
    auto = {"name": "auto", "share": 0.5, "candidates": CANDIDATES, "rates": [1, 2]}
    stream = write_stream(tmp_path, tasks=("animals",), method=auto, budget=FEW)
    learner = open_home(bert_folder, tmp_path / "home")
    assert learner.run(stream) == {}
    stored = learner.registry.delta("animals@1")
    trials = stored.tried
    assert [trial["rows"] for trial in trials] == sorted(trial["rows"] for trial in trials)
    assert len([trial for trial in trials if trial["rows"] == trials[0]["rows"]]) == 6
    winner = max((t for t in trials if t["rows"] == trials[-1]["rows"]), key=lambda trial: trial["score"])
    assert stored.method == winner["method"]["name"]
    assert stored.budget["learning_rate"] == winner["learning_rate"]
    assert learner.predict(["purr meow"], task="animals")[0].label


def test_auto_is_checked_before_training(bert_folder: Path, tmp_path: Path) -> None:
    learner = open_home(bert_folder, tmp_path / "home")
    invalid = {"name": "auto", "candidates": [{"name": "lora", "rank": 0}]}
    with pytest.raises(MethodError, match="rank"):
        learner.run(write_stream(tmp_path, tasks=("animals",), method=invalid))
    small = {"name": "auto", "share": 1e-9, "candidates": CANDIDATES}
    with pytest.raises(MethodError, match="no candidate has at most"):
        learner.run(write_stream(tmp_path, tasks=("animals",), method=small))


def test_a_subspace_is_spanned_by_earlier_deltas(bert_folder: Path, tmp_path: Path) -> None:
    lora = {"name": "lora", "rank": 2}
    changes = {"place": {"method": {"name": "subspace", "of": lora, "dimension": 4}, "warm_start": "scratch"}}
    stream = write_stream(tmp_path, method=lora, changes=changes, budget=FEW)
    learner = open_home(bert_folder, tmp_path / "home")
    assert learner.run(stream) == {}
    parents = learner.registry.lineage("place@1")
    assert {(row["parent"], row["kind"], row["weight"]) for row in parents} == {
        ("animals@1", "subspace", 0.5),
        ("mood@1", "subspace", 0.5),
    }
    deltas = {
        name: load_delta(learner.registry.blobs.get(digest_of(learner.registry, name)))
        for name in ("animals@1", "mood@1", "place@1")
    }
    assert deltas["place@1"].values.keys() == deltas["mood@1"].values.keys()
    first, second, point = (deltas[name].values for name in ("animals@1", "mood@1", "place@1"))
    for key in first:  # on the line through the two
        along, residual = second[key] - first[key], point[key] - (first[key] + second[key]) / 2
        cosine = (along * residual).sum() / (along.norm() * residual.norm()).clamp_min(1e-12)
        assert residual.norm() < 1e-6 or abs(float(cosine)) > 0.999


def test_a_subspace_without_earlier_deltas_is_refused(bert_folder: Path, tmp_path: Path) -> None:
    stream = write_stream(tmp_path, tasks=("mood",), method={"name": "subspace", "of": "lora"})
    learner = open_home(bert_folder, tmp_path / "home")
    assert "at least two learned deltas of method 'lora'" in learner.run(stream)["mood"]
