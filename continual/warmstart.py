"""Where a new delta's values come from: nothing, or the delta of a task that is alike.

Each candidate is judged before any training by the closed-form head in its features, on held-out rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from continual.backbone import Backbone
from continual.deltas import Delta, Head, MethodSettings, copyable, fresh_values
from continual.evaluate import Prepared
from continual.features import features
from continual.head import ClosedForm, closed_form
from continual.signature import Signature, signature

SUPPORTED = ("scratch", "nearest", "auto")
NEIGHBOURS_TRIED = 3
CLEAR_GAIN = 2.0  # standard errors by which a warm start must beat scratch on held-out rows


@dataclass(frozen=True)
class Neighbour:
    """A learned task that is alike: the name of its delta, and the delta."""

    name: str
    delta: Delta


@dataclass(frozen=True)
class Candidate:
    """A possible start: from a neighbour's delta or, without one, from scratch.

    own: signature of the task's rows in the candidate's features · head: closed form in them, judged on held-out rows.
    """

    neighbour: Neighbour | None
    own: Signature
    head: ClosedForm

    @property
    def delta(self) -> Delta | None:
        return self.neighbour.delta if self.neighbour else None


def judge(
    backbone: Backbone, neighbour: Neighbour | None, *, rows: Prepared, held_out: Prepared, classes: int
) -> Candidate:
    """Take the features of rows and held-out rows through the neighbour's delta, or the frozen backbone."""
    delta = neighbour.delta if neighbour else None
    own = signature(features(backbone, rows.tokens, delta=delta), rows.classes, count=classes)
    head = closed_form(own, features(backbone, held_out.tokens, delta=delta), held_out.classes)
    return Candidate(neighbour, own, head)


def choose(
    backbone: Backbone, kind: str, *, scratch: Candidate, others: Sequence[Candidate], settings: MethodSettings
) -> Candidate:
    """The start to take: `others` are neighbours in order of similarity.

    scratch: always from scratch · nearest: from the first neighbour whose delta can be copied ·
    auto: from the one of them that answers most held-out rows, where it is better than scratch by more than chance.
    """
    copies = [other for other in others if other.delta and copyable(backbone, other.delta, settings)]
    if kind == "scratch" or not copies:
        return scratch
    if kind == "nearest":
        return copies[0]
    best = max(copies, key=lambda candidate: candidate.head.accuracy)
    return best if _clearly_better(best.head.correct, scratch.head.correct) else scratch


def _clearly_better(new: Tensor, old: Tensor) -> bool:
    """Whether the mean gain over the same rows is more than chance: few held-out rows are no evidence."""
    gain = new.double() - old.double()
    return bool(gain.mean() > CLEAR_GAIN * gain.std(correction=0) / math.sqrt(len(gain)))


def started(
    backbone: Backbone, start: Candidate, *, method: str, settings: MethodSettings, labels: tuple[str, ...], seed: int
) -> Delta:
    """The delta that training begins with: the candidate's values, and its closed-form head."""
    values: Mapping[str, Tensor] = (
        {key: value.clone() for key, value in start.neighbour.delta.values.items()}
        if start.neighbour
        else fresh_values(backbone, settings, seed=seed)
    )
    pooling = start.neighbour.delta.head.pooling if start.neighbour else backbone.pooling
    head = Head(start.head.weight, start.head.bias, labels, pooling)
    return Delta(method, settings, backbone.fingerprint, values, head)
