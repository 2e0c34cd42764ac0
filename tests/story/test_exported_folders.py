"""Exported folders as a stranger uses them: the pipeline of transformers, the model card, and the modes of files."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from transformers import AutoModel

from continual import Learner
from continual.backbones.backbone import Backbone
from continual.deltas import load_delta
from registry import Registry
from tasks import Method, Stream, TaskSpec
from tests.helpers.tiny_tasks import rows_of, save_backbone, tiny_backbone, write_task

TEXTS = ["purr meow", *map(str, rows_of("mood", 5, seed=7).texts), "the awful dull tower of sugar and honey " * 5]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(f"sqlite:///{tmp_path / 'registry.db'}", str(tmp_path / "blobs")) as opened:
        yield opened


def mood(folder: Path, **changes: Any) -> Stream:
    spec = write_task(folder, "mood") | {"budget": {"epochs": 1, "max_length": 16, "learning_rate": 0.05}} | changes
    return Stream(name="mood", tasks=(TaskSpec.model_validate(spec),), folder=folder, method=Method(name="lora"))


def learn_and_export(learner: Learner, folder: Path, form: str = "transformers", **changes: Any) -> Path:
    learner.learn(mood(folder, **changes))
    learner.export("mood@1", folder / "out", form=form)
    return folder / "out"


def classify(folder: Path, texts: list[Any], **options: Any) -> Any:
    return transformers.pipeline("text-classification", model=str(folder), device="cpu")(
        texts, truncation=True, **options
    )


def assert_pipeline_answers_as(learner: Learner, folder: Path, *, tolerance: float) -> None:
    ours = learner.predict(TEXTS, "mood")
    for batch_size in (1, len(TEXTS)):
        theirs = classify(folder, TEXTS, batch_size=batch_size)
        assert [answer["label"] for answer in theirs] == [answer.label for answer in ours]
        expected = pytest.approx([answer.score for answer in ours], abs=tolerance)
        assert [answer["score"] for answer in theirs] == expected


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_a_pipeline_answers_as_the_learner(registry: Registry, tmp_path: Path, family: str, pooling: Any) -> None:
    learner = Learner(replace(tiny_backbone(family), pooling=pooling), registry)
    out = learn_and_export(learner, tmp_path)
    # Outputs of these heads are in the hundreds, so that the learner's too are only so near those in float64.
    assert_pipeline_answers_as(learner, out, tolerance=1e-4)
    (everything,) = classify(out, TEXTS[:1], top_k=None)
    assert {answer["label"] for answer in everything} == {"bad", "good"}
    pair = ("purr", "the dull tower")
    (theirs,) = classify(out, [dict(zip(("text", "text_pair"), pair, strict=True))])
    assert theirs["score"] == pytest.approx(learner.predict([pair], "mood")[0].score, abs=1e-4)


def test_a_pipeline_answers_as_a_pretrained_encoder(registry: Registry, tmp_path: Path, minilm: Backbone) -> None:
    learner = Learner(minilm, registry)
    out = learn_and_export(learner, tmp_path, budget={"epochs": 0, "max_length": 16})
    assert_pipeline_answers_as(learner, out, tolerance=2e-6)


def test_a_pipeline_answers_a_regression_in_its_unit(registry: Registry, tmp_path: Path, bert: Backbone) -> None:
    texts = list(map(str, rows_of("mood", 60).texts))
    lines = (json.dumps({"text": text, "value": 1e4 + 100.0 * len(text.split())}) for text in texts)
    (tmp_path / "words.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    source = {"path": "json", "data_files": {"train": "words.jsonl"}}
    learner = Learner(bert, registry)
    out = learn_and_export(learner, tmp_path, kind="regression", label="value", source=source)
    ours = [answer.label for answer in learner.predict(TEXTS, "mood")]
    assert [answer["score"] for answer in classify(out, TEXTS)] == pytest.approx(ours, rel=1e-5)


def test_without_its_last_layer_a_classifier_returns_the_states_of_the_delta(
    registry: Registry, tmp_path: Path, bert: Backbone
) -> None:
    learner = Learner(bert, registry)
    out = learn_and_export(learner, tmp_path)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f'AutoModel.from_pretrained("DIR", num_hidden_layers={bert.num_layers})' in card
    assert AutoModel.from_pretrained(out).config.num_hidden_layers == bert.num_layers + 1
    model = AutoModel.from_pretrained(out, num_hidden_layers=bert.num_layers).eval()
    batch = bert.tokenizer(TEXTS[0], return_tensors="pt")
    delta = load_delta(registry.blobs.get(str(registry.delta("mood@1").digest)))
    with torch.no_grad():
        assert delta.head is not None
        scores = delta.head(model(**batch).last_hidden_state.mean(1)).softmax(1)
    assert float(scores.max()) == pytest.approx(learner.predict(TEXTS[:1], "mood")[0].score, abs=1e-5)


def run_card(card: str, backbone: Backbone, out: Path) -> dict[str, Any]:
    """Run the lines of a model card on one of the texts; return their names."""
    code = "\n".join(card.split("```python\n")[i].split("```")[0] for i in range(1, card.count("```python") + 1))
    folder = save_backbone(backbone, out.parent / "backbone")
    names: dict[str, Any] = {}
    exec(code.replace("DIR", str(out)).replace(backbone.name, str(folder)).replace("a text", TEXTS[1]), names)
    return names


@pytest.mark.parametrize("form", ["peft", "transformers"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_head_on_a_lower_layer_is_exported(
    registry: Registry, tmp_path: Path, family: str, pooling: str, form: str
) -> None:
    pytest.importorskip("peft")
    learner = Learner(tiny_backbone(family), registry)
    out = learn_and_export(learner, tmp_path, form, readout={"pooling": pooling, "layers": 1})
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "state behind 1 layers" in card or "states behind 1 layers" in card
    head = json.loads((out / "head.json").read_text())
    assert (head["pooling"], head["layer"]) == (pooling, 0 if form == "peft" else -1)
    if form == "transformers":
        assert AutoModel.from_pretrained(out).config.num_hidden_layers == 1
    score = float(run_card(card, learner.backbone, out)["probabilities"].max())
    assert score == pytest.approx(learner.predict(TEXTS[1:2], "mood")[0].score, abs=1e-5)
    if form == "peft":
        learner.import_peft(out, "mood")
        again = load_delta(registry.blobs.get(str(registry.delta("mood@2").digest)))
        assert again.head is not None
        assert again.head.layers == 1


@pytest.mark.parametrize("form", ["peft", "transformers"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_a_model_card_says_how_its_folder_answers(
    registry: Registry, tmp_path: Path, family: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    learner = Learner(tiny_backbone(family), registry)
    out = learn_and_export(learner, tmp_path, form)
    card = (out / "README.md").read_text(encoding="utf-8")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == form
    stored = registry.delta("mood@1")
    assert stored.data is not None
    for fact in ("# mood@1", "classification", "bad, good", "accuracy", *stored.data.fingerprints.values()):
        assert fact in body
    texts = [text for split, n in enumerate((60, 20, 12)) for text in rows_of("mood", n, seed=split).texts]
    assert not [text for text in texts if str(text) in card]
    names = run_card(body, learner.backbone, out)
    expected = learner.predict(TEXTS[1:2], "mood")[0].score
    if "classify" in names:
        assert (family, form) == ("bert", "transformers")
        assert names["classify"](TEXTS[1], truncation=True)[0]["score"] == pytest.approx(expected, abs=1e-5)
    else:
        assert float(names["probabilities"].max()) == pytest.approx(expected, abs=1e-5)
        assert (form == "transformers") == ("cannot answer with this folder" in body)


@pytest.mark.parametrize("form", ["peft", "transformers"])
def test_files_obey_the_umask(registry: Registry, tmp_path: Path, bert: Backbone, form: str) -> None:
    before = os.umask(0o022)
    try:
        out = learn_and_export(Learner(bert, registry), tmp_path, form)
    finally:
        os.umask(before)
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in out.iterdir()} == dict.fromkeys(
        os.listdir(out), "0o644"
    )
