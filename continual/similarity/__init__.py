"""How alike two tasks are: published measures, behind two interfaces.

What is stored of both tasks is enough for those of `STORED`; those of `LOOKED` need the task's own rows, through the
other task's delta. `nearest` ranks by the one that says most of the gain; docs/transfer.md compares them.
"""

from collections.abc import Callable, Mapping

from continual.signature import Signature
from continual.similarity.looked import Look, held_out, leep, logme
from continual.similarity.stored import Known, alignment, deltas, distance, labels, overlap

__all__ = ["LOOKED", "STORED", "Known", "Look", "labels", "nearest"]

STORED: dict[str, Callable[[Known, Known], float | None]] = {
    "alignment": alignment,
    "overlap": overlap,
    "distance": distance,
    "deltas": deltas,
}
LOOKED: dict[str, Callable[[Look], float | None]] = {"held_out": held_out, "leep": leep, "logme": logme}


def nearest(own: Signature, others: Mapping[str, Signature]) -> list[tuple[str, float]]:
    """The other tasks and their similarity, the most alike first.

    A task with classes is compared by what tells them apart, one without by its rows as a whole.
    """
    compare = alignment if len(own.counts) > 1 else overlap
    alike = [(name, compare(Known(own), Known(other))) for name, other in others.items()]
    return sorted(alike, key=lambda pair: -pair[1])
