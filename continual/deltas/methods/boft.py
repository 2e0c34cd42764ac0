"""BOFT: an orthogonal rotation of a projection's input, as a product of sparse butterfly factors.

Shapes: W [E, D] the weight of a projection, M factors, N blocks of size K with N K = D, B rows of a batch, T tokens.
"""

from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings, Sites
from continual.deltas.methods.module_peft import (
    REMEDY,
    Shapes,
    common_rotation,
    modules_to_peft,
    read_modules,
    require_linear,
    values_of_modules,
)
from continual.deltas.methods.peft_configs import BOFTConfig
from continual.deltas.methods.rotation_forms import ButterflyRotation, above_diagonal, skew_matrix
from continual.deltas.peft_format import ModuleLayout, PeftAdapter, PlacedModule
from continual.deltas.protocols import Values
from continual.errors import ExchangeError


class BOFT(MethodSettings):
    """BOFT: W' = g ⊙ (W Rᵀ) at every projection, with an orthogonal R of sparse butterfly factors, and gains g.

    More factors let every input act on more outputs of R than one block of OFT's; with one factor and gains of one it
    is OFT. Parameters: factors · d_in · (block_size − 1) / 2 + d_out per projection. Liu et al. (2024),
    "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization", arXiv:2311.06243; the gains are those of
    the authors' code and of PEFT.

    Attributes:
        block_size: Size of a block.
        factors: Number of butterfly factors.
        sites: Sites or groups of linear layers.

    >>> BOFT(block_size=4, factors=3).edits()[0].site
    'projections'
    """

    block_size: int = Field(default=8, ge=2, le=4096)
    factors: int = Field(default=2, ge=1, le=16)
    sites: Sites = ("projections",)

    def edits(self) -> tuple[Edit, ...]:
        """Return one butterfly rotation per site."""
        form = ButterflyRotation(self.block_size, self.factors)
        return tuple(Edit(site, form, Reads.INPUT, Add()) for site in self.sites)

    def to_peft(self, layout: ModuleLayout, values: Values) -> PeftAdapter:
        """Convert to PEFT's Q [M, N, K, K] and gain [E, 1] per module.

        Raises:
            ExchangeError: Blocks of several sizes, parts of a module with rotations of their own, or a module that is
                none of PEFT's linear layers.
        """
        parts = layout.parts(self)
        require_linear(parts, "BOFT")
        sizes = {part.module: _block_size(part, values[f"{part.key}/skew"]) for part in parts}
        if len(set(sizes.values())) > 1:
            raise ExchangeError(
                f"PEFT's BOFT has one block size for all modules, and here it is {sizes}, by their numbers of inputs; "
                f"give a block_size that is possible at all of them, or {REMEDY}"
            )

        def convert(parts: Sequence[PlacedModule], values: Sequence[Values]) -> Values:
            skew = common_rotation(parts, [part["skew"] for part in values], "BOFT")
            gain = torch.cat([part["gain"] for part in values]).unsqueeze(1)
            return {"boft_R": skew_matrix(skew, sizes[parts[0].module]), "boft_s": gain}

        return modules_to_peft(
            parts,
            values,
            convert,
            peft_type="BOFT",
            boft_block_size=next(iter(sizes.values())),
            boft_block_num=0,
            boft_n_butterfly_factor=self.factors,
            bias="none",
        )

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        """Convert a BOFT adapter; None for one of another type.

        Returns:
            Settings, and rotation and gain of each part, by key.

        Raises:
            ExchangeError: Other tensors or settings, or blocks of several sizes.
        """
        if adapter.config.get("peft_type") != "BOFT":
            return None
        adapter.require_supported_config("init_weights")
        config = BOFTConfig.model_validate(adapter.config)
        # Without its CUDA extension PEFT trains one factor, and saves the wanted number all the same.
        trained = {len(tensor) for name, tensor in adapter.tensors.items() if name.endswith(".boft_R") and tensor.dim()}
        factors = 1 if trained == {1} else config.boft_n_butterfly_factor

        def shapes(part: PlacedModule) -> Shapes:
            size = config.block_size(part.place.d_in)
            return {"boft_R": (factors, part.place.d_in // size, size, size), "boft_s": (part.outputs, 1)}

        modules = read_modules(adapter, layout, shapes)
        sizes = {tensors["boft_R"].shape[-1] for tensors in modules.values()}
        if len(sizes) > 1:
            raise ExchangeError(
                f"the adapter's blocks have the sizes {sorted(sizes)}, since boft_block_num gives the modules equally "
                "many; only one size can be imported: train with boft_block_size"
            )

        def convert(part: PlacedModule, tensors: Values) -> Values:
            matrices = tensors["boft_R"]
            return {"skew": above_diagonal((matrices - matrices.mT) / 2), "gain": tensors["boft_s"][part.rows, 0]}

        settings = cls(block_size=sizes.pop(), factors=factors, sites=layout.sites(modules))
        return settings, values_of_modules(layout, settings, modules, convert)


def _block_size(part: PlacedModule, skew: Tensor) -> int:
    """Return K of the blocks [M, N, K (K − 1) / 2] of a part."""
    return part.place.d_in // skew.shape[1]
