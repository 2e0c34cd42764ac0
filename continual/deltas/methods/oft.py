"""OFT: an orthogonal, block-diagonal rotation of a projection's input.

Shapes: D inputs and E outputs of a projection, N blocks of size K with N K = D, B rows of a batch, T tokens.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

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
from continual.deltas.methods.peft_configs import OFTConfig
from continual.deltas.methods.rotation_forms import OrthogonalRotation, above_diagonal, nearest_divisor, skew_matrix
from continual.deltas.peft_format import ModuleLayout, PeftAdapter, PlacedModule
from continual.deltas.protocols import Values
from continual.errors import ExchangeError


class OFT(MethodSettings):
    """OFT: W' = W Rᵀ at every projection, with an orthogonal R of diagonal blocks that rotates the inputs.

    The lengths of the rows of W and the angles between them are unchanged. Parameters: d_in · (block_size − 1) / 2 per
    projection. Qiu et al. (2023), "Controlling Text-to-Image Diffusion by Orthogonal
    Finetuning", arXiv:2306.07280, by its exact Cayley transform (PEFT's `use_cayley_neumann=False`)
    unless `series` is given (PEFT's default is 4).

    Attributes:
        block_size: Size of a block.
        series: The highest power in a series that stands for the transform, faster and nearly orthogonal; 0 for none.
        sites: Sites or groups of linear layers.

    >>> OFT(block_size=16).edits()[0].site
    'projections'
    """

    block_size: int = Field(default=32, ge=2, le=4096)
    series: Literal[0] | Annotated[int, Field(ge=3, le=64)] = 0
    sites: Sites = ("projections",)

    def edits(self) -> tuple[Edit, ...]:
        """Return one rotation per site."""
        form = OrthogonalRotation(self.block_size, self.series)
        return tuple(Edit(site, form, Reads.INPUT, Add()) for site in self.sites)

    def to_peft(self, layout: ModuleLayout, values: Values) -> PeftAdapter:
        """Convert to PEFT's entries above the diagonals [N, K (K − 1) / 2] per module.

        Raises:
            ExchangeError: The parts of a module have rotations of their own, or it is none of PEFT's linear layers.
        """
        parts = layout.parts(self)
        require_linear(parts, "OFT")
        if part := next((part for part in parts if _takes_no_blocks(self.block_size, part.place.d_in)), None):
            raise ExchangeError(
                f"PEFT's OFT gives the {part.place.d_in} inputs of {part.module} no blocks at block_size "
                f"{self.block_size}, since one is nearer to it than a larger divisor; {REMEDY}"
            )
        return modules_to_peft(
            parts,
            values,
            lambda parts, values: {"oft_R.weight": common_rotation(parts, [part["skew"] for part in values], "OFT")},
            peft_type="OFT",
            r=0,
            oft_block_size=self.block_size,
            use_cayley_neumann=bool(self.series),
            **({"num_cayley_neumann_terms": self.series + 1} if self.series else {}),
            bias="none",
        )

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        """Convert an OFT adapter; None for one of another type.

        Returns:
            Settings, and the entries above the diagonals of each part's blocks, by key. Blocks that all modules cannot
            have by one `block_size` are joined to larger ones.

        Raises:
            ExchangeError: Other tensors or settings.
        """
        if adapter.config.get("peft_type") != "OFT":
            return None
        adapter.require_supported_config("init_weights", "coft", "block_share", "use_cayley_neumann")
        config = OFTConfig.model_validate(adapter.config)

        def shapes(part: PlacedModule) -> Shapes:
            size = config.block_size(part.place.d_in)
            return {"oft_R.weight": (1 if config.block_share else part.place.d_in // size, size * (size - 1) // 2)}

        modules = read_modules(adapter, layout, shapes)
        widths = {part.place.d_in for part in layout.projections() if part.module in modules}
        settings = cls(
            block_size=_joined_block_size({width: config.block_size(width) for width in widths}),
            series=config.series,
            sites=layout.sites(modules),
        )

        def convert(part: PlacedModule, tensors: Values) -> Values:
            width, skew = part.place.d_in, config.constrained(tensors["oft_R.weight"])
            size, joined = config.block_size(width), nearest_divisor(width, settings.block_size)
            blocks = skew_matrix(skew.expand(width // size, -1), size)
            larger = torch.zeros(width // joined, joined // size, size, joined // size, size)
            number = torch.arange(joined // size)
            larger[:, number, :, number] = blocks.view(-1, joined // size, size, size).transpose(0, 1)
            return {"skew": above_diagonal(larger.view(-1, joined, joined))}

        return settings, values_of_modules(layout, settings, modules, convert)


def _takes_no_blocks(block_size: int, width: int) -> bool:
    """Return whether one is as near to the size as the nearest divisor above one, which PEFT then prefers."""
    return abs(nearest_divisor(width, block_size) - block_size) >= block_size - 1


def _joined_block_size(sizes: Mapping[int, int]) -> int:
    """Return a setting `block_size` by which every module's blocks are its own, or several of them joined.

    Args:
        sizes: The modules' sizes of blocks by their numbers of inputs.

    Raises:
        ExchangeError: There is none.
    """
    for size in sorted({2, *sizes.values()} - {1}):
        if all(nearest_divisor(width, size) % block_size == 0 for width, block_size in sizes.items()):
            return size
    raise ExchangeError(
        f"the adapter's sizes of blocks, by the number of inputs {dict(sizes)}, follow from no one block_size; "
        "train it with oft_block_size in place of r"
    )
