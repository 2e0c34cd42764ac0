"""How alike two tasks are, from their signatures alone."""

from collections.abc import Mapping

import torch
from torch import Tensor

from continual.signature import Signature


def alignment(a: Signature, b: Signature) -> float:
    """How far the same directions tell the classes of both tasks apart: 0 for none, 1 for exactly the same.

    ⟨B_a, B_b⟩ / (‖B_a‖ ‖B_b‖) with the between-class scatter B = Σ_c (n_c / n) (μ_c − μ)(μ_c − μ)ᵀ [D, D]: the
    alignment of the two tasks' kernels. Cristianini et al. (2001), "On Kernel-Target Alignment".
    """
    f, g = _between(a), _between(b)
    both, own_a, own_b = (float((x @ y.T).square().sum()) for x, y in ((f, g), (f, f), (g, g)))
    return both / (own_a * own_b) ** 0.5 if own_a and own_b else 0.0


def overlap(a: Signature, b: Signature) -> float:
    """How far the rows of two tasks point in the same directions, whatever their classes: 1 for exactly the same.

    ⟨M_a, M_b⟩ / (‖M_a‖ ‖M_b‖) with the second moments M [D, D].
    """
    both = float((a.moment * b.moment).sum())
    norms = float(a.moment.norm() * b.moment.norm())
    return both / norms if norms else 0.0


def nearest(own: Signature, others: Mapping[str, Signature]) -> list[tuple[str, float]]:
    """The other tasks and their similarity, the most alike first.

    A task with classes is compared by what tells them apart, one without by its rows as a whole.
    """
    compare = alignment if len(own.counts) > 1 else overlap
    alike = [(name, compare(own, other)) for name, other in others.items()]
    return sorted(alike, key=lambda pair: -pair[1])


def _between(signature: Signature) -> Tensor:
    """A factor F [C, D] of the between-class scatter: B = Fᵀ F."""
    share = signature.counts / signature.counts.sum()
    centre = share @ signature.means
    return torch.sqrt(share).unsqueeze(1) * (signature.means - centre)
