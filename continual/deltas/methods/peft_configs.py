"""What the methods of linear layers read of `adapter_config.json`; its other keys may be anything.

Shapes: D inputs and E outputs of a module, R rank, N blocks of size K.
"""

from collections.abc import Iterable, Mapping
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from continual.deltas.peft_patterns import first_match, match_pattern

MAX_NUMBER = 1_000_000  # of an integer or a scale


class PeftConfig(BaseModel):
    """The keys of `adapter_config.json` that a method reads; others may be anything."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class PatternedConfig(PeftConfig):
    """Ranks and scales of LoHa and LoKr.

    Attributes:
        r: Rank R.
        alpha: Numerator of the scale alpha / R.
        rank_pattern: Ranks by patterns of modules' names.
        alpha_pattern: Numerators by patterns of modules' names.
    """

    r: int = Field(ge=1, le=MAX_NUMBER)
    alpha: float = Field(ge=-MAX_NUMBER, le=MAX_NUMBER)
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None

    def rank(self, module: str) -> int:
        """Return the rank of a module."""
        return first_match(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """Return the scale of a module's change."""
        return first_match(self.alpha_pattern, module, self.alpha) / self.rank(module)

    def largest(self, modules: Iterable[str]) -> tuple[int, float]:
        """Return the largest rank and the largest absolute scale of the modules; a scale of one where all are zero."""
        ranks, scales = zip(*((self.rank(module), abs(self.scale(module))) for module in modules), strict=True)
        return max(ranks), max(scales) or 1.0


class LoKrConfig(PatternedConfig):
    """Settings of LoKr.

    Attributes:
        decompose_both: Whether the first factor is a product too.
        decompose_factor: Bound of the first factor's dimensions; -1 for none.
    """

    decompose_both: bool = False
    decompose_factor: int = Field(default=-1, ge=-1, le=MAX_NUMBER)

    @property
    def factor(self) -> int | None:
        """The bound; None for none."""
        return None if self.decompose_factor == -1 else max(1, self.decompose_factor)


class OFTConfig(PeftConfig):
    """Settings of OFT.

    Attributes:
        r: N, the same for all modules; 0 where K is given.
        oft_block_size: K; 0 where N is given.
        coft: Whether Q is kept short.
        eps: The longest Q of one block.
        block_share: Whether all blocks of a module are the same.
        use_cayley_neumann: Whether R is a truncated series.
        num_cayley_neumann_terms: Number of its terms.
    """

    r: int = Field(default=0, ge=0, le=MAX_NUMBER)
    oft_block_size: int = Field(ge=0, le=MAX_NUMBER)
    coft: bool = False
    eps: float = Field(default=6e-5, ge=0, le=MAX_NUMBER)
    block_share: bool = False
    use_cayley_neumann: bool = False
    num_cayley_neumann_terms: int = Field(default=5, ge=3, le=64)

    @model_validator(mode="after")
    def _one_size_is_given(self) -> Self:
        if bool(self.r) == bool(self.oft_block_size):
            raise ValueError(f"one of r ({self.r}) and oft_block_size ({self.oft_block_size}) is zero, the other not")
        return self

    @property
    def series(self) -> int:
        """The highest power in the series; 0 where R is exact."""
        return max(3, self.num_cayley_neumann_terms - 1) if self.use_cayley_neumann else 0

    def block_size(self, width: int) -> int:
        """Return the size of a block, or the width divided by a number of blocks, as PEFT rounds it to a divisor."""
        wanted = min(self.r or self.oft_block_size, width)
        divisors = (n for n in range(1, width + 1) if width % n == 0)
        nearest = min(divisors, key=lambda n: (abs(n - wanted), n))
        return width // nearest if self.r else nearest

    def constrained(self, skew: Tensor) -> Tensor:
        """Return entries above the diagonals [N, K (K − 1) / 2]; with `coft` a Q_n is no longer than eps / √N."""
        bound = self.eps / len(skew) ** 0.5
        norms = 2**0.5 * skew.norm(dim=1, keepdim=True)
        return torch.where(norms > bound, bound * skew / norms, skew) if self.coft else skew


class BOFTConfig(PeftConfig):
    """Settings of BOFT.

    Attributes:
        boft_block_size: K; 0 where N is given.
        boft_block_num: N; 0 where K is given.
        boft_n_butterfly_factor: Number of factors.
    """

    boft_block_size: int = Field(default=4, ge=0, le=MAX_NUMBER)
    boft_block_num: int = Field(default=0, ge=0, le=MAX_NUMBER)
    boft_n_butterfly_factor: int = Field(default=1, ge=1, le=16)

    def block_size(self, width: int) -> int:
        """Return K of a module with this number of inputs."""
        return self.boft_block_size or width // self.boft_block_num


class FourierFTConfig(PeftConfig):
    """Settings of FourierFT.

    Attributes:
        n_frequency: Number of a module's coefficients.
        n_frequency_pattern: Other numbers, by patterns of modules' names.
        scaling: Factor of the change.
        random_loc_seed: Seed of the frequencies.
    """

    n_frequency: int = Field(default=1000, ge=1, le=MAX_NUMBER)
    n_frequency_pattern: dict[str, int] | None = None
    scaling: float = Field(default=150.0, ge=-MAX_NUMBER, le=MAX_NUMBER)
    random_loc_seed: int = Field(default=777, ge=0)

    def frequencies(self, module: str) -> int:
        """Return the number of a module's frequencies: of the first pattern that matches behind a dot, or its name."""
        patterns = self.n_frequency_pattern or {}
        matching = (n for p, n in patterns.items() if match_pattern(rf".*\.{p}$", module, pattern=p))
        return next(matching, patterns.get(module, self.n_frequency))


class AdaLoRAConfig(PeftConfig):
    """Settings of AdaLoRA.

    Attributes:
        init_r: Number of a module's triplets before any is removed.
        lora_alpha: Numerator of the scale.
        orth_reg_weight: Weight of the penalty.
        rank_pattern: Which triplets are kept, by the names of modules' tensors `lora_E`.
    """

    init_r: int = Field(ge=1, le=MAX_NUMBER)
    lora_alpha: float = Field(gt=0, le=MAX_NUMBER)
    orth_reg_weight: float = Field(default=0.5, ge=0, le=MAX_NUMBER)
    rank_pattern: dict[str, list[bool]] | None = None

    def rank(self, module: str) -> int:
        """Return the number of triplets that a module has after the removal of the others."""
        triplet_mask = (self.rank_pattern or {}).get(f"{module}.lora_E")
        return self.init_r if triplet_mask is None else sum(triplet_mask)


class VeRAConfig(PeftConfig):
    """Settings of VeRA.

    Attributes:
        r: R.
        d_initial: The entries of a fresh d.
        projection_prng_key: Seed of A and B.
        save_projection: Whether A and B are saved.
    """

    r: int = Field(ge=1, le=MAX_NUMBER)
    d_initial: float = Field(default=0.1, gt=0, le=MAX_NUMBER)
    projection_prng_key: int = Field(default=0, ge=0)
    save_projection: bool = True


class TinyLoRAConfig(PeftConfig):
    """Settings of TinyLoRA.

    Attributes:
        r: R, at most the smaller dimension of a module.
        u: Number of entries of v.
        save_projection: Whether the random matrices are saved.
    """

    r: int = Field(ge=1, le=MAX_NUMBER)
    u: int = Field(ge=1, le=MAX_NUMBER)
    save_projection: bool = True
