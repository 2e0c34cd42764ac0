"""The multi-head parallel adapter: a separate bottleneck for each head of an attention.

Shapes: H heads, E the width of all heads, M size of a bottleneck.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from continual.backbones.sites import Place
from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.forms import ACTIVATIONS, Activation, truncated_normal
from continual.deltas.method import MethodSettings, Scale
from continual.deltas.protocols import IdentityAtInit, Values


@dataclass(frozen=True)
class PerHeadBottleneck:
    """f(q_h D_hᵀ) U_h for every head h, side by side, with D_h and U_h [M, E / H].

    q = x W_qᵀ + b_q are the frozen queries; down and up [M, E] hold the D_h and the U_h of the H heads side by side;
    both start as a truncated normal.

    Attributes:
        size: M.
        initial_scale: Deviation of the normal.
        activation: f.
    """

    identity: ClassVar[IdentityAtInit] = "near"

    size: int
    initial_scale: float
    activation: Activation

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return down and up [M, E], drawn."""
        shape = (self.size, place.d_out)
        return {name: truncated_normal(shape, self.initial_scale, generator) for name in ("down", "up")}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the heads' change [..., E] from `inputs` [..., D], which the queries' projection reads."""
        queries, down, up = (
            tensor.view(*tensor.shape[:-1], place.num_heads, -1)
            for tensor in (place.frozen_forward(inputs), values["down"], values["up"])
        )
        hidden = ACTIVATIONS[self.activation](torch.einsum("...hd,mhd->...hm", queries, down))
        return torch.einsum("...hm,mhd->...hd", hidden, up).flatten(-2)


class MultiHeadAdapter(MethodSettings):
    """Multi-head adapter: o_h ← o_h + s · f(q_h D_hᵀ) U_h for every head h of every attention.

    o_h is the output of the head and q_h its query. It is prefix tuning without the softmax and its gate: D_h
    corresponds to the prefix's keys, U_h to its values, and M rows cost as much as M prefix tokens. Parameters: 2 ·
    size · E per layer, E the width of all heads. He et al. (2022), arXiv:2110.04366, sections 3.3 and 4.4: their best
    method at 0.1 % of the parameters.

    Attributes:
        size: M, rows of D_h and U_h.
        scale: s.
        initial_scale: Deviation of the normal from which D_h and U_h are drawn.
        activation: f.
        cross_attention: Whether the heads of cross-attention have an adapter too.

    >>> MultiHeadAdapter(size=8).edits()[0].site
    'attn.heads'
    """

    size: int = Field(default=30, ge=1, le=4096)
    scale: Scale = 1.0
    initial_scale: float = Field(default=1e-2, gt=0, allow_inf_nan=False)
    activation: Activation = "relu"
    cross_attention: bool = True

    @classmethod
    def upgrade(cls, settings: Mapping[str, Any], *, generates: bool) -> dict[str, Any]:
        """Leave cross-attention alone, as deltas of format 2 do."""
        return super().upgrade(settings, generates=generates) | {"cross_attention": not generates}

    def edits(self) -> tuple[Edit, ...]:
        """Return one per-head bottleneck at every attention."""
        form = PerHeadBottleneck(self.size, self.initial_scale, self.activation)
        site = "attn.heads" if self.cross_attention else "self.heads"
        return (Edit(site, form, Reads.INPUT, Add(self.scale)),)
