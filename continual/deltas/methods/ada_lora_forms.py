"""Form of AdaLoRA: a low-rank change in the form of a singular value decomposition.

Shapes: D inputs and E outputs of a projection, R rank.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.sites import Place
from continual.deltas.forms import LowRank
from continual.deltas.protocols import AffineMap, IdentityAtInit, Values

SMOOTHING = 0.85  # of sensitivity and of uncertainty: β₁ and β₂


@dataclass(frozen=True)
class RankBudget:
    """The number of triplets of all places, which falls from all of them to a target by a cubic schedule.

    b(t) = b_T + (b₀ − b_T) (1 − (t − t_i) / (T − t_f − t_i))³ of T steps, b₀ before step t_i, and b_T in the last t_f.

    Attributes:
        target: b_T of one place, on average.
        warmup: t_i / T.
        final: t_f / T.
        interval: Steps between two cuts.
    """

    target: float
    warmup: float
    final: float
    interval: int

    def triplets(self, places: int, rank: int, *, step: int, steps: int) -> int:
        """Return b(t).

        Args:
            places: Number of places.
            rank: Triplets of one place before any cut.
            step: t.
            steps: T.
        """
        first, last = self.warmup * steps, (1 - self.final) * steps
        remaining = min(max(1 - (step - first) / max(last - first, 1), 0.0), 1.0)
        return int(places * (self.target + (rank - self.target) * remaining**3))

    def is_due(self, *, step: int, steps: int) -> bool:
        """Return whether triplets are chosen anew at step t: every few steps, and last where the final steps begin."""
        last = math.ceil((1 - self.final) * steps)
        return (self.warmup * steps < step < last and step % self.interval == 0) or step == last


@dataclass(frozen=True)
class SingularTriplets:
    """x (P diag(λ) Q)ᵀ with trained P [E, R], λ [R] and Q [R, D], P and Q kept near orthogonal by a penalty.

    The penalty is γ (‖Pᵀ P − I‖² + ‖Q Qᵀ − I‖²), in the Frobenius norm. λ starts at zero, so the change does.

    Attributes:
        rank: R.
        weight: γ, in nats.
        budget: The triplets of all places during training; None where every place keeps R.
    """

    identity: ClassVar[IdentityAtInit] = "exact"

    rank: int
    weight: float
    budget: RankBudget | None = None

    @property
    def has_budget(self) -> bool:
        """Whether triplets are removed during training."""
        return self.budget is not None

    def supports(self, place: Place) -> bool:
        """Accept places that read and change hidden states."""
        return place.is_hidden_state

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return P [E, R] and Q [R, D], drawn from normals so that vectors have length one on average, and λ [R], zero.

        Their names are `left`, `right` and `sizes`.
        """
        p = torch.randn(place.d_out, self.rank, generator=generator) / math.sqrt(place.d_out)
        q = torch.randn(self.rank, d_read, generator=generator) / math.sqrt(d_read)
        return {"left": p, "sizes": torch.zeros(self.rank), "right": q}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Compute the change [..., E] of `inputs` [..., D]."""
        return F.linear(values["sizes"] * F.linear(inputs, values["right"]), values["left"])

    def penalty(self, values: Values) -> Tensor:
        """Compute γ (‖Pᵀ P − I‖² + ‖Q Qᵀ − I‖²), a scalar in nats."""
        p, q = values["left"], values["right"]
        identity = torch.eye(p.shape[1], device=p.device)
        return self.weight * sum(
            ((product - identity).square().sum() for product in (p.T @ p, q @ q.T)), p.new_zeros(())
        )

    def init_statistics(self, values: Values) -> dict[str, Tensor]:
        """Return sensitivities and uncertainties of all values, zero, and which triplets are kept, all, bool [R]."""
        names = [f"{name} {statistic}" for name in values for statistic in ("sensitivity", "uncertainty")]
        zero = {name: torch.zeros_like(values[name.split()[0]]) for name in names}
        return {**zero, "kept": torch.ones_like(values["sizes"], dtype=torch.bool)}

    def observe(self, values: Values, statistics: Values) -> None:
        """Update the running means of sensitivities |w ∇w| and of their deviations from them (equations 8 to 10).

        Args:
            values: P [E, R], λ [R] and Q [R, D], with gradients.
            statistics: As `init_statistics` gives them.
        """
        for name, value in values.items():
            sensitivity = (value * value.grad).abs() if value.grad is not None else torch.zeros_like(value)
            mean, deviation = statistics[f"{name} sensitivity"], statistics[f"{name} uncertainty"]
            mean.lerp_(sensitivity, 1 - SMOOTHING)
            deviation.lerp_((sensitivity - mean).abs(), 1 - SMOOTHING)

    def prune(self, places: Sequence[tuple[Values, Values]], *, step: int, steps: int) -> None:
        """Set λ of the least important triplets of all places to zero (equation 6).

        Args:
            places: Values and statistics of each place.
            step: Steps taken so far.
            steps: Steps in all.
        """
        budget = self.budget
        if budget is None:
            return
        if due := budget.is_due(step=step, steps=steps):
            count = budget.triplets(len(places), self.rank, step=step, steps=steps)
            importances = [_triplet_importance(statistics).cpu() for _, statistics in places]
            mask = torch.zeros(len(places) * self.rank, dtype=torch.bool)
            mask[torch.cat(importances).argsort(descending=True, stable=True)[:count]] = True
            for (_, statistics), place_mask in zip(places, mask.view(len(places), self.rank), strict=True):
                statistics["kept"].copy_(place_mask)
        if due or step > (1 - budget.final) * steps:
            for values, statistics in places:
                values["sizes"].mul_(statistics["kept"])

    def as_affine_map(self, values: Values, place: Place) -> AffineMap:
        """Return the weight P diag(λ) Q [E, D]."""
        low_rank = _as_low_rank(values)
        return AffineMap(low_rank["B"] @ low_rank["A"], None)

    def canonical_form(self, values: Values, place: Place, *, scale: float) -> tuple[LowRank, dict[str, Tensor]]:
        """Return A = diag(λ) Q [R, D] and B = P [E, R] in the canonical form of a low-rank change."""
        return LowRank(self.rank).canonical_form(_as_low_rank(values), place, scale=scale)

    def weighted_average(self, values: Sequence[Values], weights: Sequence[float]) -> dict[str, Tensor]:
        """Return the singular value decomposition, cut to rank R, of Σ_k w_k P_k diag(λ_k) Q_k.

        Args:
            values: P [E, R_k], λ [R_k] and Q [R_k, D] of each set; ranks may differ.
            weights: One per set.

        Returns:
            P [E, R], λ [R] and Q [R, D]; zero behind Σ R_k where that is below R.
        """
        average = LowRank(self.rank).weighted_average([_as_low_rank(part) for part in values], weights)
        sizes = average["B"].norm(dim=0) * average["A"].norm(dim=1)
        p, q = F.normalize(average["B"], dim=0), F.normalize(average["A"], dim=1)
        return {"left": p, "sizes": sizes, "right": q}


def _triplet_importance(statistics: Values) -> Tensor:
    """Compute S [R] = s(λ) + mean s(P) + mean s(Q) of the triplets, s of an entry is sensitivity times uncertainty."""
    of_left, of_sizes, of_right = (
        statistics[f"{name} sensitivity"] * statistics[f"{name} uncertainty"] for name in ("left", "sizes", "right")
    )
    return of_sizes + of_left.mean(dim=0) + of_right.mean(dim=1)


def _as_low_rank(values: Values) -> dict[str, Tensor]:
    """Return A [R, D] and B [E, R] of P diag(λ) Q."""
    return {"A": values["sizes"].unsqueeze(1) * values["right"], "B": values["left"]}
