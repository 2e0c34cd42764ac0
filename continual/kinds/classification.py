"""Classification: a linear head on the pooled vector, which starts in closed form."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbone import Backbone
from continual.deltas import Head
from continual.features import Tokens, tokenize
from continual.head import closed_form, combined
from continual.kinds.kind import Answer, Outputs, PooledKind, Seen, Start, zeros
from continual.signature import signature
from tasks import Rows, TaskData, TaskSpec


@dataclass(frozen=True)
class Labelled:
    """Rows with their labels as texts, and as numbers [N]."""

    tokens: Tokens
    truth: tuple[str, ...]
    classes: Tensor


@final
@dataclass(frozen=True)
class Classification(PooledKind[Labelled]):
    """labels: the C labels, by number."""

    scored: ClassVar[str] = "classification"
    generates: ClassVar[bool] = False

    labels: tuple[str, ...]

    @classmethod
    def misfits(cls, backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
        yield from ()

    @classmethod
    def of(cls, backbone: Backbone, data: TaskData) -> Self:
        return cls(data.labels)

    def settings(self) -> dict[str, Any]:
        return {}

    def prepare(self, backbone: Backbone, rows: Rows, *, max_length: int) -> Labelled:
        tokens = tokenize(backbone, rows.texts, max_length=max_length)
        return Labelled(tokens, rows.labels, numbered(rows.labels, self.labels))

    def classes(self, rows: Labelled) -> tuple[Tensor, int]:
        return rows.classes, len(self.labels)

    def blank(self, backbone: Backbone) -> Head | None:
        return zeros(backbone, self.labels)

    def start(self, rows: Seen[Labelled], held_out: Seen[Labelled]) -> Start:
        """Linear discriminant weights, see `continual.head`; the quality of a row is whether it is answered rightly."""
        own = signature(rows.vectors, rows.rows.classes, count=len(self.labels))
        found = closed_form(own, held_out.vectors, held_out.rows.classes)
        return Start(Head(found.weight, found.bias, self.labels, rows.pooling), found.correct.double())

    def carried(self, start: Start, head: Head, held_out: Seen[Labelled]) -> Start:
        """The weighted sum of both heads, of the other the outputs of labels that both tasks have; see `combined`."""
        assert start.head is not None
        other = head.of(self.labels)
        if other is None or head.pooling != start.head.pooling:
            return start
        first, second = ((head.weight.cpu(), head.bias.cpu()) for head in (start.head, other))
        (weight, bias), correct = combined(first, second, held_out.vectors, held_out.rows.classes)
        better = float(correct.mean()) > start.mean
        return Start(replace(start.head, weight=weight, bias=bias), correct) if better else start

    def loss_of(self, head: Head, vectors: Tensor, rows: Labelled, batch: Sequence[int]) -> Tensor:
        """Mean cross entropy in nats."""
        return F.cross_entropy(head(vectors), rows.classes[batch].to(vectors.device))

    @torch.inference_mode()
    def outputs_of(self, rows: Labelled, head: Head | None, found: Tensor) -> Outputs:
        """logits [N, C]."""
        assert head is not None
        return {"logits": head(found.to(head.weight.device)).cpu()}

    def answers(self, backbone: Backbone, outputs: Outputs, rows: Labelled) -> list[Answer]:
        return most_probable(outputs, self.labels)

    def wrong(self, truth: Sequence[Any]) -> list[Any]:
        return next_label(truth, self.labels)


def numbered(found: Sequence[str], labels: Sequence[str]) -> Tensor:
    """The numbers [N] of labels."""
    number: Mapping[str, int] = {label: i for i, label in enumerate(labels)}
    return torch.tensor([number[label] for label in found], dtype=torch.long)


def most_probable(outputs: Outputs, labels: Sequence[str]) -> list[Answer]:
    """The label of the highest of a row's logits [N, C], and its probability."""
    scores, classes = torch.softmax(outputs["logits"], dim=1).max(dim=1)
    return [Answer(labels[i], score) for i, score in zip(classes.tolist(), scores.tolist(), strict=True)]


def next_label(truth: Sequence[str], labels: Sequence[str]) -> list[str]:
    """For each row the label after the right one."""
    following = dict(zip(labels, (*labels[1:], labels[0]), strict=True))
    return [following[label] for label in truth]
