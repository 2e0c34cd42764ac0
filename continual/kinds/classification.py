"""Classification: a linear head on the pooled vector, which starts in closed form."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.backbone import Backbone
from continual.deltas import Head
from continual.features.discriminant import combine_heads, fit_discriminant
from continual.features.signature import compute_signature
from continual.features.tokens import Tokens, tokenize
from continual.kinds.kind import Answer, ForwardContext, HeadStart, Outputs, PooledKind, zero_head
from tasks import LabelledTexts, TaskData, TaskSpec


@dataclass(frozen=True)
class ClassificationRows:
    """Rows with their labels as texts, and as numbers [N]."""

    tokens: Tokens
    truth: tuple[str, ...]
    classes: Tensor


@final
@dataclass(frozen=True)
class Classification(PooledKind[ClassificationRows]):
    """labels: the C labels, by number."""

    metric_kind: ClassVar[str] = "classification"
    generates: ClassVar[bool] = False

    labels: tuple[str, ...]

    @classmethod
    def incompatibilities(cls, backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
        yield from ()

    @classmethod
    def from_data(cls, backbone: Backbone, data: TaskData) -> Self:
        return cls(data.labels)

    def settings(self) -> dict[str, Any]:
        return {}

    def prepare(self, backbone: Backbone, rows: LabelledTexts, *, max_length: int) -> ClassificationRows:
        tokens = tokenize(backbone, rows.texts, max_length=max_length)
        return ClassificationRows(tokens, rows.labels, label_indices(rows.labels, self.labels))

    def classes(self, rows: ClassificationRows) -> tuple[Tensor, int]:
        return rows.classes, len(self.labels)

    def zero_head(self, backbone: Backbone) -> Head | None:
        return zero_head(backbone, self.labels)

    def closed_form_start(
        self, rows: ForwardContext[ClassificationRows], held_out: ForwardContext[ClassificationRows]
    ) -> HeadStart:
        """Linear discriminant weights; the quality of a row is whether it is answered rightly."""
        own = compute_signature(rows.vectors, rows.rows.classes, count=len(self.labels))
        found = fit_discriminant(own, held_out.vectors, held_out.rows.classes)
        return HeadStart(Head(found.weight, found.bias, self.labels, rows.pooling), found.correct.double())

    def with_transferred_head(
        self, start: HeadStart, head: Head, held_out: ForwardContext[ClassificationRows]
    ) -> HeadStart:
        """The weighted sum of both heads, of the other the outputs of labels that both tasks have; see `combined`."""
        assert start.head is not None
        other = head.select_labels(self.labels)
        if other is None or head.pooling != start.head.pooling:
            return start
        first, second = ((head.weight.cpu(), head.bias.cpu()) for head in (start.head, other))
        (weight, bias), correct = combine_heads(first, second, held_out.vectors, held_out.rows.classes)
        better = float(correct.mean()) > start.mean
        return HeadStart(replace(start.head, weight=weight, bias=bias), correct) if better else start

    def loss_of(self, head: Head, vectors: Tensor, rows: ClassificationRows, batch: Sequence[int]) -> Tensor:
        """Mean cross entropy in nats."""
        return F.cross_entropy(head(vectors), rows.classes[batch].to(vectors.device))

    @torch.inference_mode()
    def outputs_from(self, rows: ClassificationRows, head: Head | None, found: Tensor) -> Outputs:
        """logits [N, C]."""
        assert head is not None
        return {"logits": head(found.to(head.weight.device)).cpu()}

    def answers(self, backbone: Backbone, outputs: Outputs, rows: ClassificationRows) -> list[Answer]:
        return argmax_answers(outputs, self.labels)

    def misrouted_answers(self, truth: Sequence[Any]) -> list[Any]:
        return wrong_labels(truth, self.labels)


def label_indices(found: Sequence[str], labels: Sequence[str]) -> Tensor:
    """The numbers [N] of labels."""
    number: Mapping[str, int] = {label: i for i, label in enumerate(labels)}
    return torch.tensor([number[label] for label in found], dtype=torch.long)


def argmax_answers(outputs: Outputs, labels: Sequence[str]) -> list[Answer]:
    """The label of the highest of a row's logits [N, C], and its probability."""
    scores, classes = torch.softmax(outputs["logits"], dim=1).max(dim=1)
    return [Answer(labels[i], score) for i, score in zip(classes.tolist(), scores.tolist(), strict=True)]


def wrong_labels(truth: Sequence[str], labels: Sequence[str]) -> list[str]:
    """For each row the label after the right one."""
    following = dict(zip(labels, (*labels[1:], labels[0]), strict=True))
    return [following[label] for label in truth]
