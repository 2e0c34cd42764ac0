"""What learned deltas say of inputs, each asked as one of several that might answer."""

from collections.abc import Sequence
from typing import Any

import torch

from continual.backbone import Backbone
from continual.deltas import Delta
from continual.described import RATED, log_probabilities
from continual.features import making_room
from continual.frozen import Frozen
from continual.kinds import Answer, Kind, Outputs, Seen, fitted, kind_of_delta
from continual.routing import Evidence, Opinion
from tasks import Rows, Text


def opinion(
    backbone: Backbone,
    delta: Delta,
    texts: Sequence[Text],
    *,
    max_length: int,
    evidence: Evidence | None = None,
    frozen: Frozen | None = None,
) -> Opinion[Answer]:
    """What a delta answers to each text, cut at `max_length` tokens, how surely, and how well the texts fit it.

    evidence: what it is to be compared with; without it nothing is said of the last two · frozen: the same texts, cut
    alike, through the frozen backbone; a delta that changes nothing there needs no pass of its own.
    """
    kind = kind_of_delta(delta)
    backbone = fitted(making_room(backbone, delta.settings), kind)
    rows = kind.prepare(backbone, Rows(tuple(texts), ()), max_length=max_length)
    seen = Seen(backbone, delta, rows) if delta.values or frozen is None else Seen(backbone, None, rows, frozen)
    return opinion_of(kind, seen, kind.outputs(seen, delta.head), evidence=evidence)


def opinion_of(kind: Kind[Any], seen: Seen[Any], outputs: Outputs, *, evidence: Evidence | None) -> Opinion[Answer]:
    """The same of rows that a delta has answered already."""
    answers = kind.answers(seen.backbone, outputs, seen.rows)
    surely = fit = torch.zeros(len(answers))
    if evidence is not None:
        surely = log_probabilities(answers) - evidence.sure if kind.scored == RATED else surely
        fit = evidence.fit(seen.vectors)
    return Opinion(answers, surely, fit)
