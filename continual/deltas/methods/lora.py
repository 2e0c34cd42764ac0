"""LoRA: a low-rank change of projections.

Shapes: D inputs and E outputs of a module, R rank.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from torch import Tensor

from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.forms import LowRank, Scaling, scale_divisor
from continual.deltas.method import MethodSettings, Preset, Rank, Scale, Sites
from continual.deltas.methods.low_rank_peft import low_rank_from_peft, low_rank_shapes, low_rank_to_peft
from continual.deltas.methods.pissa import PrincipalLowRank
from continual.deltas.peft_format import ModuleLayout, PeftAdapter
from continual.deltas.protocols import Values


class LoRA(MethodSettings):
    """LoRA: y ← y + s · x Aᵀ Bᵀ at every projection of the blocks, or at some sites; s = alpha / rank by default.

    Parameters: rank · (d_in + d_out) per projection. Hu et al. (2022), arXiv:2106.09685, edit query and value only;
    Dettmers et al. (2023), "QLoRA", arXiv:2305.14314, find that full fine-tuning is only reached
    with every projection.

    Attributes:
        rank: R.
        alpha: Numerator of the scale s.
        sites: Sites or groups of linear layers.
        scaling: `standard`, s = alpha / R, or `rank_stabilized`, s = alpha / √R (Kalajdzievski 2023).
        init: `zero`, A drawn and B zero, or `pissa`, both at the R principal components of the weight (Meng et al.
            2024, `continual.deltas.methods.pissa`). A delta of the latter is stored as a LoRA of rank 2R, twice the
            parameters.

    >>> [edit.site for edit in LoRA(rank=4, sites=("attn.q", "attn.v")).edits()]
    ['attn.q', 'attn.v']
    """

    PRESETS: ClassVar[Mapping[str, Preset]] = {"paper": {"rank": 8, "alpha": 8.0, "sites": ("attn.q", "attn.v")}}

    rank: Rank = 8
    alpha: Scale = 8.0
    sites: Sites = ("projections",)
    scaling: Scaling = "standard"
    init: Literal["zero", "pissa"] = "zero"

    @property
    def scale(self) -> float:
        """The factor s of the change."""
        return self.alpha / scale_divisor(self.rank, self.scaling)

    def edits(self) -> tuple[Edit, ...]:
        """Return one low-rank edit per site."""
        form = LowRank(self.rank) if self.init == "zero" else PrincipalLowRank(self.rank, self.scale)
        return tuple(Edit(site, form, Reads.INPUT, Add(self.scale)) for site in self.sites)

    def to_peft(self, layout: ModuleLayout, values: Values) -> PeftAdapter:
        """Convert to PEFT's LoRA tensors, as `low_rank_to_peft` describes; of rank 2R after `init: pissa`."""
        parts = layout.parts(self)
        if self.init == "zero":
            return low_rank_to_peft(parts, values, rank=self.rank, alpha=self.alpha, scaling=self.scaling)
        form = PrincipalLowRank(self.rank, self.scale)
        final: dict[str, Tensor] = {}
        for part in parts:
            names = [key for key in values if key.rpartition("/")[0] == part.key]
            part_values = form.finalize({key.rpartition("/")[2]: values[key] for key in names}, part.place)
            final |= {f"{part.key}/{name}": value for name, value in part_values.items()}
        alpha = self.alpha * scale_divisor(2 * self.rank, self.scaling) / scale_divisor(self.rank, self.scaling)
        return low_rank_to_peft(parts, final, rank=2 * self.rank, alpha=alpha, scaling=self.scaling)

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        """Convert a LoRA adapter without `use_dora`; None for any other.

        Returns:
            Settings, and A [R, D] and B [d_out, R] of each part, by key; zero at modules without tensors.

        Raises:
            ExchangeError: Other tensors or settings.
        """
        if adapter.config.get("peft_type") != "LORA" or adapter.config.get("use_dora"):
            return None
        shapes, sites = low_rank_shapes(adapter, layout.parts(cls())), layout.sites(adapter.module_names())
        adapter.require_tensors(shapes)
        settings, values = low_rank_from_peft(adapter, layout.parts(cls(sites=sites)))
        return cls.model_validate({**settings, "sites": sites}), values
