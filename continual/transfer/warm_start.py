"""Choose where a new delta's values come from: scratch, a similar task's delta, or an average.

Each candidate is judged before any training, by a closed-form head in its features on held-out rows.
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
MIN_GAIN_STANDARD_ERRORS = 1.0  # by which a warm start must beat scratch on held-out rows, before any training
TRIAL_BATCHES = 20  # largest number of batches that a start is trained on to compare it with scratch
MIN_TRIAL_GAIN = 0.005  # of the score, by which it must beat scratch after the trial


@dataclass(frozen=True)
class Neighbour:
    """A learned delta that a new task may start from.

    Attributes:
        name: Name of the delta.
        delta: The delta.
        is_previous_version: True where it is an earlier version of the same task.
    """

    name: str
    delta: Delta
    is_previous_version: bool = False


WeightedNeighbour = tuple[Neighbour, float]


@dataclass(frozen=True)
class WarmStartCandidate:
    """A possible start: from the deltas of neighbours or, without any, from scratch.

    Attributes:
        start: The head to begin with, judged on held-out rows.
        start_without_transferred_head: The head fitted in closed form, without what heads of neighbours add.
        sources: The neighbours whose values are averaged, and their weights, which sum to one.
        delta: The copied or averaged delta; None for scratch.
        subspace_deltas: The deltas that span the subspace in which the method learns, for such a method.
    """

    start: HeadStart
    start_without_transferred_head: HeadStart
    sources: tuple[WeightedNeighbour, ...] = ()
    delta: Delta | None = None
    subspace_deltas: tuple[Neighbour, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the source deltas."""
        return tuple(neighbour.name for neighbour, _ in self.sources)

    @property
    def is_retraining(self) -> bool:
        """Whether a source is an earlier version of the same task."""
        return any(neighbour.is_previous_version for neighbour, _ in self.sources)

    @property
    def kind(self) -> Literal["scratch", "retrained", "nearest", "merge"]:
        """The registry's name for such a start."""
        if self.is_retraining:
            return "retrained"
        return "merge" if len(self.sources) > 1 else "nearest" if self.sources else "scratch"


def from_scratch(start: HeadStart, subspace_deltas: tuple[Neighbour, ...] = ()) -> WarmStartCandidate:
    """Return the candidate that takes no values from another task."""
    return WarmStartCandidate(start, start, subspace_deltas=subspace_deltas)


def evaluate_candidate(
    kind: Kind[Any],
    *sources: WeightedNeighbour,
    delta: Delta,
    rows: ForwardContext[Any],
    held_out: ForwardContext[Any],
) -> WarmStartCandidate:
    """Judge on held-out rows how a task would start in the features of a delta.

    Args:
        kind: Kind of the new task.
        sources: The neighbours that the delta is made of, with their weights.
        delta: The copied or averaged delta.
        rows: Train rows of the new task; their context's own delta is not used.
        held_out: Held-out rows of the new task, likewise.

    Returns:
        The candidate, with the transferred head where that is better.
    """
    train, judged = (
        ForwardContext(context.backbone, delta, context.rows, chosen_readout=context.chosen_readout)
        for context in (rows, held_out)
    )
    closed_form = kind.closed_form_start(train, judged)
    return WarmStartCandidate(
        kind.with_transferred_head(closed_form, delta.head, judged) if delta.head else closed_form,
        closed_form,
        sources,
        delta,
    )


def best_neighbour(candidates: Sequence[WarmStartCandidate]) -> WarmStartCandidate | None:
    """Return the one delta of another task in whose features the task starts best; averages are left out."""
    single = [candidate for candidate in candidates if len(candidate.sources) == 1 and not candidate.is_retraining]
    return max(single, key=lambda candidate: candidate.start_without_transferred_head.mean_quality, default=None)


def average_candidate(
    backbone: Backbone,
    settings: MethodSettings,
    *,
    scratch: WarmStartCandidate,
    candidates: Sequence[WarmStartCandidate],
) -> tuple[Delta, tuple[WeightedNeighbour, ...]] | None:
    """Average the neighbours of the same method that beat scratch, weighted by held-out gain.

    Args:
        backbone: The frozen backbone.
        settings: Method and settings of the average.
        scratch: The candidate that gains are measured against.
        candidates: Candidates of one neighbour each.

    Returns:
        The average with its sources; None where fewer than two are of use, or where they cannot be averaged.
    """
    same_method = [
        candidate
        for candidate in candidates
        if not candidate.is_retraining and candidate.delta and type(candidate.delta.settings) is type(settings)
    ]
    gains = [(candidate, candidate.start.mean_quality - scratch.start.mean_quality) for candidate in same_method]
    useful = [(candidate, gain) for candidate, gain in gains if gain > 0]
    if len(useful) < 2:
        return None
    total = sum(gain for _, gain in useful)
    sources = tuple((neighbour, gain / total) for candidate, gain in useful for neighbour, _ in candidate.sources)
    deltas, weights = [neighbour.delta for neighbour, _ in sources], [weight for _, weight in sources]
    average = average_deltas(backbone, settings, deltas, weights)
    return (average, sources) if average else None


def choose_start(
    backbone: Backbone,
    kind: str,
    *,
    scratch: WarmStartCandidate,
    candidates: Sequence[WarmStartCandidate],
    settings: MethodSettings,
    trial_score: Callable[[WarmStartCandidate], float],
) -> WarmStartCandidate:
    """Choose the start of a task by its `warm_start` setting.

    Every setting but `scratch` prefers an earlier version of the same task, where it can be copied, so that the task
    goes on learning.

    Args:
        backbone: The frozen backbone.
        kind: `scratch`; `nearest`, the first candidate that can be copied; `merge`, the average; or `auto`, the best of
            them on held-out rows if it beats scratch by more than chance, before training and after a short trial.
        scratch: The candidate without sources.
        candidates: Single neighbours in order of similarity, then an average of several.
        settings: Method and settings of the new delta.
        trial_score: Trains a candidate for a few steps and returns its score on held-out rows; called for `auto` alone.

    Returns:
        The chosen candidate, `scratch` where no candidate can be copied.
    """
    copyable = [
        candidate
        for candidate in candidates
        if candidate.delta and can_warm_start_from(backbone, candidate.delta, settings)
    ]
    if kind == "scratch" or not copyable:
        return scratch
    if retraining := [candidate for candidate in copyable if candidate.is_retraining]:
        return retraining[0]
    if kind == "nearest":
        return copyable[0]
    if kind == "merge":
        return max(copyable, key=lambda candidate: len(candidate.sources))  # of equals the first
    best = max(copyable, key=lambda candidate: candidate.start.mean_quality)
    if not _clearly_better(best.start.held_out_quality, scratch.start.held_out_quality):
        return scratch
    return best if trial_score(best) > trial_score(scratch) + MIN_TRIAL_GAIN else scratch


def _clearly_better(new: Tensor, old: Tensor) -> bool:
    """Return whether the mean gain over the same rows [N] is more than chance: few rows are no evidence."""
    gain = new.double() - old.double()
    return bool(gain.mean() > MIN_GAIN_STANDARD_ERRORS * gain.std(correction=0) / math.sqrt(len(gain)))


def initial_delta(
    backbone: Backbone, kind: Kind[Any], start: WarmStartCandidate, *, method: str, settings: MethodSettings, seed: int
) -> Delta:
    """Return the delta that training begins with: a copy of the candidate's values, and its head.

    Args:
        backbone: The frozen backbone.
        kind: Kind of the task.
        start: The chosen candidate.
        method: Name of the method.
        settings: Its settings.
        seed: Seed of the random values of a start from scratch.
    """
    values: Mapping[str, Tensor]
    if start.delta:
        values = {key: value.clone() for key, value in start.delta.values.items()}
    else:
        values = init_values(backbone, settings, seed=seed)
    if start.subspace_deltas and isinstance(settings, Subspace):
        values = settings.with_basis(values, [neighbour.delta.values for neighbour in start.subspace_deltas])
    stage = start.delta.stage if start.delta else 0  # from scratch, edits are applied from their own stage on
    delta = Delta(method, settings, backbone.fingerprint, values, start.start.head, kind_metadata(kind), stage)
    return delta.at_stage(stage or 0)
