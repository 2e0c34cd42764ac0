"""Classifiers that an adapter saved, as heads."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from continual.exchange.saved_heads import saved_head
from tests.helpers.tiny_tasks import tiny_backbone

LABELS = ("bad", "good")


def with_names(folder: Path, *names: str) -> Path:
    (folder / "config.json").write_text(json.dumps({"id2label": {str(i): name for i, name in enumerate(names)}}))
    return folder


def weights(*modules: str, outputs: int = 2, width: int = 32) -> dict[str, Tensor]:
    return {f"{module}.weight": torch.arange(outputs * width).float().view(outputs, width) for module in modules}


@pytest.mark.parametrize("bias", [False, True])
def test_a_score_of_a_causal_model_is_a_head_on_the_last_token(tmp_path: Path, *, bias: bool) -> None:
    tensors = weights("score") | ({"score.bias": torch.tensor([1.0, 2.0])} if bias else {})
    head, reason = saved_head(tiny_backbone("llama"), tensors, LABELS, folder=with_names(tmp_path, "good", "bad"))
    assert reason == ""
    assert head is not None
    assert (head.labels, head.pooling) == (("good", "bad"), "last")
    assert torch.equal(head.weight, tensors["score.weight"])
    assert head.bias.tolist() == ([1.0, 2.0] if bias else [0.0, 0.0])


def test_labels_that_are_indices_need_no_names(tmp_path: Path) -> None:
    head, _ = saved_head(tiny_backbone("gpt2"), weights("score", outputs=3), ("2", "0", "1"), folder=tmp_path)
    assert head is not None
    assert head.labels == ("0", "1", "2")


@pytest.mark.parametrize(
    ("kind", "tensors", "reason"),
    [
        ("bert", weights("classifier"), r"\(classifier\) is not linear.*pooler's output tanh"),
        ("roberta", weights("classifier.dense", "classifier.out_proj"), r"classifier\.out_proj\).*a tanh between"),
        ("distilbert", weights("pre_classifier", "classifier"), "a ReLU between"),
        ("electra", weights("classifier.dense", "classifier.out_proj"), "a GELU between"),
        ("modernbert", weights("classifier"), "prediction head"),
        ("t5", weights("classification_head.dense"), "decoder"),
        ("gpt2", weights("score", "qa_outputs"), "only a module `score` is"),
        ("gpt2", {"score.lora_A.weight": torch.ones(4, 32)}, "weight and perhaps bias"),
        ("gpt2", weights("score", outputs=3), r"is \[3, 32\], and a head for 2 labels on this backbone is \[2, 32\]"),
        ("gpt2", weights("score", width=16), r"is \[2, 16\]"),
        ("gpt2", weights("score"), r"does not name its outputs; allowed are \['bad', 'good'\] as id2label"),
    ],
)
def test_any_other_classifier_is_none_for_its_own_reason(
    kind: str, tensors: dict[str, Tensor], reason: str, tmp_path: Path
) -> None:
    head, obstacle = saved_head(tiny_backbone(kind), tensors, LABELS, folder=with_names(tmp_path, "LABEL_0", "LABEL_1"))
    assert head is None
    assert re.search(reason, obstacle), obstacle


def test_a_folder_without_a_classifier_has_no_head_and_no_reason(tmp_path: Path) -> None:
    assert saved_head(tiny_backbone("gpt2"), {}, LABELS, folder=tmp_path) == (None, "")
