"""The multi-head parallel adapter: a bottleneck of its own for each head of an attention."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from continual.backbones.sites import Place
from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.forms import ACTIVATIONS, Activation, truncated_normal
from continual.deltas.method import MethodSettings
from continual.deltas.protocols import IdentityAtInit, Values


@dataclass(frozen=True)
class PerHeadBottleneck:
    """f(q_h D_hᵀ) U_h for every head h, side by side, with q = x W_qᵀ + b_q the frozen queries and D_h, U_h [M, E / H].

    down and up [M, E] hold the D_h and the U_h of the H heads side by side; both start as a truncated normal.
    """

    identity: ClassVar[IdentityAtInit] = "near"

    size: int
    initial_scale: float
    activation: Activation

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        shape = (self.size, place.d_out)
        return {name: truncated_normal(shape, self.initial_scale, generator) for name in ("down", "up")}

    def __call__(self, values: Values, seen: Tensor, place: Place) -> Tensor:
        queries, down, up = (
            tensor.view(*tensor.shape[:-1], place.num_heads, -1)
            for tensor in (place.frozen_forward(seen), values["down"], values["up"])
        )
        inner = ACTIVATIONS[self.activation](torch.einsum("...hd,mhd->...hm", queries, down))
        return torch.einsum("...hm,mhd->...hd", inner, up).flatten(-2)


class MultiHeadAdapter(MethodSettings):
    """o_h ← o_h + s · f(q_h D_hᵀ) U_h, o_h what head h of an attention returns and q_h its query, at every layer.

    It is prefix tuning without the softmax and its gate: D_h stands where the prefix's keys do, U_h where its values
    do, and the M rows cost what M prefix tokens do. Parameters: 2 · size · E per layer, E the width of all heads.
    He et al. (2022), arXiv:2110.04366, sections 3.3 and 4.4: the best of theirs at 0.1 % of the parameters.

    >>> MultiHeadAdapter(size=8).edits()[0].site
    'attn.heads'
    """

    size: int = Field(default=30, ge=1, le=4096)
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    initial_scale: float = Field(default=1e-2, gt=0, allow_inf_nan=False)
    activation: Activation = "relu"

    def edits(self) -> tuple[Edit, ...]:
        form = PerHeadBottleneck(self.size, self.initial_scale, self.activation)
        return (Edit("attn.heads", form, Reads.INPUT, Add(self.scale)),)
