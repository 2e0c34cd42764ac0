"""How much each weight matters to earlier tasks: the diagonal of the Fisher information, summed over tasks.

The sum of the tasks' penalties is kept as one square, whatever their number, since

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
    """Σ_k F_k (θ − θ_k)² over earlier tasks k, as F (θ − μ)² + rest: fisher F and anchor μ, by the names of values."""

    fisher: Values
    anchor: Values
    constant: float = 0.0

    def penalty(self, values: Values) -> Tensor:
        """Σ_k Σ_i F_k,i (θ_i − θ_k,i)², a scalar."""
        terms = [(self.fisher[key] * (values[key] - self.anchor[key]).square()).sum() for key in self.fisher]
        return torch.stack(terms).sum() + self.constant if terms else torch.zeros(())

    def merged_with(self, other: "FisherImportance") -> "FisherImportance":
        """That of the tasks of both."""
        fisher, anchor, rest = {}, {}, self.constant + other.constant
        for key, own in self.fisher.items():
            both = own + other.fisher[key]
            share = torch.where(both > 0, other.fisher[key] / both, 0.5)  # of what matters to neither, any
            apart = other.anchor[key] - self.anchor[key]
            fisher[key], anchor[key] = both, self.anchor[key] + share * apart
            rest += float((own * share * apart.square()).sum())
        return FisherImportance(fisher, anchor, rest)

    def to(self, device: torch.device) -> "FisherImportance":
        fisher, anchor = ({key: own.to(device) for key, own in kept.items()} for kept in (self.fisher, self.anchor))
        return replace(self, fisher=fisher, anchor=anchor)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(own.nbytes for kept in (self.fisher, self.anchor) for own in kept.values())


def estimate_fisher(
    backbone: Backbone, kind: Kind[Any], delta: Delta, rows: PreparedRows, chosen: Sequence[int]
) -> FisherImportance:
    """What matters to a task that was just learned: the empirical Fisher information at what was learned.

        F_i = 1/N Σ_n (∂ log p(y_n | x_n) / ∂θ_i)²

    over the chosen rows n, with their own answers y_n, one backward pass for each and no dropout.
    """
    values = {key: own.detach().to(backbone.device, copy=True) for key, own in delta.values.items()}
    moving = {key: own.requires_grad_() for key, own in values.items() if own.is_floating_point()}
    known = replace(delta, values=values, head=delta.head and delta.head.to(backbone.device))
    squares = {key: torch.zeros_like(own) for key, own in moving.items()}
    with attached(backbone, known):
        for key, gradient in _gradients(backbone, kind, known, rows, chosen, moving):
            squares[key] += gradient.square()
    fisher = {key: own.cpu() / len(chosen) for key, own in squares.items()}
    return FisherImportance(fisher, {key: own.detach().cpu() for key, own in moving.items()})


def _gradients(
    backbone: Backbone, kind: Kind[Any], delta: Delta, rows: PreparedRows, chosen: Sequence[int], moving: Values
) -> Iterator[tuple[str, Tensor]]:
    """The gradient of each row's loss by each value; nothing where the row's loss does not depend on it."""
    for row in chosen:
        loss = kind.loss(backbone, delta, rows, [row])
        found = torch.autograd.grad(loss, list(moving.values()), allow_unused=True)
        yield from ((key, own) for key, own in zip(moving, found, strict=True) if own is not None)
