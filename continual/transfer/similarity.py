"""Measures of the similarity of two tasks: from signatures, names of labels, or learned deltas.

`SIGNATURE_MEASURES` lists those that need signatures alone; `rank_by_similarity` orders tasks by one of them. Measures
that need the task's rows are in `transferability`. Higher means more similar for all.

Shapes: C classes, D dimensions.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.features.signature import Signature

Values = Mapping[str, Tensor]


def discriminant_alignment(a: Signature, b: Signature) -> float:
    """Compare the directions that separate the classes of two tasks: 0 for unrelated, 1 for the same.

    ⟨B_a, B_b⟩ / (‖B_a‖ ‖B_b‖) with the between-class scatter B = Σ_c (n_c / n) (μ_c − μ)(μ_c − μ)ᵀ [D, D]: the
    alignment of the two tasks' kernels. Cristianini et al. (2001), "On Kernel-Target Alignment".
    """
    f, g = _between_class_factor(a), _between_class_factor(b)
    product, square_a, square_b = (float((x @ y.T).square().sum()) for x, y in ((f, g), (f, f), (g, g)))
    return product / (square_a * square_b) ** 0.5 if square_a and square_b else 0.0


def second_moment_overlap(a: Signature, b: Signature) -> float:
    """Compare the directions in which rows of two tasks point, regardless of classes; 1 is the same.

    ⟨M_a, M_b⟩ / (‖M_a‖ ‖M_b‖) with the second moments M [D, D].
    """
    norms = float(a.moment.norm() * b.moment.norm())
    return float((a.moment * b.moment).sum()) / norms if norms else 0.0


def negative_frechet_distance(a: Signature, b: Signature) -> float:
    """Compute minus the Fréchet distance between the rows of two tasks, taken as normal distributions.

    −(‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½)): Dowson and Landau (1982), "The Fréchet distance between
    multivariate normal distributions".
    """
    (mean_a, covariance_a), (mean_b, covariance_b) = _mean_and_covariance(a), _mean_and_covariance(b)
    root = _matrix_root(covariance_a)
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp_min(0).sqrt().sum()
    spread = covariance_a.trace() + covariance_b.trace() - 2 * cross
    return -float((mean_a - mean_b).square().sum() + spread)


SIGNATURE_MEASURES: dict[str, Callable[[Signature, Signature], float]] = {
    "alignment": discriminant_alignment,
    "overlap": second_moment_overlap,
    "distance": negative_frechet_distance,
}


def rank_by_similarity(target: Signature, sources: Mapping[str, Signature]) -> list[tuple[str, float]]:
    """Return the source tasks with their similarity to the target, the most similar first.

    Targets with classes are compared by `discriminant_alignment`, others by `second_moment_overlap`.
    """
    compare = discriminant_alignment if len(target.counts) > 1 else second_moment_overlap
    similarities = [(name, compare(target, source)) for name, source in sources.items()]
    return sorted(similarities, key=lambda pair: -pair[1])


def label_name_similarity(target: Tensor | None, source: Tensor | None) -> float | None:
    """Compute the mean cosine of each target label's name with the nearest source label's name.

    Args:
        target: Names of the target's labels in frozen features [C, D]; None where it has no labels.
        source: Names of the source's labels in frozen features [C, D]; None where it has no labels.

    Returns:
        The mean cosine, or None where one of the two tasks has no labels.
    """
    if target is None or source is None:
        return None
    cosines = F.normalize(target.double(), dim=1) @ F.normalize(source.double(), dim=1).T
    return float(cosines.amax(dim=1).mean())


def delta_cosine(a: Values, b: Values) -> float | None:
    """Compute the cosine between the changes that training made to two deltas.

    Vu et al. (2022), "SPoT", arXiv:2110.07904, compare prompts so.

    Args:
        a: Changes by name of the value, of any shape.
        b: Changes of the other delta.

    Returns:
        The cosine over the values that agree in name and shape; None where none do, as between most methods.
    """
    common = [key for key in a if key in b and a[key].shape == b[key].shape]
    if not common:
        return None
    x, y = (torch.cat([values[key].double().flatten() for key in common]) for values in (a, b))
    norms = float(x.norm() * y.norm())
    return float(x @ y) / norms if norms else 0.0


def _between_class_factor(signature: Signature) -> Tensor:
    """Return a factor F [C, D] of the between-class scatter: B = Fᵀ F."""
    share = signature.counts / signature.counts.sum()
    centre = share @ signature.means
    return torch.sqrt(share).unsqueeze(1) * (signature.means - centre)


def _mean_and_covariance(signature: Signature) -> tuple[Tensor, Tensor]:
    """Return mean [D] and covariance [D, D] of all rows together."""
    mean = signature.sums.sum(dim=0) / signature.rows
    return mean, signature.moment / signature.rows - torch.outer(mean, mean)


def _matrix_root(matrix: Tensor) -> Tensor:
    values, axes = torch.linalg.eigh(matrix)
    root: Tensor = (axes * values.clamp_min(0).sqrt()) @ axes.T
    return root
