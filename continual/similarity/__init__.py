"""How alike two tasks are: published measures, behind two interfaces.

The signatures of both tasks are enough for those of `STORED`; those of `LOOKED` need the task's own rows, through the
other task's delta; `deltas` compares what was learned, `labels` the labels' names. `nearest` ranks tasks.
"""

from collections.abc import Callable, Mapping

from continual.signature import Signature
from continual.similarity.looked import TransferView, held_out_quality, leep, logme
from continual.similarity.stored import (
    delta_cosine,
    discriminant_alignment,
    label_name_similarity,
    negative_frechet_distance,
    second_moment_overlap,
)

__all__ = [
    "SIGNATURE_MEASURES",
    "TRANSFERABILITY_MEASURES",
    "TransferView",
    "delta_cosine",
    "label_name_similarity",
    "rank_by_similarity",
]

SIGNATURE_MEASURES: dict[str, Callable[[Signature, Signature], float]] = {
    "alignment": discriminant_alignment,
    "overlap": second_moment_overlap,
    "distance": negative_frechet_distance,
}
TRANSFERABILITY_MEASURES: dict[str, Callable[[TransferView], float | None]] = {
    "held_out": held_out_quality,
    "leep": leep,
    "logme": logme,
}


def rank_by_similarity(own: Signature, others: Mapping[str, Signature]) -> list[tuple[str, float]]:
    """The other tasks and their similarity, the most alike first.

    A task with classes is compared by what tells them apart, one without by its rows as a whole.
    """
    compare = discriminant_alignment if len(own.counts) > 1 else second_moment_overlap
    alike = [(name, compare(own, other)) for name, other in others.items()]
    return sorted(alike, key=lambda pair: -pair[1])
