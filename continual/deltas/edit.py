"""One change at one site: what function, of what, put together how.

After He et al. (2022), "Towards a Unified View of Parameter-Efficient Transfer Learning" (arXiv:2110.04366): a method
is the function that changes a hidden state, what it reads, which state it modifies, and how the two are composed.
With x the input of a site's module and y its output,

    y  ←  compose(y, form(values, x or y))
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

Values = Mapping[str, Tensor]  # the learned tensors of one edit at one place


class Reads(Enum):
    """What an edit's function is given: the module's input (parallel) or its output (sequential)."""

    INPUT = "input"
    OUTPUT = "output"


class Form(Protocol):
    """A pure function of one row's hidden states and learned values: rows with different values can be mixed."""

    def start(self, d_in: int, d_out: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh values for a place whose function reads `d_in` and writes `d_out` dimensions."""
        ...

    def __call__(self, values: Values, hidden: Tensor) -> Tensor:
        """The change [..., d_out] that `values` make of `hidden` [..., d_in]."""
        ...


class Compose(Protocol):
    def __call__(self, output: Tensor, change: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Add:
    """output + scale · change"""

    scale: float = 1.0

    def __call__(self, output: Tensor, change: Tensor) -> Tensor:
        return output + self.scale * change


@dataclass(frozen=True)
class Multiply:
    """output ⊙ change"""

    def __call__(self, output: Tensor, change: Tensor) -> Tensor:
        return output * change


@dataclass(frozen=True)
class Edit:
    """One change at every place of one site."""

    site: str
    form: Form
    reads: Reads
    compose: Compose
