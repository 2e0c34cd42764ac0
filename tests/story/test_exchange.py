"""Export and import of deltas: used by other libraries, and imported as new versions."""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from continual import Learner
from continual.backbones.backbone import Backbone, load_backbone
from continual.deltas import Delta, load_delta
from continual.errors import DeltaError, ExchangeError
from continual.features.pooling import encode, pool
from continual.features.tokens import pad, tokenize
from continual.learning.record import delta_record
from registry import Registry, Score, find_damage
from registry.errors import NotFound
from tasks import Budget, Method, Stream, TaskSpec
from tasks.errors import InputError
from tests.helpers.registries import digest_of
from tests.helpers.tiny_tasks import (
    PEFT_SETTINGS,
    head_of,
    labels_of,
    logits,
    perturbed_delta,
    rows_of,
    tiny_backbone,
    write_task,
)

TEXTS = list(rows_of("mood", 6, seed=7).texts)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(f"sqlite:///{tmp_path / 'registry.db'}", str(tmp_path / "blobs")) as opened:
        yield opened


@pytest.fixture(scope="module")
def gpt2() -> Backbone:
    return tiny_backbone("gpt2")


@pytest.fixture
def learner(bert: Backbone, registry: Registry) -> Learner:
    return Learner(bert, registry)


def mood(folder: Path, method: str = "lora", **settings: object) -> Stream:
    spec = TaskSpec.model_validate(write_task(folder, "mood") | {"budget": {"epochs": 1, "max_length": 16}})
    return Stream(
        name="mood",
        tasks=(spec,),
        folder=folder,
        method=Method.model_validate({"name": method, **settings}),
        budget=Budget(learning_rate=1e-2, batch_size=8),
    )


def registered(learner: Learner, folder: Path, method: str) -> str:
    """Register a version of task mood with perturbed values: tiny tasks are learned by their heads alone."""
    learner.learn(mood(folder))
    delta = perturbed_delta(learner.backbone, method, **PEFT_SETTINGS.get(method, {}))
    settings = Budget(max_length=16)
    task_record = learner.registry.task("mood")
    record = delta_record(
        learner.registry.blobs, learner.backbone, delta, task=task_record, budget=settings, warm_start="scratch"
    )
    scores = [Score(split=split, metric="accuracy", value=1.0, rows=9) for split in ("validation", "test")]
    with learner.registry.unit_of_work() as unit:
        return unit.add_delta(record, scores=scores)


def stored(learner: Learner, name: str) -> Delta:
    return load_delta(learner.registry.blobs.get(digest_of(learner.registry, name)))


def answers(learner: Learner, name: str) -> torch.Tensor:
    return logits(learner.backbone, stored(learner, name), tokenize(learner.backbone, TEXTS, max_length=16))


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "prefix", "prompt"])
def test_an_imported_delta_has_the_same_answers(learner: Learner, tmp_path: Path, method: str) -> None:
    assert registered(learner, tmp_path, method) == "mood@2"
    out = tmp_path / "out"
    files = learner.export("mood@2", out)
    assert files == ("README.md", "adapter_config.json", "adapter_model.safetensors", "head.json", "head.safetensors")
    assert learner.import_peft(out, "mood") == "mood@3"
    torch.testing.assert_close(answers(learner, "mood@3"), answers(learner, "mood@2"), rtol=1e-4, atol=1e-5)
    new = learner.registry.delta("mood@3")
    assert (new.status, new.warm_start, new.method) == ("candidate", "imported", method)
    assert "no validation accuracy" in str(new.reason)
    assert new.budget["max_length"] == 16
    (edge,) = learner.registry.lineage("mood@3")
    assert (edge["parent"], edge["kind"], edge["weight"]) == ("mood@2", "import", 1.0)
    assert learner.predict(TEXTS, "mood")[0].delta == "mood@2"
    assert not find_damage(learner.registry)


def test_an_import_with_rows_is_scored_and_can_serve(learner: Learner, tmp_path: Path) -> None:
    task = mood(tmp_path)
    learner.learn(task)
    learner.export("mood@1", tmp_path / "out")
    before = learner.predict(TEXTS, "mood")
    assert learner.import_peft(tmp_path / "out", "mood", rows=task) == "mood@2"
    assert learner.registry.delta("mood@2").status == "champion", "as good on the validation rows"
    after = learner.predict(TEXTS, "mood")
    assert [(p.label, p.delta) for p in after] == [(p.label, "mood@2") for p in before]
    assert [p.score for p in after] == pytest.approx([p.score for p in before], abs=1e-5)
    scores = {(s.delta, s.split): s.value for s in learner.registry.scores(task="mood", mode="oracle")}
    assert scores["mood@2", "test"] == scores["mood@1", "test"]
    assert scores["mood@2", "validation"] == scores["mood@1", "validation"]
    assert learner.predict(TEXTS)[0].routed


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_imported_delta_is_equal_to_the_bit(
    learner: Learner, tmp_path: Path, dtype: torch.dtype, *, scored: bool
) -> None:
    registered(learner, tmp_path, "lora")
    learner.export("mood@2", tmp_path / "out")
    file = tmp_path / "out" / "adapter_model.safetensors"
    values = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(values, file)
    name = learner.import_peft(tmp_path / "out", "mood", rows=mood(tmp_path) if scored else None)
    stored_values = stored(learner, name).values.values()
    assert all(tensor.dtype == torch.float32 for tensor in stored_values)
    file_values = sorted(tensor.float().numpy().tobytes() for tensor in values.values())
    assert sorted(tensor.numpy().tobytes() for tensor in stored_values) == file_values


def test_a_missing_head_is_fitted_on_the_rows(learner: Learner, tmp_path: Path) -> None:
    task, out = mood(tmp_path), tmp_path / "out"
    learner.learn(task)
    learner.export("mood@1", out)
    (out / "head.json").unlink()
    (out / "head.safetensors").unlink()
    with pytest.raises(ExchangeError, match=r"no head.*--rows"):
        learner.import_peft(out, "mood")
    assert learner.import_peft(out, "mood", rows=task) == "mood@2"
    (score,) = learner.registry.scores(delta="mood@2", split="test")
    assert score.value > 0.7


def test_importing_into_a_new_home_needs_the_tasks_rows(learner: Learner, tmp_path: Path, bert: Backbone) -> None:
    learner.learn(mood(tmp_path))
    learner.export("mood@1", tmp_path / "out")
    with Registry.open(f"sqlite:///{tmp_path / 'other.db'}", str(tmp_path / "other")) as registry:
        new_home = Learner(bert, registry)
        with pytest.raises(NotFound, match="mood"):
            new_home.import_peft(tmp_path / "out", "mood")
        assert new_home.import_peft(tmp_path / "out", "mood", rows=mood(tmp_path)) == "mood@1"
        assert new_home.predict(TEXTS, false_abstentions=0)[0].task == "mood"
        assert registry.lineage("mood@1") == []


def test_labels_are_reordered_and_other_labels_refused(learner: Learner, tmp_path: Path) -> None:
    learner.learn(mood(tmp_path))
    learner.export("mood@1", tmp_path / "out")
    about, head = tmp_path / "out" / "head.json", tmp_path / "out" / "head.safetensors"
    document = json.loads(about.read_text())
    about.write_text(json.dumps(document | {"labels": document["labels"][::-1]}))
    save_file({name: tensor.flip(0).contiguous() for name, tensor in load_file(head).items()}, head)
    learner.import_peft(tmp_path / "out", "mood")
    assert head_of(stored(learner, "mood@2")).labels == labels_of("mood")
    torch.testing.assert_close(answers(learner, "mood@2"), answers(learner, "mood@1"))
    about.write_text(json.dumps(document | {"labels": ["bad", "fine"]}))
    with pytest.raises(ExchangeError, match=r"'fine'.*the task has \['bad', 'good'\]"):
        learner.import_peft(tmp_path / "out", "mood")


def test_another_backbone_is_refused(learner: Learner, tmp_path: Path) -> None:
    learner.learn(mood(tmp_path))
    out = tmp_path / "out"
    other_learner = Learner(tiny_backbone("bert", seed=1), learner.registry)
    with pytest.raises(DeltaError, match="learned on backbone"):
        other_learner.export("mood@1", out)
    learner.export("mood@1", out)
    with pytest.raises(ExchangeError, match=r"exported from backbone .* \(tiny-bert\)"):
        other_learner.import_peft(out, "mood")
    save_file(load_file(out / "adapter_model.safetensors"), out / "adapter_model.safetensors")  # without our metadata
    named = Learner(replace(other_learner.backbone, name="another"), learner.registry)
    with pytest.raises(ExchangeError, match=r"trained on 'tiny-bert', and the backbone is 'another'"):
        named.import_peft(out, "mood")
    config = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    assert named.import_peft(out, "mood") == "mood@2", "by shapes alone, as was asked for"


def classifier_adapter(backbone: Backbone, folder: Path, names: tuple[str, ...]) -> Any:
    """Write an adapter of PEFT's for a sequence classifier of the backbone, with a classifier; return the model."""
    peft: Any = pytest.importorskip("peft")
    config = deepcopy(backbone.model.config)
    config.update({"num_labels": len(names), "id2label": dict(enumerate(names))})
    config.pad_token_id = backbone.tokenizer.pad_token_id
    plain = AutoModelForSequenceClassification.from_config(config)
    plain.base_model.load_state_dict(backbone.model.state_dict(), strict=False)
    model = peft.get_peft_model(plain, peft.LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS")).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    config.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt-narrow"])
def test_a_saved_score_becomes_the_head(
    registry: Registry, tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    learner = Learner(tiny_backbone(family), registry)
    learner.learn(mood(tmp_path))
    model = classifier_adapter(learner.backbone, tmp_path / "out", ("good", "bad"))
    assert learner.import_peft(tmp_path / "out", "mood") == "mood@2"
    batch = pad(learner.backbone, tokenize(learner.backbone, TEXTS, max_length=16), range(len(TEXTS)))
    with torch.no_grad():
        expected = model(**batch).logits.flip(1)  # the head has the labels in the task's order
    torch.testing.assert_close(answers(learner, "mood@2"), expected, rtol=1e-4, atol=1e-4)
    assert head_of(stored(learner, "mood@2")).pooling == "last"
    assert [record.message for record in caplog.records if record.name == "continual.exchange.importing"] == [
        "mood@2: it could not be proved that the adapter was trained on backbone "
        f"'tiny-{family}': adapter_config.json records no base. The shapes of its tensors fit; give the task's rows "
        "(--rows TASK.yaml), if you have not, and look at the score"
    ]
    learner.export("mood@2", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "head.json").read_text())["pooling"] == "last"
    assert learner.import_peft(tmp_path / "again", "mood") == "mood@3"
    torch.testing.assert_close(answers(learner, "mood@3"), expected, rtol=1e-4, atol=1e-4)


def test_a_classifier_on_a_pooler_is_replaced_by_a_head_of_the_rows(
    learner: Learner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, out = mood(tmp_path), tmp_path / "out"
    learner.learn(task)
    classifier_adapter(learner.backbone, out, ("bad", "good"))
    with pytest.raises(ExchangeError, match=r"no head.*\(classifier\) is not linear.*pooler's output.*--rows"):
        learner.import_peft(out, "mood")
    assert learner.import_peft(out, "mood", rows=task) == "mood@2"
    (score,) = learner.registry.scores(delta="mood@2", split="test")
    assert score.value > 0.7
    messages = " ".join(record.message for record in caplog.records)
    assert "pooler's output tanh(W h + b), not the state h of the first token; the head was fitted on the" in messages
    assert "the tensors of classifier were left out: a head reads the last states" in messages


def test_rows_of_another_task_are_refused(learner: Learner, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not of 'place'"):
        learner.import_peft(tmp_path, "place", rows=mood(tmp_path))


def test_a_champion_without_a_signature_is_not_routed_to(learner: Learner, tmp_path: Path) -> None:
    learner.learn(mood(tmp_path))
    learner.export("mood@1", tmp_path / "out")
    twin = Learner(replace(learner.backbone, fingerprint="1" * 64), learner.registry)
    save_file(load_file(tmp_path / "out" / "adapter_model.safetensors"), tmp_path / "out" / "adapter_model.safetensors")
    assert twin.import_peft(tmp_path / "out", "mood") == "mood@2"
    assert learner.registry.delta("mood@2").status == "champion", "the first on its backbone"
    assert twin.predict(TEXTS, "mood")[0].delta == "mood@2"
    with pytest.raises(InputError, match=r"no task on this backbone has a signature.*mood"):
        twin.predict(TEXTS)


def test_a_merged_model_is_loaded_by_transformers_and_as_a_backbone(learner: Learner, tmp_path: Path) -> None:
    name, out = registered(learner, tmp_path, "lora"), tmp_path / "out"
    learner.export(name, out, form="transformers")
    batch = pad(learner.backbone, tokenize(learner.backbone, TEXTS, max_length=16), range(len(TEXTS)))
    with torch.no_grad():
        states = AutoModel.from_pretrained(out).eval()(**batch).last_hidden_state
    about, head = json.loads((out / "head.json").read_text()), load_file(out / "head.safetensors")
    scores = pool(states, batch["attention_mask"], about["pooling"]) @ head["weight"].T + head["bias"]
    torch.testing.assert_close(scores, answers(learner, name), rtol=1e-4, atol=1e-4)
    assert load_backbone(str(out), device="cpu").fingerprint != learner.backbone.fingerprint


def test_a_failed_export_leaves_no_folder(learner: Learner, tmp_path: Path) -> None:
    learner.learn(mood(tmp_path, "adapter", size=4))
    for form, message in (
        ("peft", "no form of a adapter"),
        ("transformers", "no change of a weight"),
        ("onnx", "peft, "),
    ):
        with pytest.raises(ExchangeError, match=message):
            learner.export("mood@1", tmp_path / "out", form=form)
    assert not (tmp_path / "out").exists()
    learner.learn(mood(tmp_path))
    with pytest.raises(ExchangeError, match="not empty"):
        learner.export("mood@2", tmp_path)


LENGTHS = {text: float(len(text.split())) for text in map(str, rows_of("mood", 60).texts)}
OTHER_KINDS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "regression": ({"kind": "regression", "label": "value"}, list(LENGTHS.values())),
    "generation": ({"kind": "generation", "target": "value"}, [text.split()[0] for text in LENGTHS]),
    "template": (
        {
            "label": "value",
            "template": {"text": "{{ text }} it is {{ mask }}", "words": {"few": "awful", "many": "lovely"}},
        },
        ["many" if length > 4 else "few" for length in LENGTHS.values()],
    ),
}


def other_kind(folder: Path, name: str) -> Stream:
    keys, values = OTHER_KINDS[name]
    lines = (json.dumps({"text": text, "value": value}) for text, value in zip(LENGTHS, values, strict=True))
    (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    source = {"path": "json", "data_files": {"train": f"{name}.jsonl"}}
    spec = {"name": name, "source": source, "text": "text", "budget": {"epochs": 1, "max_length": 24}, **keys}
    return Stream(name=name, tasks=(TaskSpec.model_validate(spec),), folder=folder)


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_every_kind_of_task_can_be_imported_again(
    gpt2: Backbone, registry: Registry, tmp_path: Path, name: str
) -> None:
    learner, task, out = Learner(gpt2, registry), other_kind(tmp_path, name), tmp_path / "out"
    learner.learn(task)
    before = learner.predict(TEXTS, name)
    files = learner.export(f"{name}@1", out)
    assert ("head.json" in files) == (name == "regression")
    assert learner.import_peft(out, name) == f"{name}@2"
    assert registry.delta(f"{name}@2").status == "candidate"
    assert learner.import_peft(out, name, rows=task) == f"{name}@3"
    scores = {(s.delta, s.split): s.value for s in registry.scores(task=name, mode="oracle")}
    assert scores[f"{name}@3", "test"] == pytest.approx(scores[f"{name}@1", "test"], rel=1e-4)
    if name != "regression":  # whose score moves with the last bit of its head
        assert registry.delta(f"{name}@3").status == "champion"
    after = learner.predict(TEXTS, name)
    assert [p.label for p in after] == [pytest.approx(p.label) for p in before]


def test_an_exported_regression_head_predicts_in_the_original_unit(
    gpt2: Backbone, registry: Registry, tmp_path: Path
) -> None:
    learner, out = Learner(gpt2, registry), tmp_path / "out"
    learner.learn(other_kind(tmp_path, "regression"))
    learner.export("regression@1", out)
    delta, head = stored(learner, "regression@1"), load_file(out / "head.safetensors")
    vectors = encode(learner.backbone, tokenize(learner.backbone, TEXTS, max_length=24), delta=delta)
    result = (vectors @ head["weight"].T + head["bias"]).squeeze(1).tolist()
    assert result == pytest.approx([p.label for p in learner.predict(TEXTS, "regression")], rel=1e-4)


def test_an_adapter_of_another_kind_of_task_is_refused(gpt2: Backbone, registry: Registry, tmp_path: Path) -> None:
    learner, out = Learner(gpt2, registry), tmp_path / "out"
    learner.learn(mood(tmp_path))
    learner.learn(other_kind(tmp_path, "regression"))
    learner.export("regression@1", out)
    with pytest.raises(ExchangeError, match="is of a regression task, and 'mood' is a classification task"):
        learner.import_peft(out, "mood")
    (out / "head.json").unlink()
    (out / "head.safetensors").unlink()
    with pytest.raises(ExchangeError, match="lost its head"):
        learner.import_peft(out, "regression")
    save_file(load_file(out / "adapter_model.safetensors"), out / "adapter_model.safetensors")
    with pytest.raises(ExchangeError, match="for the answers of a regression delta"):
        learner.import_peft(out, "regression")
