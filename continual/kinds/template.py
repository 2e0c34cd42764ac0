"""Classification by template: the frozen language model fills a gap with a label's word; no head.

    p(y | x) = softmax_y(s_y(x) − c_y)     s_y(x) = log Σ_w p(w | x with a gap), over the words w of label y

Zero epochs are zero-shot: the language model as it is. Gao et al. (2021), "Making Pre-trained Language Models Better
Few-shot Learners" (arXiv:2012.15723). A language model prefers some words whatever the text is. The calibration c is
what it says of the train rows on average, without their labels: Zhou et al. (2024), "Batch Calibration"
(arXiv:2309.17249).

Shapes: N rows, C labels, W words of all labels.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, Head
from continual.features.forward import ForwardRequest
from continual.features.tokens import Tokens, tokenize
from continual.kinds.answer import Answer
from continual.kinds.classification import (
    argmax_answers,
    label_indices,
    label_probabilities,
    majority_answers,
    wrong_labels,
)
from continual.kinds.cloze import (
    Cloze,
    answer_word_scores,
    build_cloze,
    cloze_excess,
    cloze_inputs,
    forward_word_scores,
    template_obstacle,
)
from continual.kinds.kind import ForwardContext, HeadStart, Kind, Outputs
from tasks import LabelledTexts, TaskData, TaskSpec, Template

MAX_CALIBRATION_ROWS = 256


@dataclass(frozen=True)
class TemplateRows:
    """N tokenized rows with their labels and filled templates.

    Attributes:
        tokens: Tokens of the plain texts, without the template.
        truth: The labels as texts; empty for rows without targets.
        classes: The labels as indices [N].
        cloze: The texts in the template, with the gap and the tokens of each label's word.
    """

    tokens: Tokens
    truth: tuple[str, ...]
    classes: Tensor
    cloze: Cloze

    def take(self, indices: Sequence[int]) -> "TemplateRows":
        """Select rows by index."""
        truth = tuple(self.truth[i] for i in indices)
        return TemplateRows(self.tokens.take(indices), truth, self.classes[indices], self.cloze.take(indices))


def batch_calibration(scores: Tensor) -> Tensor:
    """Return the calibration c [C] by unlabelled rows: c_y = log of the mean over rows of softmax_y(s).

    Args:
        scores: Scores of the labels s [N, C].
    """
    return torch.log_softmax(scores.double(), dim=1).logsumexp(dim=0) - math.log(len(scores))


@final
@dataclass(frozen=True)
class TemplateClassification(Kind[TemplateRows]):
    """Classification into C labels by the word that a language model puts into the gap of a template.

    Attributes:
        template: The template, with its words in the order of the task's labels.
        calibration: c [C]; empty for zeros.
    """

    metric_kind: ClassVar[str] = "classification"
    generates: ClassVar[bool] = True

    template: Template
    calibration: tuple[float, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The C labels by index."""
        return tuple(self.template.words)

    @classmethod
    def incompatibilities(cls, backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
        """Yield why the backbone cannot fill the gap: no language model, multi-token words, no room."""
        assert spec.template  # a spec with a template is of this kind
        assert spec.budget  # filled in by `Stream.resolved`
        yield from template_obstacle(backbone, spec.template, max_length=spec.budget.max_length)

    @classmethod
    def from_data(cls, backbone: Backbone, data: TaskData) -> Self:
        """Take the template of the task and order its words by label."""
        template = data.spec.template
        assert template  # a spec with a template is of this kind
        words = {label: template.words[label] for label in data.labels}
        return cls(template.model_copy(update={"words": words}))

    def settings(self) -> dict[str, Any]:
        """Return the template, and the calibration where there is one."""
        calibration = {"calibration": list(self.calibration)} if self.calibration else {}
        return {"template": self.template.model_dump(mode="json"), **calibration}

    def fit_frozen(self, train: ForwardContext[TemplateRows]) -> Self:
        """Return the kind with the calibration by the train rows, at most `MAX_CALIBRATION_ROWS` of them."""
        last = len(train.rows.tokens) - 1
        evenly_spaced = torch.linspace(0, last, min(last + 1, MAX_CALIBRATION_ROWS)).round().long().tolist()
        chosen, plain = train.rows.take(evenly_spaced), replace(self, calibration=())
        scores = plain.outputs(replace(train, rows=chosen), None)["logits"]
        return replace(self, calibration=tuple(batch_calibration(scores).tolist()))

    def _logits(self, scores: Tensor) -> Tensor:
        """Return the logits [N, C] of the words' scores, [N, W] or [N · W]."""
        counts = [len(words) for words in self.template.label_words.values()]
        by_label = torch.split(scores.reshape(-1, sum(counts)).float(), counts, dim=1)
        logits = torch.stack([label_scores.logsumexp(dim=1) for label_scores in by_label], dim=1)
        return logits - logits.new_tensor(self.calibration) if self.calibration else logits

    def prepare(self, backbone: Backbone, rows: LabelledTexts, *, max_length: int) -> TemplateRows:
        """Tokenize the texts, plain and in the template."""
        return TemplateRows(
            tokenize(backbone, rows.texts, max_length=max_length),
            rows.labels,
            label_indices(rows.labels, self.labels),
            build_cloze(backbone, self.template, rows.texts, max_length=max_length),
        )

    def truncated_counts(
        self, backbone: Backbone, rows: LabelledTexts, prepared: TemplateRows, *, max_length: int
    ) -> list[int]:
        """Count the tokens of each row [N] that do not fit beside the template."""
        return [cloze_excess(backbone, self.template, text, max_length=max_length) for text in rows.texts]

    def signature_classes(self, rows: TemplateRows) -> tuple[Tensor, int]:
        """Return the label indices [N] and C."""
        return rows.classes, len(self.labels)

    def zero_head(self, backbone: Backbone) -> Head | None:
        """Return None: the language model's own head answers."""
        return None

    def closed_form_start(
        self, rows: ForwardContext[TemplateRows], held_out: ForwardContext[TemplateRows]
    ) -> HeadStart:
        """Return no head; the quality of a held-out row is 1 where its zero-shot answer is right, else 0."""
        logits = self.outputs(held_out, None)["logits"]
        return HeadStart(None, (logits.argmax(dim=1) == held_out.rows.classes).double())

    def with_transferred_head(self, start: HeadStart, head: Head, held_out: ForwardContext[TemplateRows]) -> HeadStart:
        """Return the start: there is no head."""
        return start

    def loss(self, backbone: Backbone, delta: Delta, rows: TemplateRows, batch: Sequence[int]) -> Tensor:
        """Compute the mean cross entropy over the labels, in nats: a scalar."""
        logits = self._logits(answer_word_scores(backbone, rows.cloze, batch))
        return F.cross_entropy(logits, rows.classes[batch].to(backbone.device))

    def loss_inputs(self, backbone: Backbone, rows: TemplateRows) -> Tokens:
        """Return the filled templates."""
        return cloze_inputs(backbone, rows.cloze)

    def loss_weight(self, rows: TemplateRows, batch: Sequence[int]) -> float:
        """Return the number of rows of the batch."""
        return len(batch)

    def forward_request(self, context: ForwardContext[TemplateRows], head: Head | None) -> ForwardRequest[Tensor]:
        """Request the score of every word in each text's gap: [N, W] or [N · W]."""
        return forward_word_scores(context.backbone, context.rows.cloze)

    def outputs_from(self, rows: TemplateRows, head: Head | None, result: Tensor) -> Outputs:
        """Compute `logits` [N, C] from the words' scores, [N, W] or [N · W]."""
        return {"logits": self._logits(result)}

    @torch.inference_mode()
    def loss_from(self, context: ForwardContext[TemplateRows], delta: Delta, result: Tensor) -> float:
        """Compute the mean cross entropy over the labels from the words' scores, [N, W] or [N · W]."""
        return float(F.cross_entropy(self._logits(result), context.rows.classes))

    def answers(self, backbone: Backbone, outputs: Outputs, rows: TemplateRows) -> list[Answer]:
        """Return the label of the most probable words for each row."""
        return argmax_answers(outputs, self.labels)

    @property
    def registered_labels(self) -> tuple[str, ...]:
        """The labels."""
        return self.labels

    def misrouted_answers(self, truth: Sequence[Any]) -> list[Any]:
        """Return a wrong label for each row."""
        return wrong_labels(truth, self.labels)

    def metric_inputs(self, rows: TemplateRows, answers: Sequence[Answer]) -> Mapping[str, Any]:
        """Return the labels and their probabilities."""
        return {"labels": self.labels, "probabilities": label_probabilities(answers, self.labels)}

    def baseline_answers(self, train: LabelledTexts, rows: TemplateRows) -> list[Answer]:
        """Return the most frequent label of the train rows."""
        return majority_answers(train.labels, self.labels, len(rows.truth))
