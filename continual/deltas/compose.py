"""Composition of an edit's change with the output of its site: addition, product or concatenation.

Compose is one of the four axes of He et al. (2022), "Towards a Unified View of Parameter-Efficient Transfer Learning"
(arXiv:2110.04366), who use addition, h ← h + s · Δh. (IA)³ and norms multiply, prompts and prefixes concatenate. The
other three axes are the *site*, the representation that is modified (`continual.backbones.sites`), the *form*, the
function that computes the change (`continual.deltas.protocols`), and the input it *reads* (`continual.deltas.edit`,
where the four are combined):

    y  ←  compose(y, form(values, x or y))

Shapes: T tokens, P vectors in front of them, D the last dimension of a site's output.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from continual.deltas.protocols import AffineMap


class Compose(Protocol):
    """A function of a site's output [..., D] and an edit's change, whose result replaces the output."""

    def __call__(self, output: Tensor, change: Tensor) -> Tensor:
        """Compute the new output [..., D] from the old one [..., D] and the change."""
        ...


@runtime_checkable
class InPlaceComposition(Protocol):
    """A composition that can write its result into the output's memory."""

    def apply_(self, output: Tensor, change: Tensor) -> None:
        """Overwrite the output [..., D] with its composition with the change [..., D]."""
        ...


@runtime_checkable
class MergeableComposition(Protocol):
    """A composition that joins two affine maps to one, where the result is affine."""

    def merged(self, module_map: AffineMap, change: AffineMap) -> AffineMap | None:
        """Return the composition of a module's map with the change; None where that is not affine."""
        ...


@dataclass(frozen=True)
class Add:
    """output + scale · change, in the output's type: bfloat16 remains bfloat16 beside values in float32."""

    scale: float = 1  # an integer by default, so that positions remain integers

    def __call__(self, output: Tensor, change: Tensor) -> Tensor:
        """Compute output [..., D] + scale · change [..., D]."""
        return output + self._scaled(change).to(output.dtype)

    def apply_(self, output: Tensor, change: Tensor) -> None:
        """Add scale · change [..., D] to the output [..., D] in place."""
        output.add_(self._scaled(change))

    def _scaled(self, change: Tensor) -> Tensor:
        return change if self.scale == 1 else self.scale * change

    def merged(self, module_map: AffineMap, change: AffineMap) -> AffineMap | None:
        """Return x ↦ module_map(x) + scale · change(x)."""
        return module_map.add(change, scale=self.scale)


@dataclass(frozen=True)
class Multiply:
    """output ⊙ change, in the output's type."""

    def __call__(self, output: Tensor, change: Tensor) -> Tensor:
        """Compute output [..., D] ⊙ change [..., D]."""
        return output * change.to(output.dtype)

    def apply_(self, output: Tensor, change: Tensor) -> None:
        """Multiply the output [..., D] by the change [..., D] in place."""
        output.mul_(change)

    def merged(self, module_map: AffineMap, change: AffineMap) -> AffineMap | None:
        """Return x ↦ change ⊙ module_map(x); None unless the change is a constant vector [D]."""
        return module_map.scale_output(change.bias) if change.weight is None and change.bias is not None else None


@dataclass(frozen=True)
class Concatenate:
    """[change; output]: the change's P rows [..., P, D] stand before the output's T rows [..., T, D]."""

    def __call__(self, output: Tensor, change: Tensor) -> Tensor:
        """Compute [..., P + T, D] from the output [..., T, D] and the change [..., P, D]."""
        rows = change.to(output.dtype).expand(*output.shape[:-2], *change.shape[-2:])
        return torch.cat((rows, output), dim=-2)
