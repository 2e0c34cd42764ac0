"""Regression: a linear head on the pooled vector, which starts as a ridge regression in closed form.

Numbers are learned in standard units z = (y − mean) / deviation of the train rows, so that the learning rate does not
depend on their unit; answers are in the task's own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.backbone import Backbone
from continual.deltas import Head
from continual.features.signature import Signature, compute_signature
from continual.features.tokens import Tokens, tokenize
from continual.kinds.kind import Answer, ForwardContext, HeadStart, Outputs, PooledKind, single_class, zero_head
from tasks import LabelledTexts, TaskData, TaskSpec

RIDGE_PENALTIES = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)  # of the features' mean variance
OUTPUTS = ("value",)


@dataclass(frozen=True)
class RegressionRows:
    """Rows with their numbers as they are, and in standard units [N], float64."""

    tokens: Tokens
    truth: tuple[float, ...]
    standard: Tensor


@final
@dataclass(frozen=True)
class Regression(PooledKind[RegressionRows]):
    """mean, deviation: of the train rows' numbers."""

    metric_kind: ClassVar[str] = "regression"
    generates: ClassVar[bool] = False

    mean: float
    deviation: float

    @classmethod
    def incompatibilities(cls, backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
        yield from ()

    @classmethod
    def from_data(cls, backbone: Backbone, data: TaskData) -> Self:
        numbers = torch.tensor(_numbers(data.train), dtype=torch.float64)
        return cls(float(numbers.mean()), float(numbers.std(correction=0)) or 1.0)

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def prepare(self, backbone: Backbone, rows: LabelledTexts, *, max_length: int) -> RegressionRows:
        numbers = _numbers(rows)
        standard = (torch.tensor(numbers, dtype=torch.float64) - self.mean) / self.deviation
        return RegressionRows(tokenize(backbone, rows.texts, max_length=max_length), numbers, standard)

    def classes(self, rows: RegressionRows) -> tuple[Tensor, int]:
        return single_class(rows)

    def zero_head(self, backbone: Backbone) -> Head | None:
        return zero_head(backbone, OUTPUTS)

    def closed_form_start(
        self, rows: ForwardContext[RegressionRows], held_out: ForwardContext[RegressionRows]
    ) -> HeadStart:
        """The ridge regression of least error on the held-out rows; the quality of a row is minus its squared error."""
        numbers, wanted = rows.rows.standard, held_out.rows.standard
        both = torch.cat((rows.vectors.double(), numbers.unsqueeze(1)), dim=1)
        own = compute_signature(both, torch.zeros(len(both), dtype=torch.long), count=1)
        fits = [fit_ridge(own, strength) for strength in RIDGE_PENALTIES]
        errors = [(F.linear(held_out.vectors.double(), *fit).squeeze(1) - wanted).square() for fit in fits]
        best = min(range(len(fits)), key=lambda i: float(errors[i].mean()))
        weight, bias = fits[best]
        return HeadStart(Head(weight.float(), bias.float(), OUTPUTS, rows.pooling), -errors[best])

    def with_transferred_head(
        self, start: HeadStart, head: Head, held_out: ForwardContext[RegressionRows]
    ) -> HeadStart:
        return start

    def loss_of(self, head: Head, vectors: Tensor, rows: RegressionRows, batch: Sequence[int]) -> Tensor:
        """Mean squared error in standard units: of the variance, what is not explained."""
        found = head(vectors).squeeze(1)
        return F.mse_loss(found, rows.standard[batch].to(found))

    @torch.inference_mode()
    def outputs_from(self, rows: RegressionRows, head: Head | None, found: Tensor) -> Outputs:
        """values [N], in the task's own units."""
        assert head is not None
        standard = head(found.to(head.weight.device)).squeeze(1).cpu()
        return {"values": standard.double() * self.deviation + self.mean}

    def answers(self, backbone: Backbone, outputs: Outputs, rows: RegressionRows) -> list[Answer]:
        return [Answer(value, None) for value in outputs["values"].tolist()]

    def to_task_units(self, head: Head) -> Head:
        """The head whose outputs are answers."""
        return replace(head, weight=head.weight * self.deviation, bias=head.bias * self.deviation + self.mean)

    def to_standard_units(self, head: Head) -> Head:
        """The head that `in_own_units` was made of."""
        return replace(head, weight=head.weight / self.deviation, bias=(head.bias - self.mean) / self.deviation)

    def misrouted_answers(self, truth: Sequence[Any]) -> list[Any]:
        """What is known without looking: the mean of the train rows."""
        return [self.mean] * len(truth)


def fit_ridge(own: Signature, strength: float) -> tuple[Tensor, Tensor]:
    """Weight [1, D] and bias [1] of the ridge regression of y on x, from the statistics of the rows [x, y] alone.

        w = (S_xx + λ s I)⁻¹ S_xy     b = mean(y) − w · mean(x)

    with S the scatter, λ the `strength` and s the mean of S_xx's diagonal. Hoerl and Kennard (1970).
    """
    scatter, (mean,) = own.scatter, own.means
    inner, shared = scatter[:-1, :-1], scatter[:-1, -1]
    penalty = strength * (float(inner.diagonal().mean()) or 1.0)
    weight: Tensor = torch.linalg.solve(inner + penalty * torch.eye(len(inner), dtype=inner.dtype), shared)
    return weight.unsqueeze(0), (mean[-1] - weight @ mean[:-1]).unsqueeze(0)


def _numbers(rows: LabelledTexts) -> tuple[float, ...]:
    return tuple(target for target in rows.targets if isinstance(target, float))
