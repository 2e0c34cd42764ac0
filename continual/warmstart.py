"""Where a new delta's values come from: nothing, or the delta of a task that is alike.

Each candidate is judged before any training: how a task of this kind would start in its features, on held-out rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from continual.backbone import Backbone
from continual.deltas import Delta, MethodSettings, Subspace, copyable, fresh_values
from continual.kinds import Kind, Seen, Start, stored

SUPPORTED = ("scratch", "nearest", "auto")
NEIGHBOURS_TRIED = 3
CLEAR_GAIN = 2.0  # standard errors by which a warm start must beat scratch on held-out rows


@dataclass(frozen=True)
class Neighbour:
    """A learned task that is alike: the name of its delta, and the delta.

    again: it is the task itself, as it was learned before.
    """

    name: str
    delta: Delta
    again: bool = False


@dataclass(frozen=True)
class Candidate:
    """A possible start: from a neighbour's delta or, without one, from scratch.

    spanned: the deltas that span the subspace in which the method learns, where it is one that does.
    """

    neighbour: Neighbour | None
    start: Start
    spanned: tuple[Neighbour, ...] = ()

    @property
    def name(self) -> str | None:
        return self.neighbour.name if self.neighbour else None

    @property
    def delta(self) -> Delta | None:
        return self.neighbour.delta if self.neighbour else None

    @property
    def again(self) -> bool:
        return self.neighbour is not None and self.neighbour.again


def judge(kind: Kind[Any], neighbour: Neighbour, *, rows: Seen[Any], held_out: Seen[Any]) -> Candidate:
    """How the task would start in the features of a neighbour's delta; `rows` and `held_out` are seen without it."""
    through = (Seen(seen.backbone, neighbour.delta, seen.rows) for seen in (rows, held_out))
    return Candidate(neighbour, kind.start(*through))


def choose(
    backbone: Backbone, kind: str, *, scratch: Candidate, others: Sequence[Candidate], settings: MethodSettings
) -> Candidate:
    """The start to take: `others` are neighbours in order of similarity.

    scratch: always from scratch · else from what the task itself learned before, where that can be copied, so that it
    goes on learning · nearest: from the first neighbour whose delta can be copied ·
    auto: from the one of them that answers held-out rows best, where it is better than scratch by more than chance.
    """
    copies = [other for other in others if other.delta and copyable(backbone, other.delta, settings)]
    if kind == "scratch" or not copies:
        return scratch
    if before := [copy for copy in copies if copy.again]:
        return before[0]
    if kind == "nearest":
        return copies[0]
    best = max(copies, key=lambda candidate: candidate.start.mean)
    return best if _clearly_better(best.start.quality, scratch.start.quality) else scratch


def _clearly_better(new: Tensor, old: Tensor) -> bool:
    """Whether the mean gain over the same rows is more than chance: few held-out rows are no evidence."""
    gain = new.double() - old.double()
    return bool(gain.mean() > CLEAR_GAIN * gain.std(correction=0) / math.sqrt(len(gain)))


def started(
    backbone: Backbone, kind: Kind[Any], start: Candidate, *, method: str, settings: MethodSettings, seed: int
) -> Delta:
    """The delta that training begins with: the candidate's values, and its head."""
    values: Mapping[str, Tensor]
    if start.neighbour:
        values = {key: value.clone() for key, value in start.neighbour.delta.values.items()}
    else:
        values = fresh_values(backbone, settings, seed=seed)
    if start.spanned and isinstance(settings, Subspace):
        values = settings.spanned(values, [neighbour.delta.values for neighbour in start.spanned])
    return Delta(method, settings, backbone.fingerprint, values, start.start.head, stored(kind))
