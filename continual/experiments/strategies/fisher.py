"""The diagonal of the Fisher information: the importance of each weight to earlier tasks.

The sum of the tasks' penalties is stored as one square, however many tasks there are, since

    f₁ (θ − θ₁)² + f₂ (θ − θ₂)² = (f₁ + f₂) (θ − μ)² + f₁ f₂ / (f₁ + f₂) (θ₁ − θ₂)²     μ = (f₁ θ₁ + f₂ θ₂) / (f₁ + f₂)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, attached
from continual.kinds import Kind, PreparedRows

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class FisherImportance:
    """The EWC penalty Σ_k F_k (θ − θ_k)² of earlier tasks k, stored as F (θ − μ)² + constant.

    Attributes:
        fisher: F by the name of the value, in the value's shape.
        anchor: μ by the name of the value, in the value's shape.
        constant: The part that does not depend on θ.
    """

    fisher: Values
    anchor: Values
    constant: float = 0.0

    def penalty(self, values: Values) -> Tensor:
        """Compute Σ_k Σ_i F_k,i (θ_i − θ_k,i)², a scalar tensor, at the values θ."""
        terms = [(self.fisher[key] * (values[key] - self.anchor[key]).square()).sum() for key in self.fisher]
        return torch.stack(terms).sum() + self.constant if terms else torch.zeros(())

    def merged_with(self, other: "FisherImportance") -> "FisherImportance":
        """Return the importance to the tasks of both."""
        fisher, anchor, constant = {}, {}, self.constant + other.constant
        for key, f1 in self.fisher.items():
            total = f1 + other.fisher[key]
            share = torch.where(
                total > 0, other.fisher[key] / total, 0.5
            )  # any share, where a weight has no importance
            difference = other.anchor[key] - self.anchor[key]
            fisher[key], anchor[key] = total, self.anchor[key] + share * difference
            constant += float((f1 * share * difference.square()).sum())
        return FisherImportance(fisher, anchor, constant)

    def to(self, device: torch.device) -> "FisherImportance":
        """Return a copy on the device."""
        fisher, anchor = ({key: t.to(device) for key, t in values.items()} for values in (self.fisher, self.anchor))
        return replace(self, fisher=fisher, anchor=anchor)

    @property
    def size(self) -> int:
        """The size of F and μ in bytes."""
        return sum(tensor.nbytes for values in (self.fisher, self.anchor) for tensor in values.values())


def estimate_fisher(
    backbone: Backbone, kind: Kind[Any], delta: Delta, rows: PreparedRows, indices: Sequence[int]
) -> FisherImportance:
    """Estimate the empirical Fisher information of a task at its trained delta θ.

        F_i = 1/N Σ_n (∂ log p(y_n | x_n) / ∂θ_i)²

    over N rows n, with their true answers y_n, one backward pass each and no dropout.

    Args:
        backbone: The frozen backbone.
        kind: The task kind, whose loss is −log p.
        delta: The trained delta.
        rows: The task's train rows.
        indices: The rows to use.

    Returns:
        F and θ of the floating-point values, each in its value's shape, on the CPU.
    """
    values = {key: value.detach().to(backbone.device, copy=True) for key, value in delta.values.items()}
    leaves = {key: value.requires_grad_() for key, value in values.items() if value.is_floating_point()}
    probe = replace(delta, values=values, head=delta.head and delta.head.to(backbone.device))
    squares = {key: torch.zeros_like(leaf) for key, leaf in leaves.items()}
    with attached(backbone, probe):
        for key, gradient in _gradients(backbone, kind, probe, rows, indices, leaves):
            squares[key] += gradient.square()
    fisher = {key: total.cpu() / len(indices) for key, total in squares.items()}
    return FisherImportance(fisher, {key: leaf.detach().cpu() for key, leaf in leaves.items()})


def _gradients(
    backbone: Backbone, kind: Kind[Any], delta: Delta, rows: PreparedRows, indices: Sequence[int], leaves: Values
) -> Iterator[tuple[str, Tensor]]:
    """Yield the gradient of each row's loss with respect to each value that the loss depends on."""
    for row in indices:
        loss = kind.loss(backbone, delta, rows, [row])
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        yield from ((key, gradient) for key, gradient in zip(leaves, gradients, strict=True) if gradient is not None)
