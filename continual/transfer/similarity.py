"""How alike two tasks are: published measures, behind two interfaces.

The signatures of both tasks are enough for those of `STORED`; those of `LOOKED` need the task's own rows, through the
other task's delta; `deltas` compares what was learned, `labels` the labels' names. `nearest` ranks tasks.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.features.signature import Signature

Values = Mapping[str, Tensor]


def discriminant_alignment(own: Signature, other: Signature) -> float:
    """How far the same directions tell the classes of both tasks apart: 0 for none, 1 for exactly the same.

    ⟨B_a, B_b⟩ / (‖B_a‖ ‖B_b‖) with the between-class scatter B = Σ_c (n_c / n) (μ_c − μ)(μ_c − μ)ᵀ [D, D]: the
    alignment of the two tasks' kernels. Cristianini et al. (2001), "On Kernel-Target Alignment".
    """
    f, g = _between(own), _between(other)
    both, own_a, own_b = (float((x @ y.T).square().sum()) for x, y in ((f, g), (f, f), (g, g)))
    return both / (own_a * own_b) ** 0.5 if own_a and own_b else 0.0


def second_moment_overlap(own: Signature, other: Signature) -> float:
    """How far the rows of two tasks point in the same directions, whatever their classes: 1 for exactly the same.

    ⟨M_a, M_b⟩ / (‖M_a‖ ‖M_b‖) with the second moments M [D, D].
    """
    a, b = own.moment, other.moment
    norms = float(a.norm() * b.norm())
    return float((a * b).sum()) / norms if norms else 0.0


def negative_frechet_distance(own: Signature, other: Signature) -> float:
    """Minus the Fréchet distance between the rows of two tasks, as normal distributions.

    −(‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½)): Dowson and Landau (1982), "The Fréchet distance between
    multivariate normal distributions".
    """
    (mean_a, a), (mean_b, b) = _normal(own), _normal(other)
    root = _root(a)
    spread = a.trace() + b.trace() - 2 * torch.linalg.eigvalsh(root @ b @ root).clamp_min(0).sqrt().sum()
    return -float((mean_a - mean_b).square().sum() + spread)


def label_name_similarity(own: Tensor | None, other: Tensor | None) -> float | None:
    """How near the names [C, D] of a task's labels are to the other's, in frozen features: the mean cosine of each with
    the nearest.

    None where one of the two has no labels.
    """
    if own is None or other is None:
        return None
    cosines = F.normalize(own.double(), dim=1) @ F.normalize(other.double(), dim=1).T
    return float(cosines.amax(dim=1).mean())


def delta_cosine(own: Values, other: Values) -> float | None:
    """The cosine of how far training moved two deltas, over the values that both have.

    Vu et al. (2022), "SPoT", arXiv:2110.07904, compare prompts so. None where they have no values of the same names and
    shapes, as by different methods.
    """
    same = [key for key in own if key in other and own[key].shape == other[key].shape]
    if not same:
        return None
    x, y = (torch.cat([values[key].double().flatten() for key in same]) for values in (own, other))
    norms = float(x.norm() * y.norm())
    return float(x @ y) / norms if norms else 0.0


def _between(signature: Signature) -> Tensor:
    """A factor F [C, D] of the between-class scatter: B = Fᵀ F."""
    share = signature.counts / signature.counts.sum()
    centre = share @ signature.means
    return torch.sqrt(share).unsqueeze(1) * (signature.means - centre)


def _normal(signature: Signature) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] of all rows together."""
    mean = signature.sums.sum(dim=0) / signature.rows
    return mean, signature.moment / signature.rows - torch.outer(mean, mean)


def _root(matrix: Tensor) -> Tensor:
    values, axes = torch.linalg.eigh(matrix)
    root: Tensor = (axes * values.clamp_min(0).sqrt()) @ axes.T
    return root


SIGNATURE_MEASURES: dict[str, Callable[[Signature, Signature], float]] = {
    "alignment": discriminant_alignment,
    "overlap": second_moment_overlap,
    "distance": negative_frechet_distance,
}


def rank_by_similarity(own: Signature, others: Mapping[str, Signature]) -> list[tuple[str, float]]:
    """The other tasks and their similarity, the most alike first.

    A task with classes is compared by what tells them apart, one without by its rows as a whole.
    """
    compare = discriminant_alignment if len(own.counts) > 1 else second_moment_overlap
    alike = [(name, compare(own, other)) for name, other in others.items()]
    return sorted(alike, key=lambda pair: -pair[1])
