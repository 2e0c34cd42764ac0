"""Classification by template: the frozen language model fills a gap with a label's word; no head.

    p(label | text) = softmax over labels of log p(word of the label | text with a gap)

Zero epochs are zero-shot: the language model as it is. Gao et al. (2021), "Making Pre-trained Language Models Better
Few-shot Learners" (arXiv:2012.15723).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, Head
from continual.features.forward import ForwardRequest
from continual.features.tokens import Tokens, tokenize
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
from continual.kinds.kind import Answer, ForwardContext, HeadStart, Kind, Outputs
from tasks import LabelledTexts, TaskData, TaskSpec, Template


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


@final
@dataclass(frozen=True)
class TemplateClassification(Kind[TemplateRows]):
    """Classification into C labels by the word that a language model puts into the gap of a template.

    Attributes:
        template: The template, with its words in the order of the task's labels.
    """

    metric_kind: ClassVar[str] = "classification"
    generates: ClassVar[bool] = True

    template: Template

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
        words: Mapping[str, str] = {label: template.words[label] for label in data.labels}
        return cls(template.model_copy(update={"words": words}))

    def settings(self) -> dict[str, Any]:
        """Return the template."""
        return {"template": self.template.model_dump(mode="json")}

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
        scores = answer_word_scores(backbone, rows.cloze, batch)
        return F.cross_entropy(scores, rows.classes[batch].to(backbone.device))

    def loss_inputs(self, backbone: Backbone, rows: TemplateRows) -> Tokens:
        """Return the filled templates."""
        return cloze_inputs(backbone, rows.cloze)

    def loss_weight(self, rows: TemplateRows, batch: Sequence[int]) -> float:
        """Return the number of rows of the batch."""
        return len(batch)

    def forward_request(self, context: ForwardContext[TemplateRows], head: Head | None) -> ForwardRequest[Tensor]:
        """Request the score of each label's word in each text's gap: [N, C] or [N · C]."""
        return forward_word_scores(context.backbone, context.rows.cloze)

    def outputs_from(self, rows: TemplateRows, head: Head | None, result: Tensor) -> Outputs:
        """Reshape the words' scores, [N, C] or [N · C], to `logits` [N, C]."""
        return {"logits": result.reshape(-1, len(self.labels))}

    @torch.inference_mode()
    def loss_from(self, context: ForwardContext[TemplateRows], delta: Delta, result: Tensor) -> float:
        """Compute the mean cross entropy over the labels from the words' scores, [N, C] or [N · C]."""
        return float(F.cross_entropy(result.reshape(-1, len(self.labels)).float(), context.rows.classes))

    def answers(self, backbone: Backbone, outputs: Outputs, rows: TemplateRows) -> list[Answer]:
        """Return the label of the most probable word for each row."""
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
