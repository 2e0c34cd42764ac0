"""FourierFT: a change of a weight given by a few coefficients of its Fourier transform.

Shapes: D inputs and E outputs of a projection, N coefficients.
"""

from typing import Self

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings, Scale, Sites
from continual.deltas.methods.fourier_ft_forms import SparseSpectrum
from continual.deltas.methods.module_peft import (
    Shapes,
    is_transposed,
    modules_to_peft,
    read_modules,
    require_single_parts,
    values_of_modules,
)
from continual.deltas.methods.peft_configs import FourierFTConfig
from continual.deltas.peft_format import ModuleLayout, PeftAdapter, PlacedModule
from continual.deltas.protocols import Values


class FourierFT(MethodSettings):
    """FourierFT: W + scale · Re F⁻¹(S) at every projection, with few trained entries of the spectrum S.

    Parameters: `frequencies` per projection, whatever its size. Gao et al. (2024), "Parameter-Efficient Fine-Tuning
    with Discrete Fourier Transform", arXiv:2405.03003, who draw the first coefficients from a standard normal; here
    they start at zero, without effect, unless `initial_scale` is given.

    Attributes:
        frequencies: Number of trained coefficients of a projection.
        scale: Factor of the change; the inverse transform divides by d_in · d_out.
        initial_scale: Deviation of the normal from which the coefficients are drawn.
        seed: Seed of the frequencies.
        sites: Sites or groups of linear layers.

    >>> FourierFT(frequencies=100).edits()[0].site
    'projections'
    """

    frequencies: int = Field(default=1000, ge=1, le=1_000_000)
    scale: Scale = 150.0
    initial_scale: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="deviation of fresh coefficients")
    seed: int = Field(default=777, ge=0)
    sites: Sites = ("projections",)

    def edits(self) -> tuple[Edit, ...]:
        """Return one sparse spectrum per site."""
        form, compose = SparseSpectrum(self.frequencies, self.initial_scale, self.seed), Add(self.scale)
        return tuple(Edit(site, form, Reads.INPUT, compose) for site in self.sites)

    def to_peft(self, layout: ModuleLayout, values: Values) -> PeftAdapter:
        """Convert to PEFT's spectrum [N] per module.

        Raises:
            ExchangeError: A module computes several projections.
        """
        parts = layout.parts(self)
        require_single_parts(parts, "FOURIERFT")
        lengths = {part.module: len(values[f"{part.key}/spectrum"]) for part in parts}
        return modules_to_peft(
            parts,
            values,
            lambda _, values: {"fourierft_spectrum": values[0]["spectrum"]},
            peft_type="FOURIERFT",
            n_frequency=self.frequencies,
            n_frequency_pattern={module: n for module, n in lengths.items() if n != self.frequencies},
            scaling=self.scale,
            random_loc_seed=self.seed,
            bias="none",
            fan_in_fan_out=is_transposed(parts),
        )

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        """Convert a FOURIERFT adapter; None for one of another type.

        Returns:
            Settings of the largest number of frequencies N, and the spectrum of each projection, by key, with zeros
            behind a smaller number: those of one seed are the first ones of more.

        Raises:
            ExchangeError: Other tensors or settings, or a module computes several projections.
        """
        if adapter.config.get("peft_type") != "FOURIERFT":
            return None
        adapter.require_supported_config("n_frequency_pattern", "init_weights")
        config = FourierFTConfig.model_validate(adapter.config)

        def shapes(part: PlacedModule) -> Shapes:
            require_single_parts([part], "FOURIERFT")
            return {"fourierft_spectrum": (config.frequencies(part.module),)}

        modules = read_modules(adapter, layout, shapes)
        max_frequencies = max(len(tensors["fourierft_spectrum"]) for tensors in modules.values())

        def convert(part: PlacedModule, tensors: Values) -> Values:
            spectrum = tensors["fourierft_spectrum"]
            count = min(max_frequencies, part.place.d_in * part.place.d_out)
            return {"spectrum": sign * F.pad(spectrum, (0, count - len(spectrum)))}

        sign = -1 if config.scaling < 0 else 1
        settings = cls(
            frequencies=max_frequencies,
            scale=abs(config.scaling) or 1.0,
            seed=config.random_loc_seed,
            sites=layout.sites(modules),
        )
        return settings, values_of_modules(layout, settings, modules, convert)
