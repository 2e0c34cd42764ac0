"""Affine maps: what a module computes whose weight and bias a change can become part of."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AffineMap:
    """x ↦ x Wᵀ + b with W [E, D], or γ ⊙ x + b with γ [E]; None stands for zero.

    An embedding is the same of rows that are all zero but for a one: W is its table transposed.
    """

    weight: Tensor | None
    bias: Tensor | None

    def add(self, other: "AffineMap", *, scale: float = 1.0) -> "AffineMap":
        """x ↦ self(x) + scale · other(x)"""
        return AffineMap(_sum(self.weight, other.weight, scale), _sum(self.bias, other.bias, scale))

    def scale_output(self, gain: Tensor) -> "AffineMap":
        """x ↦ gain ⊙ self(x), with the gain [E]."""
        weight = None if self.weight is None else gain.reshape(-1, *[1] * (self.weight.dim() - 1)) * self.weight
        return AffineMap(weight, None if self.bias is None else gain * self.bias)


def _sum(own: Tensor | None, other: Tensor | None, scale: float) -> Tensor | None:
    if other is None:
        return own
    return scale * other if own is None else own + scale * other
