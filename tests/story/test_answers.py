"""Joint inference for many tasks through the public API: the same answers as task by task."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from continual import Learner, read_stream
from continual.inference.predictor import Prediction, Predictor
from continual.settings import resolve_locations
from registry import Registry
from registry.errors import BlobError, NotFound
from tests.conftest import backbone_of
from tests.helpers.tiny_tasks import rows_of, save_backbone, write_task

METHODS = {"animals": "lora", "mood": "adapter", "place": "prefix", "food": "ia3"}
BUDGET = {"epochs": 1, "batch_size": 16, "learning_rate": 0.01, "max_length": 32}


WRITES = {"kind": "generation", "target": "label", "label": None}
KINDS: dict[str, dict[str, Any]] = {
    "animals": WRITES | {"method": "lora"},
    "mood": {"template": {"text": "{{ text }} is {{ mask }}", "words": {"bad": "awful", "good": "superb"}}},
    "place": WRITES | {"method": "prefix"},
    "food": {"method": "adapter"},
}


def learned(backbone: Path, folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> Learner:
    """Return a learner that has learned tasks with these keys of a stream file."""
    tasks = [{**write_task(folder, task), **keys} for task, keys in entries.items()]
    tasks = [{key: value for key, value in task.items() if value is not None} for task in tasks]
    (folder / "stream.yaml").write_text(yaml.safe_dump({"name": "four", "budget": BUDGET, "tasks": tasks}))
    places = resolve_locations(folder / "home", {})
    registry = Registry.open(places.registry, places.blobs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(folder / "cache"))
        learner = Learner.open(str(backbone), registry, device="cpu", dtype="float32")
        assert learner.run(read_stream(folder / "stream.yaml")) == {}
    return learner


@pytest.fixture(scope="module")
def learner(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learner]:
    """A learner with four tasks, each learned by a different method."""
    entries = {task: {"method": method} for task, method in METHODS.items()}
    with learned(bert_folder, tmp_path_factory.mktemp("mixed"), entries) as learner:
        yield learner


@pytest.fixture
def texts() -> list[str]:
    return [str(text) for number in range(8) for task in METHODS for text in rows_of(task, 1, seed=number).texts]


def labels_and_scores(predictions: Sequence[Prediction]) -> list[tuple[str | None, str | float | None]]:
    return [(prediction.task, prediction.label) for prediction in predictions]


def test_joint_answers_equal_each_tasks_alone(learner: Learner, texts: list[str]) -> None:
    predictions = Predictor(learner.backbone, learner.registry, false_abstentions=0).predict(texts)
    assert len({prediction.task for prediction in predictions}) == len(METHODS), "inputs of all tasks are in the batch"
    for text, prediction in zip(texts, predictions, strict=True):
        (alone,) = learner.predict([text], task=prediction.task)
        assert prediction.label == alone.label
        assert prediction.score == pytest.approx(alone.score, abs=1e-3)  # as among batches of one task


def test_tasks_of_all_kinds_are_answered_together(texts: list[str], tmp_path: Path) -> None:
    folder = save_backbone(backbone_of("gpt2"), tmp_path / "backbone")
    with learned(folder, tmp_path, KINDS) as learner:
        tasks = [*KINDS] * 8
        predictions = learner.predict(texts, task=tasks)
        for text, task, prediction in zip(texts, tasks, predictions, strict=True):
            (alone,) = learner.predict([text], task=task)
            assert (prediction.task, prediction.label) == (task, alone.label)
            assert prediction.score == pytest.approx(alone.score, abs=1e-4)
        routed = learner.predict(texts, false_abstentions=0)
        assert {prediction.task for prediction in routed} <= {*KINDS}
        for text, prediction in zip(texts, routed, strict=True):
            assert prediction.label == learner.predict([text], task=prediction.task)[0].label


def test_each_text_may_name_its_task_or_be_routed(learner: Learner, texts: list[str]) -> None:
    predictor = Predictor(learner.backbone, learner.registry)
    tasks = [name if i % 2 else None for i, name in enumerate([*METHODS] * 8)]
    predictions = predictor.predict(texts, task=tasks)
    routed = predictor.predict(texts)
    for i, (name, prediction) in enumerate(zip(tasks, predictions, strict=True)):
        alone = routed[i] if name is None else predictor.predict([texts[i]], task=name)[0]
        assert (prediction.text, prediction.task, prediction.label) == (texts[i], alone.task, alone.label)
        assert prediction.routed == (name is None)
    with pytest.raises(NotFound, match="mod"):
        predictor.predict(texts[:2], task=[None, "mod"])


def test_a_predictor_reuses_its_predecessors_deltas(learner: Learner, texts: list[str]) -> None:
    before = Predictor(learner.backbone, learner.registry)
    whole = before.predict(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.registry.blobs, "get", lambda digest: pytest.fail("a delta is read again"))
        after = Predictor(learner.backbone, learner.registry, previous=before)
        predictions = after.predict(texts, task=[prediction.task or "mood" for prediction in whole])
    assert all(b.abstained or b.label == a.label for b, a in zip(whole, predictions, strict=True))


def test_a_delta_with_the_same_name_and_other_values_is_reloaded(learner: Learner, texts: list[str]) -> None:
    champions = {record.task: record for record in learner.registry.champions(learner.backbone.fingerprint)}
    before = Predictor(learner.backbone, learner.registry)
    before.predict(texts, task="mood")
    deleted_and_learned_again = replace(champions["mood"], digest=champions["food"].digest)
    after = Predictor(learner.backbone, learner.registry, serving=[deleted_and_learned_again], previous=before)
    expected = before.predict(texts, task="food")
    assert [prediction.label for prediction in after.predict(texts, task="mood")] == [
        record.label for record in expected
    ]


def test_fewer_slots_than_tasks_change_no_answer(learner: Learner, texts: list[str]) -> None:
    wide, narrow = (Predictor(learner.backbone, learner.registry, slots=slots) for slots in (256, 2))
    assert labels_and_scores(narrow.predict(texts)) == labels_and_scores(wide.predict(texts))


def test_an_unreadable_delta_fails_only_its_own_inputs(learner: Learner, texts: list[str]) -> None:
    champion = next(
        alternative
        for alternative in learner.registry.champions(learner.backbone.fingerprint)
        if alternative.task == "mood"
    )
    whole = Predictor(learner.backbone, learner.registry).predict(texts)
    blob = Path(learner.registry.blobs.path(champion.digest))
    moved = blob.rename(blob.with_suffix(".away"))
    try:
        predictor = Predictor(learner.backbone, learner.registry)
        predictions = predictor.predict(texts)
        with_alternatives = predictor.predict(texts, at_least=0.0)
        with pytest.raises(BlobError):
            predictor.predict(texts[:1], task="mood")
    finally:
        moved.rename(blob)
    for before, now in zip(whole, predictions, strict=True):
        if now.error:
            assert before.task in ("mood", None)
            assert now.label is None
            assert "BlobError" in now.error
        elif before.task != "mood":
            assert (now.task, now.label) == (before.task, before.label)
    assert any(now.error for now in predictions)
    possible = [
        alternative for prediction in with_alternatives for alternative in prediction.possible if alternative.delta
    ]
    assert {alternative.task for alternative in possible} == set(METHODS)
    assert all((alternative.label is None) == (alternative.task == "mood") for alternative in possible)
    assert labels_and_scores(predictor.predict(texts)) == labels_and_scores(whole), (
        "it answers again once the delta is back"
    )
