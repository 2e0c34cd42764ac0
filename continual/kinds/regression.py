"""Regression: a linear head on the pooled vector, started as a ridge regression in closed form.

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
from continual.features.cross_validation import RIDGE_PENALTIES, ridge_loss
from continual.features.signature import Signature, compute_signature
from continual.features.tokens import Tokens, tokenize
from continual.kinds.answer import Answer
from continual.kinds.kind import ForwardContext, HeadStart, Outputs, single_class, zero_head
from continual.kinds.pooled_kind import PooledKind
from tasks import LabelledTexts, TaskData, TaskSpec

OUTPUTS = ("value",)


@dataclass(frozen=True)
class RegressionRows:
    """N tokenized rows with their numbers.

    Attributes:
        tokens: Tokens of the texts.
        truth: The numbers in the task's unit; empty for rows without targets.
        standard: The numbers in standard units [N], float64.
    """

    tokens: Tokens
    truth: tuple[float, ...]
    standard: Tensor


@final
@dataclass(frozen=True)
class Regression(PooledKind[RegressionRows]):
    """Regression to one number.

    Attributes:
        mean: Mean of the train rows' numbers.
        deviation: Their standard deviation; 1 where all are equal.
    """

    metric_kind: ClassVar[str] = "regression"
    generates: ClassVar[bool] = False

    mean: float
    deviation: float

    @classmethod
    def incompatibilities(cls, backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
        """Yield nothing: every backbone has pooled vectors."""
        yield from ()

    @classmethod
    def from_data(cls, backbone: Backbone, data: TaskData) -> Self:
        """Compute mean and deviation of the train rows."""
        numbers = torch.tensor(_numbers(data.train), dtype=torch.float64)
        return cls(float(numbers.mean()), float(numbers.std(correction=0)) or 1.0)

    def settings(self) -> dict[str, Any]:
        """Return mean and deviation."""
        return asdict(self)

    def prepare(self, backbone: Backbone, rows: LabelledTexts, *, max_length: int) -> RegressionRows:
        """Tokenize the texts and standardise the numbers."""
        numbers = _numbers(rows)
        standard = (torch.tensor(numbers, dtype=torch.float64) - self.mean) / self.deviation
        return RegressionRows(tokenize(backbone, rows.texts, max_length=max_length), numbers, standard)

    def signature_classes(self, rows: RegressionRows) -> tuple[Tensor, int]:
        """Return one class for all rows: zeros [N], and the count 1."""
        return single_class(rows)

    def zero_head(self, backbone: Backbone) -> Head | None:
        """Return a head of zeros with one output."""
        return zero_head(backbone, OUTPUTS)

    def closed_form_start(
        self, rows: ForwardContext[RegressionRows], held_out: ForwardContext[RegressionRows]
    ) -> HeadStart:
        """Fit the ridge regression of least held-out error; the quality of a row is minus its squared error."""
        inputs_and_targets = torch.cat((rows.vectors.double(), rows.rows.standard.unsqueeze(1)), dim=1)
        one_class = torch.zeros(len(inputs_and_targets), dtype=torch.long)
        signature = compute_signature(inputs_and_targets, one_class, count=1)
        fits = [fit_ridge(signature, penalty) for penalty in RIDGE_PENALTIES]
        vectors, targets = held_out.vectors.double(), held_out.rows.standard
        errors = [(F.linear(vectors, *fit).squeeze(1) - targets).square() for fit in fits]
        best = min(range(len(fits)), key=lambda i: float(errors[i].mean()))
        weight, bias = fits[best]
        return HeadStart(Head(weight.float(), bias.float(), OUTPUTS, *rows.readout), -errors[best])

    def with_transferred_head(
        self, start: HeadStart, head: Head, held_out: ForwardContext[RegressionRows]
    ) -> HeadStart:
        """Return the start: another task's number is no evidence for this one."""
        return start

    def readout_loss(self, vectors: Tensor, rows: Sequence[RegressionRows]) -> float | None:
        """Return the mean squared error of ridge regression on the vectors [N, D], in standard units."""
        return ridge_loss(vectors, torch.cat([part.standard for part in rows]))

    def head_loss(self, head: Head, vectors: Tensor, rows: RegressionRows, batch: Sequence[int]) -> Tensor:
        """Compute the mean squared error in standard units, the share of the variance that is not explained.

        Args:
            head: The head to train.
            vectors: Pooled vectors [B, D].
            rows: All prepared rows.
            batch: Indices of the B rows of the batch.

        Returns:
            A scalar.
        """
        predictions = head(vectors).squeeze(1)
        return F.mse_loss(predictions, rows.standard[batch].to(predictions))

    @torch.inference_mode()
    def outputs_from(self, rows: RegressionRows, head: Head | None, result: Tensor) -> Outputs:
        """Apply the head to the pooled vectors [N, D]: `values` [N], in the task's unit, float64."""
        assert head is not None
        standard = head(result.to(head.weight.device)).squeeze(1).cpu()
        return {"values": standard.double() * self.deviation + self.mean}

    def answers(self, backbone: Backbone, outputs: Outputs, rows: RegressionRows) -> list[Answer]:
        """Return the value of each row, without a score."""
        return [Answer(value, None) for value in outputs["values"].tolist()]

    def to_task_units(self, head: Head) -> Head:
        """Convert a head in standard units, weight [1, D] and bias [1], to one whose outputs are answers."""
        return replace(head, weight=head.weight * self.deviation, bias=head.bias * self.deviation + self.mean)

    def to_standard_units(self, head: Head) -> Head:
        """Convert a head whose outputs are answers, weight [1, D] and bias [1], to standard units."""
        return replace(head, weight=head.weight / self.deviation, bias=(head.bias - self.mean) / self.deviation)

    def misrouted_answers(self, truth: Sequence[Any]) -> list[Any]:
        """Return the mean of the train rows: the best answer without reading the text."""
        return [self.mean] * len(truth)


def fit_ridge(signature: Signature, penalty: float) -> tuple[Tensor, Tensor]:
    """Fit a ridge regression of y on x from the additive statistics of the rows [x, y] alone.

        w = (S_xx + λ s I)⁻¹ S_xy     b = mean(y) − w · mean(x)

    with S the scatter and s the mean of S_xx's diagonal. Hoerl and Kennard (1970), "Ridge Regression: Biased
    Estimation for Nonorthogonal Problems".

    Args:
        signature: Signature of rows [x, y] with D + 1 dimensions, in one class.
        penalty: The penalty λ, relative to the mean variance of the features.

    Returns:
        Weight [1, D] and bias [1], float64.
    """
    scatter, (mean,) = signature.scatter, signature.means
    inputs_scatter, inputs_targets_scatter = scatter[:-1, :-1], scatter[:-1, -1]
    diagonal = penalty * (float(inputs_scatter.diagonal().mean()) or 1.0)
    regularized = inputs_scatter + diagonal * torch.eye(len(inputs_scatter), dtype=inputs_scatter.dtype)
    weight: Tensor = torch.linalg.solve(regularized, inputs_targets_scatter)
    return weight.unsqueeze(0), (mean[-1] - weight @ mean[:-1]).unsqueeze(0)


def _numbers(rows: LabelledTexts) -> tuple[float, ...]:
    return tuple(target for target in rows.targets if isinstance(target, float))
