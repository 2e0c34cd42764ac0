"""Routing through the public API: its statistics, abstention, alternatives and confusions."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sqlalchemy import update

from continual import Learner, read_stream, read_task
from continual.errors import RoutingError
from continual.features.random_features import frozen_features
from continual.features.tokens import tokenize
from continual.inference.predictor import Predictor
from continual.learning.verify import verify_home
from continual.routing import Router, RoutingStatistics
from continual.routing.stored_router import load_router
from continual.settings import resolve_locations
from registry import BlobError, BlobStore, Registry, archive_delta, collect_garbage, promote_delta, purge_task, warnings
from registry.schema.tables import Signature
from tests.helpers.tiny_tasks import rows_of, write_task

TASKS = ("animals", "mood", "place")
BUDGET = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "max_length": 32}


def write_stream(folder: Path, **changes: Any) -> Path:
    """Write a stream of tiny tasks; `changes` holds keys of all of them."""
    entries = [write_task(folder, task) | changes for task in TASKS]
    content = {"name": "core", "seed": 0, "method": {"name": "lora", "rank": 2}, "budget": BUDGET, "tasks": entries}
    (folder / "stream.yaml").write_text(yaml.safe_dump(content))
    return folder / "stream.yaml"


def open_home(backbone: Path, home: Path) -> Learner:
    places = resolve_locations(home, {})
    registry = Registry.open(places.registry, places.blobs)
    return Learner.open(str(backbone), registry, device="cpu", dtype="float32")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def learner(bert_folder: Path, tmp_path: Path) -> Iterator[Learner]:
    with open_home(bert_folder, tmp_path / "home") as learner:
        assert learner.run(read_stream(write_stream(tmp_path))) == {}
        yield learner


def statistics_of(learner: Learner) -> dict[str, RoutingStatistics]:
    stored = learner.registry.signatures(learner.backbone.fingerprint)
    return {
        champion.task: RoutingStatistics.from_bytes(learner.registry.blobs.get(champion.routing or ""))
        for champion in stored
    }


def test_routing_statistics_are_of_the_texts_alone(learner: Learner) -> None:
    """Held-out rows are frozen features of the texts, without template or task name."""
    for task, statistics in statistics_of(learner).items():
        rows = rows_of(task, 20, seed=1)
        features = frozen_features(learner.backbone, tokenize(learner.backbone, rows.texts, max_length=32))
        torch.testing.assert_close(
            statistics.held_out.random_features.float(), features.random_features, rtol=2e-3, atol=2e-3
        )
        assert int(statistics.counts.sum()) == 60


def test_only_inputs_of_no_task_are_abstained_from(learner: Learner) -> None:
    texts = [text for task in TASKS for text in rows_of(task, 40, seed=5).texts]
    familiar = learner.predict(texts)
    unfamiliar = learner.predict(["xx yy zz", "q w e r t y", "1 2 3 4 5 6 7 8"])
    assert sum(p.abstained for p in familiar) / len(familiar) < 0.25
    assert any(p.abstained for p in unfamiliar)
    for answer in unfamiliar:
        if answer.abstained:
            assert (answer.task, answer.label, answer.delta, answer.score) == (None,) * 4
            assert [p.task in TASKS for p in answer.possible] == [True] * 3
            assert sum(p.confidence for p in answer.possible) == pytest.approx(1.0, abs=1e-5)
    assert not any(p.abstained for p in learner.predict(texts, false_abstentions=0))
    assert not any(p.abstained for p in learner.predict(["xx yy zz"], "mood"))


def test_all_likely_tasks_are_returned_with_their_answers(learner: Learner) -> None:
    texts = ["purr meow lovely", "wave coral"]
    for answer in learner.predict(texts, false_abstentions=0, at_least=0.0):
        assert answer.possible[0].task == answer.task
        assert {p.task for p in answer.possible} == set(TASKS)
        assert [p.confidence for p in answer.possible] == sorted((p.confidence for p in answer.possible), reverse=True)
        for possible in answer.possible:
            (alone,) = learner.predict([answer.text], possible.task)
            assert (possible.label, possible.delta) == (alone.label, alone.delta)


@pytest.mark.parametrize("router", ["ridge", "mahalanobis", "auto"])
def test_every_router_serves(learner: Learner, router: str) -> None:
    rows = rows_of("place", 20, seed=3)
    predictions = learner.predict(rows.texts, router=router, false_abstentions=0)
    assert sum(p.task == "place" for p in predictions) > 12


def test_an_unknown_router_is_refused_before_training(learner: Learner) -> None:
    with pytest.raises(RoutingError, match="'rigde' is not known; did you mean 'ridge'"):
        Predictor(learner.backbone, learner.registry, router="rigde")


def test_confusions_are_counted_and_purged_with_their_task(learner: Learner) -> None:
    report = learner.report("core")
    measured = learner.registry.scores(stream="core", mode="routed", step=2)
    scores = [score for score in measured if score.metric == "routing_accuracy"]
    missed = {score.task: round((1 - score.value) * score.rows) for score in scores}
    counted = dict.fromkeys(TASKS, 0)
    for pair in report["routed"]["confused"]:
        counted[pair["task"]] += pair["rows"]
        assert pair["share"] == pytest.approx(pair["rows"] / 12)
    assert counted == missed
    assert 0 <= report["routed"]["abstained"] <= 1
    purge_task(learner.registry, "mood")
    remaining = learner.registry.confusions("core", step=2)
    assert not any("mood" in name for pair in remaining for name in (pair.delta, pair.routed_to))
    assert learner.predict(["purr meow"], false_abstentions=0)[0].task in ("animals", "place")


def test_a_task_with_broken_statistics_is_left_out_and_named(
    learner: Learner, caplog: pytest.LogCaptureFixture
) -> None:
    broken = statistics_of(learner)["place"]
    broken = replace(broken, factor=torch.full_like(broken.factor, torch.inf))
    stored = {record.task: record for record in learner.registry.signatures(learner.backbone.fingerprint)}
    digest = learner.registry.blobs.put(broken.to_bytes())
    with learner.registry.unit_of_work() as unit:
        rows = update(Signature).where(Signature.routing == stored["place"].routing)
        unit.session.execute(rows.values(routing=digest))
    texts = rows_of("mood", 8, seed=5).texts
    predictor = Predictor(learner.backbone, learner.registry)
    assert {prediction.task for prediction in predictor.predict(texts)} <= {"mood", "animals", None}
    assert "task place is left out of routing" in caplog.text
    assert {prediction.task for prediction in predictor.predict(texts, task="place")} == {"place"}
    (problem,) = verify_home(learner.registry, quick=True).problems
    assert "place@1: its routing statistics hold numbers that are not finite" in problem


def test_a_stream_of_identical_texts_is_routed(bert_folder: Path, tmp_path: Path) -> None:
    for task in ("mood", "animals"):
        entry = write_task(tmp_path, task)
        for name in entry["source"]["data_files"].values():
            rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
            lines = [json.dumps(row | {"text": "the same words"}) for row in rows]
            (tmp_path / name).write_text("\n".join(lines))
        content = entry | {"budget": {"epochs": 0, "max_length": 32}}
        (tmp_path / f"{task}.yaml").write_text(yaml.safe_dump(content))
    with open_home(bert_folder, tmp_path / "home") as learner:
        for task in ("mood", "animals"):
            learner.learn(read_task(tmp_path / f"{task}.yaml"))
            answers = learner.predict(["the same words", "", "quite another text"], false_abstentions=0.0)
            assert all(answer.task in ("mood", "animals") for answer in answers)
            assert all(0 <= (answer.confidence or 0) <= 1 for answer in answers)


def test_a_stored_router_answers_to_the_bit_as_the_one_that_was_built(
    learner: Learner, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, blobs = [text for task in TASKS for text in rows_of(task, 4, seed=7).texts], learner.registry.blobs
    built = learner.predict(texts)
    (file,) = blobs.iterate_derived()
    stored, place = Path(file.place).read_bytes(), Path(file.place)
    monkeypatch.setattr("continual.routing.stored_router._build_router", None)  # not to be called
    with open_home(bert_folder, tmp_path / "home") as other:
        assert other.predict(texts) == learner.predict(texts) == built
    monkeypatch.undo()
    for damaged in (stored[:-1], b"", stored[:32] + stored[32:][::-1]):
        place.write_bytes(damaged)
        assert ["is damaged: it is not used" in line for line in warnings(learner.registry)] == [True]
        with open_home(bert_folder, tmp_path / "home") as other:
            assert other.predict(texts) == built
        assert place.read_bytes() == stored, "it is built again, and replaced"


def test_a_change_of_tasks_reads_only_what_changed(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, backbone = learner.registry, learner.backbone
    digests = {record.routing: record.task for record in registry.signatures(backbone.fingerprint)}
    reads: list[str] = []
    get = BlobStore.get

    def count(blobs: BlobStore, digest: str) -> bytes:
        reads.append(digests.get(digest, ""))
        return get(blobs, digest)

    def load() -> Router:
        reads.clear()
        champions = {champion.task: champion for champion in registry.champions(backbone.fingerprint)}
        loaded = load_router(registry, backbone, champions)
        assert loaded is not None
        return loaded.router

    monkeypatch.setattr("continual.routing.stored_router.MIN_TASKS_OF_SUMS", 2)
    monkeypatch.setattr(BlobStore, "get", count)
    texts = [text for task in TASKS for text in rows_of(task, 4, seed=7).texts]
    features = frozen_features(backbone, tokenize(backbone, texts, max_length=32))
    whole = load()
    assert reads == sorted(TASKS)
    archive_delta(registry, "place@1")
    assert load().tasks == ("animals", "mood")
    assert reads == ["place"]
    promote_delta(registry, "place@1")
    again = load()
    assert reads == ["place"]
    torch.testing.assert_close(again.log_p(features), whole.log_p(features), rtol=1e-4, atol=1e-4)
    load()
    assert reads == []
    purge_task(registry, "mood")
    assert [*registry.blobs.iterate_derived()] == [], "a purge leaves no sums that the task is part of"


def test_a_learner_sees_each_change_of_the_champions(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["good", "a cat"]
    loads: list[set[str]] = []

    def load(registry: Registry, backbone: Any, champions: Any, **options: Any) -> Any:
        loads.append(set(champions))
        return load_router(registry, backbone, champions, **options)

    monkeypatch.setattr("continual.inference.predictor.load_router", load)
    learner.predict(texts)
    learner.predict(texts)
    assert loads == [{*TASKS}], "the second call uses the router of the first"
    before = [*learner.registry.blobs.iterate_derived()]
    archive_delta(learner.registry, "place@1")
    assert {prediction.task for prediction in learner.predict(texts, false_abstentions=0)} <= {"animals", "mood"}
    assert before != [*learner.registry.blobs.iterate_derived()], "what is out of date is deleted"
    promote_delta(learner.registry, "place@1")
    learner.predict(texts)
    assert len([*learner.registry.blobs.iterate_derived()]) == 1
    purge_task(learner.registry, "mood")
    assert [*learner.registry.blobs.iterate_derived()] == [], "a purge leaves nothing that was learned of the task"
    learner.predict(texts)
    assert loads[1:] == [{"animals", "mood"}, {*TASKS}, {"animals", "place"}]
    (file,) = learner.registry.blobs.iterate_derived()
    learner.registry.blobs.put_derived("unknown/router", b"data")
    assert [blob.name for blob in collect_garbage(learner.registry)] == ["unknown/router"]
    assert [*learner.registry.blobs.iterate_derived()] == [file]


def test_a_new_task_is_routed_to_by_the_same_learner(bert_folder: Path, tmp_path: Path) -> None:
    text = rows_of("place", 1, seed=9).texts[0]
    with open_home(bert_folder, tmp_path / "home") as learner:
        for task in ("mood", "place"):
            entry = write_task(tmp_path, task) | {"method": {"name": "lora", "rank": 2}, "budget": BUDGET}
            (tmp_path / f"{task}.yaml").write_text(yaml.safe_dump(entry))
            learner.learn(read_task(tmp_path / f"{task}.yaml"))
            assert learner.predict([text], false_abstentions=0)[0].task == task


def test_a_router_that_cannot_be_stored_is_built_all_the_same(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BlobError("no permission")

    monkeypatch.setattr(BlobStore, "put_derived", refuse)
    assert learner.predict(["good"], false_abstentions=0)[0].task in TASKS
    assert [*learner.registry.blobs.iterate_derived()] == []
