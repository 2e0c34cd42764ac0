"""LoRA: a low-rank change of projections."""

from pydantic import Field

from continual.deltas.edit import Add, Edit, Reads
from continual.deltas.forms import LowRank
from continual.deltas.method import MethodSettings


class LoRA(MethodSettings):
    """y ← y + (alpha / rank) · x Aᵀ Bᵀ at every projection of the blocks, or at the `sites` named.

    Parameters: rank · (d_in + d_out) per projection. Hu et al. (2022), arXiv:2106.09685, edit query and value only;
    Dettmers et al. (2023), "QLoRA", arXiv:2305.14314, find that it takes every projection to reach full fine-tuning.

    >>> [edit.site for edit in LoRA(rank=4, sites=("attn.q", "attn.v")).edits()]
    ['attn.q', 'attn.v']
    """

    rank: int = Field(default=8, ge=1, le=4096)
    alpha: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    sites: tuple[str, ...] = Field(default=("projections",), min_length=1)

    def edits(self) -> tuple[Edit, ...]:
        form, compose = LowRank(self.rank), Add(self.alpha / self.rank)
        return tuple(Edit(site, form, Reads.INPUT, compose) for site in self.sites)
