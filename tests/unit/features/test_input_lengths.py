"""Input lengths: methods that add tokens shorten the text, and longer texts are truncated."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from continual import Learner, read_stream
from continual.backbones.backbone import Backbone
from continual.deltas import attached, init_values
from continual.errors import MethodError
from continual.features.tokens import reserve_tokens, tokenize
from continual.kinds import ForwardContext
from continual.kinds.generation import Generation
from continual.settings import resolve_locations
from continual.streams.audit import audit_stream
from continual.streams.preflight import load_and_check
from registry import Registry
from tasks import GenerationTarget, LabelledTexts
from tasks.errors import InputError
from tests.conftest import backbone_of
from tests.helpers.tiny_models import POSITIONS
from tests.helpers.tiny_tasks import fresh_delta, save_backbone, write_task

LONG = "the wave of the coral tide " * 30
SHIFTED = {"length": 5, "shift_positions": True}
ADDED: list[tuple[str, dict[str, Any], int]] = [
    ("prompt", {"length": 5}, 5),
    ("prefix", {"length": 5}, 0),
    ("prefix", SHIFTED, 5),
    ("mam", SHIFTED, 5),
    ("lora", {}, 0),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("method", "settings", "added"), ADDED)
def test_added_tokens_shorten_the_text(bertlike: Backbone, method: str, settings: dict[str, Any], added: int) -> None:
    chosen = fresh_delta(bertlike, method, **settings).settings
    assert chosen.added_tokens == added
    roomy = reserve_tokens(bertlike, chosen)
    assert roomy.longest_input == bertlike.longest_input - added
    assert tokenize(roomy, [LONG], max_length=100_000).lengths == [roomy.longest_input]
    assert reserve_tokens(roomy, fresh_delta(bertlike, "lora").settings).longest_input == bertlike.longest_input


def test_added_tokens_of_parts_add_up(bert: Backbone) -> None:
    parts = [{"name": "prompt", "length": 3}, {"name": "prefix", "length": 4, "shift_positions": True}]
    assert fresh_delta(bert, "union", parts=parts).settings.added_tokens == 7
    assert fresh_delta(bert, "sequential", parts=parts).settings.added_tokens == 7


def test_a_method_that_leaves_no_room_is_refused(bert: Backbone) -> None:
    with pytest.raises(MethodError, match=r"adds 33 tokens.*takes 40.*32 at most"):
        reserve_tokens(bert, fresh_delta(bert, "prompt", length=33).settings)


def write_stream(folder: Path, length: int) -> Path:
    """Write a stream of three tasks with a long text per split; only the second one's delta adds no tokens."""
    budget = {"epochs": 1, "batch_size": 16, "learning_rate": 0.01, "max_length": 100_000}
    methods = {
        "mood": {"name": "prompt", "length": length},
        "animals": {"name": "lora"},
        "place": {"name": "prefix", "length": length, "shift_positions": True},
    }
    entries = []
    for task, method in methods.items():
        entries.append(write_task(folder, task) | {"method": method})
        for split in ("train", "validation", "test"):
            path = folder / task / f"{split}.jsonl"
            first = json.loads(path.read_text().splitlines()[0])
            path.write_text(path.read_text() + json.dumps({**first, "text": f"{first['text']} {LONG}"}) + "\n")
    content = {"name": "long", "budget": budget, "warm_start": "auto", "measure_gain": True, "tasks": entries}
    (folder / "stream.yaml").write_text(json.dumps(content))
    return folder / "stream.yaml"


def open_home(backbone: Backbone, folder: Path) -> Learner:
    places = resolve_locations(folder / "home", {})
    folder = save_backbone(backbone, folder / "backbone")
    return Learner.open(str(folder), Registry.open(places.registry, places.blobs), device="cpu", dtype="float32")


def test_long_texts_are_learned_and_answered_for_every_task(bertlike: Backbone, tmp_path: Path) -> None:
    stream = read_stream(write_stream(tmp_path, length=20))
    with open_home(bertlike, tmp_path) as learner:
        assert learner.run(stream) == {}
        for task in (None, "animals", "mood", "place"):
            assert len(learner.predict([LONG, "wave"], task=task)) == 2
        assert all(audit.identical for audit in audit_stream(learner.backbone, learner.registry, stream))


def test_a_method_without_room_is_refused_before_training(bert: Backbone, tmp_path: Path) -> None:
    stream = read_stream(write_stream(tmp_path, length=39))
    with open_home(bert, tmp_path) as learner:
        with pytest.raises(InputError, match=r"mood.*adds 39 tokens[\s\S]*place.*adds 39 tokens"):
            load_and_check(learner.backbone, learner.registry, stream)
        assert learner.registry.deltas() == []


@pytest.mark.parametrize(
    ("method", "settings"), [("prompt", {"length": 10}), ("prefix", {"length": 10, "shift_positions": True})]
)
@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama", "t5", "bart"])
def test_a_long_text_leaves_room_for_the_generated_answer(kind: str, method: str, settings: dict[str, Any]) -> None:
    delta = fresh_delta(backbone_of(kind), method, **settings)
    writer = reserve_tokens(replace(backbone_of(kind), generates=True), delta.settings)
    delta = replace(delta, head=None, values=init_values(writer, delta.settings, seed=0))
    answers = Generation(longest=9)
    rows = answers.prepare(writer, LabelledTexts((LONG,), (GenerationTarget(LONG, (LONG,)),)), max_length=100_000)
    if writer.architecture == "causal":
        assert len(rows.prompts[0]) + len(rows.targets[0]) + 10 == POSITIONS
    with attached(writer, delta):
        assert answers.loss(writer, delta, rows, [0]).isfinite()
    assert len(answers.answers(writer, answers.outputs(ForwardContext(writer, delta, rows), None), rows)) == 1
