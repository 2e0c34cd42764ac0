"""Classification by template: the frozen language model fills a gap with the word of a label; there is no head.

    p(label | text) = softmax over labels of log p(word of the label | text with a gap)

Zero epochs are zero-shot: the language model as it is. Gao et al. (2021), "Making Pre-trained Language Models Better
Few-shot Learners" (arXiv:2012.15723).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

from torch import Tensor
from torch.nn import functional as F

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, Head
from continual.features.forward import ForwardRequest
from continual.features.tokens import Tokens, tokenize
from continual.kinds.classification import argmax_answers, label_indices, wrong_labels
from continual.kinds.cloze import (
    Cloze,
    answer_word_scores,
    build_cloze,
    cloze_inputs,
    forward_word_scores,
    template_obstacle,
)
from continual.kinds.kind import Answer, ForwardContext, HeadStart, Kind, Outputs
from tasks import LabelledTexts, TaskData, TaskSpec, Template


@dataclass(frozen=True)
class TemplateRows:
    """Rows with their labels as texts, and as numbers [N], and their texts with a gap."""

    tokens: Tokens
    truth: tuple[str, ...]
    classes: Tensor
    gaps: Cloze


@final
@dataclass(frozen=True)
class TemplateClassification(Kind[TemplateRows]):
    """template: with its words in the order of the labels."""

    metric_kind: ClassVar[str] = "classification"
    generates: ClassVar[bool] = True

    template: Template

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.template.words)

    @classmethod
    def incompatibilities(cls, backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
        assert spec.template  # what makes a task one of this kind
        assert spec.budget  # what `Stream.resolved` fills in
        yield from template_obstacle(backbone, spec.template, max_length=spec.budget.max_length)

    @classmethod
    def from_data(cls, backbone: Backbone, data: TaskData) -> Self:
        template = data.spec.template
        assert template  # what makes a task one of this kind
        words: Mapping[str, str] = {label: template.words[label] for label in data.labels}
        return cls(template.model_copy(update={"words": words}))

    def settings(self) -> dict[str, Any]:
        return {"template": self.template.model_dump(mode="json")}

    def prepare(self, backbone: Backbone, rows: LabelledTexts, *, max_length: int) -> TemplateRows:
        return TemplateRows(
            tokenize(backbone, rows.texts, max_length=max_length),
            rows.labels,
            label_indices(rows.labels, self.labels),
            build_cloze(backbone, self.template, rows.texts, max_length=max_length),
        )

    def classes(self, rows: TemplateRows) -> tuple[Tensor, int]:
        return rows.classes, len(self.labels)

    def zero_head(self, backbone: Backbone) -> Head | None:
        return None

    def closed_form_start(
        self, rows: ForwardContext[TemplateRows], held_out: ForwardContext[TemplateRows]
    ) -> HeadStart:
        """No head; the quality of a held-out row is whether it is answered rightly."""
        logits = self.outputs(held_out, None)["logits"]
        return HeadStart(None, (logits.argmax(dim=1) == held_out.rows.classes).double())

    def with_transferred_head(self, start: HeadStart, head: Head, held_out: ForwardContext[TemplateRows]) -> HeadStart:
        return start

    def loss(self, backbone: Backbone, delta: Delta, rows: TemplateRows, batch: Sequence[int]) -> Tensor:
        """Mean cross entropy in nats over the labels."""
        return F.cross_entropy(answer_word_scores(backbone, rows.gaps, batch), rows.classes[batch].to(backbone.device))

    def loss_inputs(self, backbone: Backbone, rows: TemplateRows) -> Tokens:
        return cloze_inputs(backbone, rows.gaps)

    def loss_weight(self, rows: TemplateRows, batch: Sequence[int]) -> float:
        return len(batch)

    def forward_request(self, seen: ForwardContext[TemplateRows], head: Head | None) -> ForwardRequest[Tensor]:
        return forward_word_scores(seen.backbone, seen.rows.gaps)

    def outputs_from(self, rows: TemplateRows, head: Head | None, found: Tensor) -> Outputs:
        """logits [N, C]."""
        return {"logits": found.reshape(-1, len(self.labels))}

    def answers(self, backbone: Backbone, outputs: Outputs, rows: TemplateRows) -> list[Answer]:
        return argmax_answers(outputs, self.labels)

    def misrouted_answers(self, truth: Sequence[Any]) -> list[Any]:
        return wrong_labels(truth, self.labels)
