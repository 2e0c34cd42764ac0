"""Templates with several words for a label, and their calibration by unlabelled rows."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from continual.backbones.backbone import Backbone
from continual.kinds import ForwardContext, kind_from_metadata, kind_metadata
from continual.kinds.template import TemplateClassification, batch_calibration
from continual.learning.prepared import prepare_task
from tasks import LabelledTexts, Template
from tests.conftest import backbone_of
from tests.helpers.studies import task_data

TEXTS = LabelledTexts(("purr meow", "the awful dull tower", "wave"), ("bad", "good", "bad"))
TEXT = "{{ text }} the {{ mask }} of"


def writer(name: str) -> Backbone:
    return replace(backbone_of(name), generates=True)


def logits(backbone: Backbone, kind: TemplateClassification) -> torch.Tensor:
    rows = kind.prepare(backbone, TEXTS, max_length=24)
    return kind.outputs(ForwardContext(backbone, None, rows), None)["logits"]


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_probabilities_of_a_labels_words_are_summed(name: str) -> None:
    backbone = writer(name)
    several = TemplateClassification(Template(text=TEXT, words={"bad": ("awful", "dull broken"), "good": "superb"}))
    scores = [
        logits(backbone, TemplateClassification(Template(text=TEXT, words={"bad": word, "good": "superb"})))
        for word in ("awful", "dull broken")
    ]
    bad = torch.stack([score[:, 0] for score in scores]).logsumexp(dim=0)
    expected = torch.stack([bad, scores[0][:, 1]], dim=1)
    torch.testing.assert_close(logits(backbone, several), expected, rtol=0, atol=1e-4)
    loss = several.loss(backbone, None, several.prepare(backbone, TEXTS, max_length=24), [0, 1, 2])  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(expected, torch.tensor([0, 1, 0])).item(), abs=1e-4
    )
    assert kind_from_metadata(kind_metadata(several)) == several


def test_one_word_is_a_list_of_one() -> None:
    alone, listed = (
        Template(text=TEXT, words={"bad": bad, "good": "superb"}).label_words for bad in ("awful", ("awful",))
    )
    assert alone == listed == {"bad": ("awful",), "good": ("superb",)}
    with pytest.raises(ValidationError, match="'awful' is given twice"):
        Template(text=TEXT, words={"bad": ("awful", "dull"), "good": "awful"})
    with pytest.raises(ValidationError, match="at least 1 item"):
        Template(text=TEXT, words={"bad": (), "good": "awful"})


def test_the_calibration_is_the_log_of_the_mean_answer() -> None:
    scores = torch.tensor([[2.0, 0.0, -1.0], [1.0, 1.0, 0.0]])
    expected = torch.softmax(scores.double(), dim=1).mean(dim=0).log()
    torch.testing.assert_close(batch_calibration(scores), expected)
    shifted = batch_calibration(scores + torch.tensor([[3.0], [-5.0]]))
    torch.testing.assert_close(shifted, expected)  # a constant for each text changes nothing


def test_a_task_is_calibrated_by_its_train_rows_and_a_file_keeps_it() -> None:
    task = prepare_task(backbone_of("gpt2"), task_data("mood"))
    kind = task.with_fitted_kind().kind
    assert isinstance(kind, TemplateClassification)
    assert isinstance(task.kind, TemplateClassification)
    view: ForwardContext[Any] = ForwardContext(task.backbone, None, task.train)
    plain, calibrated = (each.outputs(view, None)["logits"] for each in (task.kind, kind))
    torch.testing.assert_close(calibrated, plain - batch_calibration(plain).float(), rtol=0, atol=1e-5)
    assert kind_from_metadata(kind_metadata(kind)) == kind
    assert "calibration" not in kind_metadata(task.kind), "files of deltas without one are as before"
    again = kind.fit_frozen(view)
    assert isinstance(again, TemplateClassification)
    assert kind_metadata(again)["calibration"] == pytest.approx(kind_metadata(kind)["calibration"])


def test_an_equal_preference_of_all_texts_is_removed() -> None:
    scores = torch.tensor([[5.0, 0.0], [5.2, 0.0], [4.8, 0.0]])
    assert (scores - batch_calibration(scores)).argmax(dim=1).tolist() == [0, 0, 1]
