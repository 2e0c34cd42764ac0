"""Intrinsic dimension: one small vector changes all weights through fixed random projections.

Shapes: W [E, D] the weight of a projection, d the intrinsic dimension, K blocks of size n.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from pydantic import Field
from scipy.linalg import hadamard
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.sites import Place
from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings, Sites
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values


@dataclass(frozen=True)
class FastfoodProjection:
    """x ΔWᵀ with ΔW = λ · P θ: θ [d] common to all places, P a random projection for each place.

    P stacks blocks of Fastfood, H G Π H B of size n = 2^⌈log₂ d⌉ (Le et al. 2013), scaled so that ‖P θ‖ ≈ ‖θ‖.

    Attributes:
        dimension: d.
        scaled: Whether λ, one number per place, is trained: the structure-aware variant (Aghajanyan et al. 2021,
            section 3.2); otherwise it is one.
        seed: Seed of all projections.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    dimension: int
    scaled: bool
    seed: int

    def supports(self, place: Place) -> bool:
        """Accept linear layers whose weight can be read."""
        return place.is_linear

    def init_shared(self, places: Sequence[Place], generator: torch.Generator) -> dict[str, Tensor]:
        """Return θ of shape [d], zero."""
        return {"theta": torch.zeros(self.dimension)}

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the place's λ [1], one, where it is trained."""
        return {"scale": torch.ones(1)} if self.scaled else {}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        return F.linear(inputs, self._change(values, place))

    def _change(self, values: Values, place: Place) -> Tensor:
        theta, shape = values["theta"], place.weight.shape
        change = fastfood(theta, shape.numel(), seed=f"{self.seed}/{place.name}").view(shape)
        return change * values["scale"] if self.scaled else change

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight ΔW [E, D]."""
        return AffineMap(self._change(values, place), None)


def fastfood(theta: Tensor, size: int, *, seed: str) -> Tensor:
    """Compute P θ [size] for θ [d], with P the stacked random blocks H G Π H B, so that ‖P θ‖ ≈ ‖θ‖.

    Le et al. (2013), "Fastfood: Approximating Kernel Expansions in Loglinear Time".

    Args:
        theta: θ, of shape [d].
        size: Number of entries of the result, whose shape is [size].
        seed: Determines the signs B, the permutations Π and the normal deviates G.
    """
    n = 1 << max(1, (len(theta) - 1).bit_length())
    blocks = -(-size // n)
    signs, order, gauss = draw_fastfood_blocks(blocks, n, seed, theta.device)
    mixed = hadamard_transform(F.pad(theta, (0, n - len(theta))) * signs)
    mixed = hadamard_transform(mixed.gather(1, order) * gauss)
    return mixed.flatten()[:size] / math.sqrt(n * size)


def hadamard_transform(rows: Tensor) -> Tensor:
    """Multiply each of the rows [K, n] by Sylvester's Hadamard matrix H_n, n a power of two.

    H_ab = H_a ⊗ H_b, so two products with matrices of size √n replace one of size n.
    """
    n = rows.shape[1]
    a = 1 << (n.bit_length() - 1) // 2
    h_a, h_b = _hadamard(a, rows.device), _hadamard(n // a, rows.device)
    product: Tensor = h_a @ rows.view(-1, a, n // a) @ h_b
    return product.reshape(-1, n)


# Cached tensors may be made for inference first and used for training later, where inference tensors are an error.
@lru_cache
@torch.inference_mode(False)
def _hadamard(n: int, device: torch.device) -> Tensor:
    return torch.tensor(hadamard(n), dtype=torch.float32, device=device)


@lru_cache(maxsize=1024)
@torch.inference_mode(False)
def draw_fastfood_blocks(blocks: int, n: int, seed: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Draw signs, permutations and normal deviates of K blocks, [K, n] each; cached for every step.

    Args:
        blocks: K.
        n: Size of a block.
        seed: Any text.
        device: Where the tensors are put; the draw is the same on every device.
    """
    seed_number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed_number)
    signs = torch.randint(0, 2, (blocks, n), generator=generator) * 2.0 - 1
    order = torch.rand(blocks, n, generator=generator).argsort(dim=1)
    gauss = torch.randn(blocks, n, generator=generator)
    return signs.to(device), order.to(device), gauss.to(device)


class Intrinsic(MethodSettings):
    """Intrinsic dimension: W + P θ at every projection, θ [dimension] common to all, P random and fixed.

    Parameters: dimension, and one per projection where `scaled`. Li et al. (2018), "Measuring the Intrinsic Dimension
    of Objective Landscapes", arXiv:1804.08838; Aghajanyan et al. (2021), "Intrinsic Dimensionality Explains the
    Effectiveness of Language Model Fine-Tuning", arXiv:2012.13255.

    Attributes:
        dimension: Number of entries of θ.
        scaled: Whether each projection also has a trained factor λ.
        seed: Seed of the random projections.
        sites: Sites or groups of linear layers.

    >>> Intrinsic(dimension=200).edits()[0].site
    'projections'
    """

    dimension: int = Field(default=1000, ge=1, le=1_000_000)
    scaled: bool = True
    seed: int = Field(default=0, ge=0)
    sites: Sites = ("projections",)

    def edits(self) -> tuple[Edit, ...]:
        """Return one projected change per site."""
        form = FastfoodProjection(self.dimension, self.scaled, self.seed)
        return tuple(Edit(site, form, Reads.INPUT, Add()) for site in self.sites)
