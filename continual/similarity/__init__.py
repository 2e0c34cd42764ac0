"""How alike two tasks are: published measures, behind two interfaces.

The signatures of both tasks are enough for those of `STORED`; those of `LOOKED` need the task's own rows, through the
other task's delta; `deltas` compares what was learned, `labels` the labels' names. `nearest` ranks tasks.
"""

from collections.abc import Callable, Mapping

from continual.signature import Signature
from continual.similarity.looked import Look, held_out, leep, logme
from continual.similarity.stored import alignment, deltas, distance, labels, overlap

__all__ = ["LOOKED", "STORED", "Look", "deltas", "labels", "nearest"]

STORED: dict[str, Callable[[Signature, Signature], float]] = {
    "alignment": alignment,
    "overlap": overlap,
    "distance": distance,
}
LOOKED: dict[str, Callable[[Look], float | None]] = {"held_out": held_out, "leep": leep, "logme": logme}


def nearest(own: Signature, others: Mapping[str, Signature]) -> list[tuple[str, float]]:
    """The other tasks and their similarity, the most alike first.

    A task with classes is compared by what tells them apart, one without by its rows as a whole.
    """
    compare = alignment if len(own.counts) > 1 else overlap
    alike = [(name, compare(own, other)) for name, other in others.items()]
    return sorted(alike, key=lambda pair: -pair[1])
