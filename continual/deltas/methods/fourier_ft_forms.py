"""Form of FourierFT: a change of a weight given by a few coefficients of its Fourier transform.

Shapes: D inputs and E outputs of a projection, N coefficients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.sites import Place
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values


@dataclass(frozen=True)
class SparseSpectrum:
    """x ΔWᵀ with ΔW = Re F⁻¹(S) [E, D], S [E, D] zero but for N trained coefficients at random, fixed frequencies.

    F⁻¹ is the inverse discrete Fourier transform in two dimensions. Places of one shape have the frequencies in common;
    they are drawn from the seed and are not stored. N is at most E D.

    Attributes:
        frequencies: N.
        initial_scale: Deviation of the normal from which the coefficients are drawn; 0 for no change.
        seed: Seed of the frequencies.
    """

    frequencies: int
    initial_scale: float
    seed: int

    @property
    def identity(self) -> IdentityAtInit:
        """Exact where the coefficients start at zero, else none."""
        return "none" if self.initial_scale else "exact"

    def supports(self, place: Place) -> bool:
        """Accept places that read and change hidden states."""
        return place.is_hidden_state

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the spectrum [N]."""
        count = min(self.frequencies, d_read * place.d_out)
        return {"spectrum": self.initial_scale * torch.randn(count, generator=generator)}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        return F.linear(inputs, self._change(values["spectrum"], place.d_out, inputs.shape[-1]))

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight ΔW [E, D]."""
        return AffineMap(self._change(values["spectrum"], place.d_out, place.d_in), None)

    def weighted_average(self, values: Sequence[Values], weights: Sequence[float]) -> dict[str, Tensor]:
        """Return the spectrum [N] of Σ_k w_k ΔW_k; fewer frequencies are the first ones of more.

        Args:
            values: Spectrum [N_k] of each set, at frequencies of one seed; the numbers may differ.
            weights: One per set.

        Returns:
            Spectrum [N]; shorter where all are.
        """
        spectra = [weight * part["spectrum"].float() for part, weight in zip(values, weights, strict=True)]
        count = min(self.frequencies, max(len(spectrum) for spectrum in spectra))
        return {"spectrum": torch.stack([F.pad(spectrum, (0, count - len(spectrum))) for spectrum in spectra]).sum(0)}

    def _change(self, spectrum: Tensor, d_out: int, d_read: int) -> Tensor:
        size = d_out * d_read
        index = draw_frequencies(len(spectrum), size, self.seed, spectrum.device)
        dense = spectrum.new_zeros(size).scatter(0, index, spectrum).view(d_out, d_read)
        change: Tensor = torch.fft.ifft2(dense).real
        return change


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a cached inference tensor would be an error in training
def draw_frequencies(count: int, size: int, seed: int, device: torch.device) -> Tensor:
    """Draw distinct positions [count] in a flattened matrix of `size` entries, as PEFT draws them from this seed."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return order[:count].to(device, copy=True)  # not a view of all positions
