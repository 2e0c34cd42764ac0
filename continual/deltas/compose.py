"""How an edit's change is composed with the output of its site: added, multiplied or concatenated."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from continual.deltas.protocols import AffineMap


class Compose(Protocol):
    def __call__(self, output: Tensor, change: Tensor) -> Tensor: ...


@runtime_checkable
class InPlaceComposition(Protocol):
    """A way to compose that can put what comes out in the place of the output."""

    def apply_(self, output: Tensor, change: Tensor) -> None: ...


@runtime_checkable
class MergeableComposition(Protocol):
    """A way to compose that makes one affine map of two, where there is one."""

    def merged(self, own: AffineMap, change: AffineMap) -> AffineMap | None:
        """What composes the module's own map with the change; None where that is not affine."""
        ...


@dataclass(frozen=True)
class Add:
    """output + scale · change, of the output's type: bfloat16 stays what it is beside values in float32."""

    scale: float = 1  # a whole one, so that whole numbers stay whole

    def __call__(self, output: Tensor, change: Tensor) -> Tensor:
        return output + self._scaled(change).to(output.dtype)

    def apply_(self, output: Tensor, change: Tensor) -> None:
        """The same in the place of the output."""
        output.add_(self._scaled(change))

    def _scaled(self, change: Tensor) -> Tensor:
        return change if self.scale == 1 else self.scale * change

    def merged(self, own: AffineMap, change: AffineMap) -> AffineMap | None:
        return own.add(change, scale=self.scale)


@dataclass(frozen=True)
class Multiply:
    """output ⊙ change"""

    def __call__(self, output: Tensor, change: Tensor) -> Tensor:
        return output * change.to(output.dtype)

    def apply_(self, output: Tensor, change: Tensor) -> None:
        """The same in the place of the output."""
        output.mul_(change)

    def merged(self, own: AffineMap, change: AffineMap) -> AffineMap | None:
        return own.scale_output(change.bias) if change.weight is None and change.bias is not None else None


@dataclass(frozen=True)
class Concatenate:
    """[change; output]: the change's P rows [..., P, D] stand before the output's T rows [..., T, D]."""

    def __call__(self, output: Tensor, change: Tensor) -> Tensor:
        rows = change.to(output.dtype).expand(*output.shape[:-2], *change.shape[-2:])
        return torch.cat((rows, output), dim=-2)
