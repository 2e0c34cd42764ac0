"""LoReFT: an intervention on a few directions of the residual stream behind each layer.

Shapes: D width of the residual stream, R rank, B rows of a batch, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.sites import Place
from continual.deltas.compose import Add
from continual.deltas.edit import Edit, LayerFilter, Reads
from continual.deltas.method import MethodSettings, Rank
from continual.deltas.protocols import IdentityAtInit, Values


@dataclass(frozen=True)
class LowRankIntervention:
    """Rᵀ (W h + b − R h): the difference from h of the h' that has W h + b in the directions R.

    R [R, D] has orthonormal rows: those of `directions` [R, D], made so by a QR decomposition. W is trained as its
    difference V = W − R from R, which starts at zero as b does, so that the change does.

    Attributes:
        rank: R.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    rank: int

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return directions [R, D], drawn, difference V [R, D] and bias b [R], zero."""
        rank = min(self.rank, d_read)
        directions = _orthonormal(torch.randn(rank, d_read, generator=generator)).T.contiguous()
        return {"directions": directions, "difference": torch.zeros(rank, d_read), "bias": torch.zeros(rank)}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., D] of `inputs` [..., D]."""
        return F.linear(F.linear(inputs, values["difference"], values["bias"]), _orthonormal(values["directions"]))

    def batched_call(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [B, T, D] of `inputs` [B, T, D] by values [B, …]."""
        edited = torch.baddbmm(values["bias"].unsqueeze(1), inputs, values["difference"].mT)
        return torch.bmm(edited, _orthonormal(values["directions"]).mT)


def _orthonormal(directions: Tensor) -> Tensor:
    """Return Rᵀ [..., D, R] of directions [..., R, D], by Gram and Schmidt's process in their order."""
    basis, upper = torch.linalg.qr(directions.mT)
    columns: Tensor = basis * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return columns


@dataclass(frozen=True)
class ResidualFilter:
    """The places of some layers in families that normalise behind a block, or in those that do not.

    Attributes:
        post_norm: Which families.
        layers: Numbers of the layers; None for all.
    """

    post_norm: bool
    layers: tuple[int, ...] | None

    def __call__(self, places: Sequence[Place]) -> Sequence[Place]:
        """Return the places chosen."""
        chosen = places if self.layers is None else LayerFilter(self.layers)(places)
        return [place for place in chosen if (place.is_residual or place.post_norm is not None) == self.post_norm]


class ReFT(MethodSettings):
    """LoReFT: h ← h + Rᵀ (W h + b − R h) at the residual stream h behind each layer, with orthonormal rows of R.

    h is the output of the norm behind the feed-forward, or the stream with the feed-forward's output added in families
    that normalise before it. The paper also selects positions, the first and last tokens of a prompt; here every token
    is changed, since a form is given states without their positions. Parameters: 2 · rank · D + rank per layer.
    Wu et al. (2024), "ReFT: Representation Finetuning for Language Models", arXiv:2404.03592.

    Attributes:
        rank: Number of directions.
        layers: The layers behind which the stream is changed, counted from 0 at the bottom or −1 at the top; None for
            all.

    >>> [edit.site for edit in ReFT(layers=(-1,)).edits()]
    ['ffn', 'norm.ffn']
    """

    rank: Rank = 4
    layers: tuple[int, ...] | None = Field(default=None, min_length=1, description="numbers of layers; null for all")

    def edits(self) -> tuple[Edit, ...]:
        """Return an intervention for families of either kind; each family has places of one of them."""
        form = LowRankIntervention(self.rank)
        before, behind = (ResidualFilter(post_norm, self.layers) for post_norm in (False, True))
        return (
            Edit("ffn", form, Reads.RESIDUAL_BEHIND, Add(), before),
            Edit("norm.ffn", form, Reads.OUTPUT, Add(), behind, optional=True),
        )
