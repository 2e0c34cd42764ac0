"""Deltas exported for vLLM, SGLang and LoRAX: what PEFT computes with the folders, and what is refused by name."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from continual import Learner
from continual.backbones.backbone import Backbone, load_backbone
from continual.deltas import Delta, attached, load_delta
from continual.errors import ExchangeError
from continual.exchange import export_delta
from continual.exchange.engine_adapter import fit_constant
from registry import Registry
from tasks import Method, Stream, TaskSpec
from tests.helpers.cli import CliRunner
from tests.helpers.tiny_tasks import rows_of, save_backbone, tiny_backbone, write_task

peft: Any = pytest.importorskip("peft")

TEXTS = [*map(str, rows_of("mood", 6, seed=7).texts)]
BUDGET = {"epochs": 1, "batch_size": 16, "learning_rate": 0.01, "max_length": 16}
WRITES = {"kind": "generation", "target": "label", "label": None, "readout": None}
LAST = {"pooling": "last"}  # the state that engines read


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tiny_backbone("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def llama(llama_folder: Path) -> Backbone:
    return load_backbone(llama_folder, device="cpu")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(f"sqlite:///{tmp_path / 'registry.db'}", str(tmp_path / "blobs")) as opened:
        yield opened


def task_spec(folder: Path, method: str | Mapping[str, Any], *, task: str = "mood", **changes: Any) -> dict[str, Any]:
    spec = write_task(folder, task, train=24, validation=8) | {"budget": BUDGET, "method": method, "readout": LAST}
    spec |= changes
    return {key: value for key, value in spec.items() if value is not None}


def learn(learner: Learner, folder: Path, method: str | Mapping[str, Any], **changes: Any) -> str:
    spec = TaskSpec.model_validate(task_spec(folder, method, **changes))
    return learner.learn(Stream(name=spec.name, tasks=(spec,), folder=folder, method=Method(name="lora")))


def stored(learner: Learner, name: str) -> Delta:
    return load_delta(learner.registry.blobs.get(learner.registry.delta(name).values))


@torch.no_grad()
def pefts_logits(base: Path, folder: Path, backbone: Backbone, auto_class: Any, **arguments: Any) -> list[Tensor]:
    model = peft.PeftModel.from_pretrained(auto_class.from_pretrained(base, **arguments), folder).eval()
    return [model(**backbone.tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS]


@torch.no_grad()
def our_logits(backbone: Backbone, delta: Delta) -> list[Tensor]:
    with attached(backbone, delta):
        batches = [backbone.tokenizer(text, return_tensors="pt") for text in TEXTS]
        return [backbone.language_model(**batch).logits[0] for batch in batches]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_writing_task_is_exported_for_vllm(
    llama: Backbone, llama_folder: Path, registry: Registry, tmp_path: Path, method: str
) -> None:
    learner = Learner(llama, registry)
    name = learn(learner, tmp_path, method, **WRITES)
    exported = export_delta(llama, registry, name, folder=tmp_path / "out", file_format="vllm", rank=32)
    assert exported.files == ("README.md", "adapter_config.json", "adapter_model.safetensors")
    backbone = replace(llama, generates=True)
    ours = our_logits(backbone, stored(learner, name))
    theirs = pefts_logits(llama_folder, tmp_path / "out", llama, AutoModelForCausalLM)
    for expected, logits in zip(ours, theirs, strict=True):
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(llama_folder)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"vllm serve {llama_folder} --enable-lora --max-loras 1 --max-lora-rank" in card
    assert "--lora-modules mood=DIR" in card
    assert "AutoModelForCausalLM" in card
    assert exported.engine_adapter
    change = exported.engine_adapter.score_change
    if method == "lora":
        assert "the delta itself, of rank 8" in card
        assert change is None
    else:
        assert change
        assert change.before == change.after
        assert f"On 12 test rows: {change.metric}\n{change.before:.4f} with the delta" in card


def test_a_head_is_exported_as_a_sequence_classifier(
    llama: Backbone, llama_folder: Path, registry: Registry, tmp_path: Path
) -> None:
    learner = Learner(llama, registry)
    name = learn(learner, tmp_path, "lora")
    exported = export_delta(llama, registry, name, folder=tmp_path / "out", file_format="vllm")
    adapter = exported.engine_adapter
    assert adapter
    assert adapter.labels == ("bad", "good")
    assert adapter.score_change, "the head's bias was expressed without one"
    assert adapter.score_change.after == pytest.approx(adapter.score_change.before, abs=0.1)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    card = (tmp_path / "out" / "README.md").read_text()
    overrides = shlex.quote('{"num_labels": 2}')
    assert f"--runner pooling --convert classify --hf-overrides {overrides} --enable-lora" in card
    theirs = pefts_logits(llama_folder, tmp_path / "out", llama, AutoModelForSequenceClassification, num_labels=2)
    labels = [adapter.labels[int(logits.argmax())] for logits in theirs]
    ours = [answer.label for answer in learner.predict(TEXTS, "mood")]
    assert sum(label == our for label, our in zip(labels, ours, strict=True)) >= len(TEXTS) - 1
    code = card.split("```python\n")[1].split("```")[0] + card.split("```python\n")[2].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace('"DIR"', repr(str(tmp_path / "out"))).replace("a text", TEXTS[0]), names)
    torch.testing.assert_close(names["probabilities"][0], theirs[0].softmax(-1))


def test_an_exported_sequence_classifier_is_imported_again(llama: Backbone, registry: Registry, tmp_path: Path) -> None:
    learner = Learner(llama, registry)
    name = learn(learner, tmp_path, "lora")
    learner.export(name, tmp_path / "out", form="vllm")
    head = stored(learner, learner.import_peft(tmp_path / "out", "mood")).head
    assert head
    assert (head.labels, head.pooling) == (("bad", "good"), "last")


def test_a_constant_is_fitted_by_a_direction() -> None:
    vectors = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)) + 3
    vectors[:, 0] = 2.0
    torch.testing.assert_close(vectors @ fit_constant(vectors), torch.ones(200), rtol=0, atol=0.02)


def test_a_head_whose_rows_are_gone_is_refused(llama: Backbone, registry: Registry, tmp_path: Path) -> None:
    learner = Learner(llama, registry)
    name = learn(learner, tmp_path, "lora")
    (tmp_path / "mood" / "train.jsonl").unlink()
    with pytest.raises(ExchangeError, match=r"mood@1: .* has no bias, and the rows .* cannot be read.*--format peft"):
        learner.export(name, tmp_path / "out", form="vllm")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_cannot_be_measured_is_said(llama: Backbone, registry: Registry, tmp_path: Path) -> None:
    learner = Learner(llama, registry)
    name = learn(learner, tmp_path, {"name": "loha", "rank": 4}, **WRITES)
    (tmp_path / "mood" / "test.jsonl").unlink()
    exported = export_delta(llama, registry, name, folder=tmp_path / "out", file_format="sglang", rank=3)
    assert exported.engine_adapter
    assert (exported.engine_adapter.rank, exported.engine_adapter.score_change) == (3, None)
    assert exported.engine_adapter.unmeasured
    assert "was not measured: the rows cannot be read again" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("form", "family", "changes", "reason"),
    [
        ("vllm", "gpt2", WRITES, "vLLM serves gpt2 models without LoRA. --format transformers"),
        ("vllm", "bert", {}, "over causal language models, and a bert model is none. --format transformers"),
        ("sglang", "llama", {}, "SGLang takes adapters that write text, and its head .* --format peft"),
        (
            "vllm",
            "llama",
            {"readout": {"pooling": "mean"}},
            "vLLM reads the state of the last token, and its head the pooling 'mean' .*pooling: last.* --format peft",
        ),
        (
            "vllm",
            "llama",
            {"readout": LAST | {"layers": 1}},
            "vLLM runs all layers of the backbone, and its head reads the states behind 1 .* --format peft",
        ),
        ("sglang", "opt", WRITES, "SGLang takes no LoRA at fc1, fc2, out_proj of a opt model"),
        ("lorax", "llama", WRITES | {"method": "full"}, "LoRAX takes no LoRA at embed_tokens of a llama model"),
        ("lorax", "qwen3", WRITES, "LoRAX serves qwen3 models without LoRA"),
        ("vllm", "llama", WRITES | {"method": "prefix"}, "cannot be folded into the weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_an_engine_cannot_load_is_refused_by_name(
    registry: Registry, tmp_path: Path, form: str, family: str, changes: dict[str, Any], reason: str
) -> None:
    learner = Learner(tiny_backbone(family), registry)
    name = learn(learner, tmp_path, **({"method": "lora"} | changes))
    with pytest.raises(ExchangeError, match=reason):
        learner.export(name, tmp_path / "out", form=form)


def test_lorax_takes_gpt2(registry: Registry, tmp_path: Path) -> None:
    backbone = tiny_backbone("gpt2")
    learner = Learner(backbone, registry)
    learner.export(learn(learner, tmp_path, "lora", **WRITES), tmp_path / "out", form="lorax")
    base = save_backbone(backbone, tmp_path / "base")
    theirs = pefts_logits(base, tmp_path / "out", backbone, AutoModelForCausalLM)
    ours = our_logits(replace(backbone, generates=True), stored(learner, "mood@1"))
    for expected, logits in zip(ours, theirs, strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_all_champions_are_exported_by_one_command(cli: CliRunner, tmp_path: Path, llama_folder: Path) -> None:
    methods: dict[str, str | dict[str, Any]] = {"mood": "lora", "place": {"name": "loha", "rank": 2}, "food": "prefix"}
    tasks = [task_spec(tmp_path, method, task=name, **WRITES) for name, method in methods.items()]
    stream = {"name": "small", "backbone": str(llama_folder), "budget": BUDGET, "tasks": tasks}
    (tmp_path / "small.yaml").write_text(json.dumps(stream), encoding="utf-8")
    assert cli("run", str(tmp_path / "small.yaml")).code == 0
    folder = tmp_path / "adapters"
    result = cli("export", "--all", str(folder), "--format", "vllm", "--rank", "12", "--json")
    assert result.code == 0, result.err
    mood, place, food = result.json
    assert mood.keys() == place.keys() == food.keys()
    assert [row["delta"] for row in result.json] == ["mood@1", "place@1", "food@1"]
    assert (mood["rank"], mood["weight_error"]) == (8, None)
    assert 1 <= place["rank"] <= 4, "of a Hadamard product of two changes of rank 2"
    assert 0 <= place["weight_error"] < 1e-5
    assert place["score_after"] == pytest.approx(place["score_before"], abs=0.02)
    assert "no change of a weight" in food["obstacle"]
    assert sorted(path.name for path in folder.iterdir()) == ["mood@1", "place@1"]
    served = f"--lora-modules mood={folder}/mood@1 place={folder}/place@1"
    assert mood["command"] == place["command"]
    assert mood["command"].startswith(f"vllm serve {llama_folder} --enable-lora --max-loras 2 --max-lora-rank 8 ")
    assert mood["command"].endswith(served)
    assert served in result.err
    again = cli("export", "--all", str(folder), "--format", "vllm")
    assert again.code == 2
    assert "not empty" in again.err
    assert cli("export", "mood@1", str(tmp_path / "one"), "--format", "sglang").code == 0
    for words in (["--all", "mood@1", "out"], ["mood@1"], ["mood@1", str(tmp_path / "p"), "--rank", "4"]):
        assert cli("export", *words).code == 2
