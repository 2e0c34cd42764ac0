"""Where a new delta's values come from: nothing, or the delta of a task that is alike.

Each candidate is judged before any training: how a task of this kind would start in its features, on held-out rows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, MethodSettings, Subspace, average_deltas, can_warm_start_from, init_values
from continual.kinds import ForwardContext, HeadStart, Kind, kind_metadata

MAX_NEIGHBOURS = 3
MIN_GAIN_STANDARD_ERRORS = (
    1.0  # standard errors by which a warm start must beat scratch on held-out rows, before any training
)
TRIAL_BATCHES = 20  # batches at most in which a start is tried
MIN_TRIAL_GAIN = 0.005  # of the score by which it must beat scratch then


@dataclass(frozen=True)
class Neighbour:
    """A learned task that is alike: the name of its delta, and the delta.

    again: it is the task itself, as it was learned before.
    """

    name: str
    delta: Delta
    is_previous_version: bool = False


WeightedNeighbour = tuple[Neighbour, float]  # and its weight


@dataclass(frozen=True)
class WarmStartCandidate:
    """A possible start: from the deltas of neighbours or, without any, from scratch.

    sources: the neighbours whose values are averaged, and their weights, which sum to one · delta: what that gives ·
    start: the head to begin with, judged on held-out rows · plain: the same without what heads of neighbours say ·
    spanned: the deltas that span the subspace in which the method learns, where it is one that does.
    """

    start: HeadStart
    start_without_transferred_head: HeadStart
    sources: tuple[WeightedNeighbour, ...] = ()
    delta: Delta | None = None
    subspace_deltas: tuple[Neighbour, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(neighbour.name for neighbour, _ in self.sources)

    @property
    def is_retraining(self) -> bool:
        return any(neighbour.is_previous_version for neighbour, _ in self.sources)

    @property
    def kind(self) -> Literal["scratch", "retrained", "nearest", "merge"]:
        """What the registry calls such a start."""
        if self.is_retraining:
            return "retrained"
        return "merge" if len(self.sources) > 1 else "nearest" if self.sources else "scratch"


def from_scratch(start: HeadStart, spanned: tuple[Neighbour, ...] = ()) -> WarmStartCandidate:
    """The start that has nothing to do with any other task."""
    return WarmStartCandidate(start, start, subspace_deltas=spanned)


def evaluate_candidate(
    kind: Kind[Any],
    *sources: WeightedNeighbour,
    delta: Delta,
    rows: ForwardContext[Any],
    held_out: ForwardContext[Any],
) -> WarmStartCandidate:
    """How the task would start in the features of a delta; `rows` and `held_out` are seen without it."""
    own, judged = (ForwardContext(seen.backbone, delta, seen.rows) for seen in (rows, held_out))
    plain = kind.closed_form_start(own, judged)
    return WarmStartCandidate(
        kind.with_transferred_head(plain, delta.head, judged) if delta.head else plain, plain, sources, delta
    )


def best_neighbour(others: Sequence[WarmStartCandidate]) -> WarmStartCandidate | None:
    """The learned delta of another task in whose features this one would start best; averages are not learned."""
    single = [other for other in others if len(other.sources) == 1 and not other.is_retraining]
    return max(single, key=lambda candidate: candidate.start_without_transferred_head.mean_quality, default=None)


def average_candidate(
    backbone: Backbone, settings: MethodSettings, *, scratch: WarmStartCandidate, others: Sequence[WarmStartCandidate]
) -> tuple[Delta, tuple[WeightedNeighbour, ...]] | None:
    """The average of the neighbours of this method that are of use, weighted by what each brings on held-out rows.

    None where fewer than two of them do, or where they cannot be averaged.
    """
    same = [own for own in others if not own.is_retraining and own.delta and type(own.delta.settings) is type(settings)]
    gains = [(other, other.start.mean_quality - scratch.start.mean_quality) for other in same]
    useful = [(other, gain) for other, gain in gains if gain > 0]
    if len(useful) < 2:
        return None
    total = sum(gain for _, gain in useful)
    sources = tuple((neighbour, gain / total) for other, gain in useful for neighbour, _ in other.sources)
    found = average_deltas(backbone, settings, [neighbour.delta for neighbour, _ in sources], [w for _, w in sources])
    return (found, sources) if found else None


def choose_start(
    backbone: Backbone,
    kind: str,
    *,
    scratch: WarmStartCandidate,
    others: Sequence[WarmStartCandidate],
    settings: MethodSettings,
    tried: Callable[[WarmStartCandidate], float],
) -> WarmStartCandidate:
    """The start to take: `others` are neighbours in order of similarity, an average of several after them.

    scratch: always from scratch · else from what the task itself learned before, where that can be copied, so that it
    goes on learning · nearest: from the first neighbour whose delta can be copied · merge: from the average ·
    auto: from the one of them that answers held-out rows best, where it is better than scratch by more than chance,
    and still is after both were tried: `tried` gives the score on held-out rows after a few steps.
    """
    copies = [other for other in others if other.delta and can_warm_start_from(backbone, other.delta, settings)]
    if kind == "scratch" or not copies:
        return scratch
    if before := [copy for copy in copies if copy.is_retraining]:
        return before[0]
    if kind == "nearest":
        return copies[0]
    if kind == "merge":
        return max(copies, key=lambda copy: len(copy.sources))  # of equals the first
    best = max(copies, key=lambda candidate: candidate.start.mean_quality)
    if not _clearly_better(best.start.held_out_quality, scratch.start.held_out_quality):
        return scratch
    return best if tried(best) > tried(scratch) + MIN_TRIAL_GAIN else scratch


def _clearly_better(new: Tensor, old: Tensor) -> bool:
    """Whether the mean gain over the same rows is more than chance: few held-out rows are no evidence."""
    gain = new.double() - old.double()
    return bool(gain.mean() > MIN_GAIN_STANDARD_ERRORS * gain.std(correction=0) / math.sqrt(len(gain)))


def initial_delta(
    backbone: Backbone, kind: Kind[Any], start: WarmStartCandidate, *, method: str, settings: MethodSettings, seed: int
) -> Delta:
    """The delta that training begins with: the candidate's values, and its head."""
    values: Mapping[str, Tensor]
    if start.delta:
        values = {key: value.clone() for key, value in start.delta.values.items()}
    else:
        values = init_values(backbone, settings, seed=seed)
    if start.subspace_deltas and isinstance(settings, Subspace):
        values = settings.with_basis(values, [neighbour.delta.values for neighbour in start.subspace_deltas])
    return Delta(method, settings, backbone.fingerprint, values, start.start.head, kind_metadata(kind))
