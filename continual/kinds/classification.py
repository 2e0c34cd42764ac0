"""Classification: a linear head on the pooled vector, started as a discriminant and a logistic regression."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.backbone import Backbone
from continual.deltas import Head
from continual.features.cross_validation import discriminant_loss
from continual.features.discriminant import combine_heads
from continual.features.logistic_regression import fit_linear_head
from continual.features.tokens import Tokens, tokenize
from continual.kinds.answer import Answer, LabelDistribution
from continual.kinds.kind import ForwardContext, HeadStart, Outputs, zero_head
from continual.kinds.pooled_kind import PooledKind
from tasks import LabelledTexts, TaskData, TaskSpec

CERTAIN = np.ones(1, dtype=np.float32)


@dataclass(frozen=True)
class ClassificationRows:
    """N tokenized rows with their labels.

    Attributes:
        tokens: Tokens of the texts.
        truth: The labels as texts; empty for rows without targets.
        classes: The labels as indices [N].
    """

    tokens: Tokens
    truth: tuple[str, ...]
    classes: Tensor


@final
@dataclass(frozen=True)
class Classification(PooledKind[ClassificationRows]):
    """Classification into C labels.

    Attributes:
        labels: The C labels by index.
    """

    metric_kind: ClassVar[str] = "classification"
    generates: ClassVar[bool] = False

    labels: tuple[str, ...]

    @classmethod
    def incompatibilities(cls, backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
        """Yield nothing: every backbone has pooled vectors."""
        yield from ()

    @classmethod
    def from_data(cls, backbone: Backbone, data: TaskData) -> Self:
        """Take the labels of the task."""
        return cls(data.labels)

    def settings(self) -> dict[str, Any]:
        """Return nothing: the head has the labels."""
        return {}

    def prepare(self, backbone: Backbone, rows: LabelledTexts, *, max_length: int) -> ClassificationRows:
        """Tokenize the texts and look up the labels' indices."""
        tokens = tokenize(backbone, rows.texts, max_length=max_length)
        return ClassificationRows(tokens, rows.labels, label_indices(rows.labels, self.labels))

    def signature_classes(self, rows: ClassificationRows) -> tuple[Tensor, int]:
        """Return the label indices [N] and C."""
        return rows.classes, len(self.labels)

    def zero_head(self, backbone: Backbone) -> Head | None:
        """Return a head of zeros with C outputs."""
        return zero_head(backbone, self.labels)

    def closed_form_start(
        self, rows: ForwardContext[ClassificationRows], held_out: ForwardContext[ClassificationRows]
    ) -> HeadStart:
        """Fit the head of `fit_linear_head`; the quality of a held-out row is 1 where its answer is right, else 0."""
        classes, held_out_classes = rows.rows.classes, held_out.rows.classes
        fit = fit_linear_head(rows.vectors, classes, held_out.vectors, held_out_classes, count=len(self.labels))
        return HeadStart(Head(fit.weight, fit.bias, self.labels, *rows.readout), fit.correct.double())

    def with_transferred_head(
        self, start: HeadStart, head: Head, held_out: ForwardContext[ClassificationRows]
    ) -> HeadStart:
        """Add the weighted outputs of the other head for labels of both tasks; see `combine_heads`."""
        assert start.head is not None
        transferred = head.select_labels(self.labels)
        if transferred is None or head.readout != start.head.readout:
            return start
        first, second = ((linear.weight.cpu(), linear.bias.cpu()) for linear in (start.head, transferred))
        (weight, bias), correct = combine_heads(first, second, held_out.vectors, held_out.rows.classes)
        is_better = float(correct.mean()) > start.mean_quality
        return HeadStart(replace(start.head, weight=weight, bias=bias), correct) if is_better else start

    def readout_loss(self, vectors: Tensor, rows: Sequence[ClassificationRows]) -> float | None:
        """Return the cross entropy of the linear discriminant on the vectors [N, D], in nats."""
        return discriminant_loss(vectors, torch.cat([part.classes for part in rows]))

    def head_loss(self, head: Head, vectors: Tensor, rows: ClassificationRows, batch: Sequence[int]) -> Tensor:
        """Compute the mean cross entropy, in nats, of the pooled vectors [B, D]: a scalar."""
        return F.cross_entropy(head(vectors), rows.classes[batch].to(vectors.device))

    @torch.inference_mode()
    def outputs_from(self, rows: ClassificationRows, head: Head | None, result: Tensor) -> Outputs:
        """Apply the head to the pooled vectors [N, D]: `logits` [N, C]."""
        assert head is not None
        return {"logits": head(result.to(head.weight.device)).cpu()}

    def answers(self, backbone: Backbone, outputs: Outputs, rows: ClassificationRows) -> list[Answer]:
        """Return the most probable label of each row."""
        return argmax_answers(outputs, self.labels)

    @property
    def registered_labels(self) -> tuple[str, ...]:
        """The labels."""
        return self.labels

    def misrouted_answers(self, truth: Sequence[Any]) -> list[Any]:
        """Return a wrong label for each row."""
        return wrong_labels(truth, self.labels)

    def metric_inputs(self, rows: ClassificationRows, answers: Sequence[Answer]) -> Mapping[str, Any]:
        """Return the labels and their probabilities."""
        return {"labels": self.labels, "probabilities": label_probabilities(answers, self.labels)}

    def baseline_answers(self, train: LabelledTexts, rows: ClassificationRows) -> list[Answer]:
        """Return the most frequent label of the train rows."""
        return majority_answers(train.labels, self.labels, len(rows.truth))


def majority_answers(train_labels: Sequence[str], labels: Sequence[str], count: int) -> list[Answer]:
    """Return `count` times the most frequent label, with probability 1; of equally frequent ones the first.

    Args:
        train_labels: The labels of the train rows.
        labels: The C labels of the task.
        count: Number of answers.
    """
    label = max(labels, key=train_labels.count)
    probabilities = np.array([float(each == label) for each in labels], np.float32)
    return [Answer(label, 1.0, LabelDistribution(tuple(labels), probabilities))] * count


def label_indices(row_labels: Sequence[str], labels: Sequence[str]) -> Tensor:
    """Return the index in `labels` [N] of each row's label."""
    index = {label: i for i, label in enumerate(labels)}
    return torch.tensor([index[label] for label in row_labels], dtype=torch.long)


def argmax_answers(outputs: Outputs, labels: Sequence[str]) -> list[Answer]:
    """Return the label of the highest of each row's `logits` [N, C], with the softmax probabilities."""
    probabilities, labels = torch.softmax(outputs["logits"], dim=1), tuple(labels)
    scores, classes = probabilities.max(dim=1)
    rows = probabilities.detach().float().numpy()
    return [
        Answer(labels[i], score, LabelDistribution(labels, row))
        for i, score, row in zip(classes.tolist(), scores.tolist(), rows, strict=True)
    ]


def label_probabilities(answers: Sequence[Answer], labels: Sequence[str]) -> NDArray[np.float64]:
    """Return the probability of each label in each of N answers [N, C].

    A label that an answer's delta did not know has probability 0; an answer without a distribution, such as that to a
    misrouted row, has probability 1.
    """
    column = {label: i for i, label in enumerate(labels)}
    columns: dict[tuple[str, ...], tuple[list[int], list[int]]] = {}  # of the known labels: theirs, and ours
    probabilities = np.zeros((len(answers), len(labels)))
    for row, answer in zip(probabilities, answers, strict=True):
        known_labels, values = answer.distribution or LabelDistribution((str(answer.label),), CERTAIN)
        if known_labels not in columns:
            shared = [i for i, label in enumerate(known_labels) if label in column]
            columns[known_labels] = shared, [column[known_labels[i]] for i in shared]
        theirs, ours = columns[known_labels]
        row[ours] = values[theirs]
    return probabilities


def wrong_labels(truth: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Return a wrong label for each row: the one after the right label, cyclically."""
    following = dict(zip(labels, (*labels[1:], labels[0]), strict=True))
    return [following[label] for label in truth]
