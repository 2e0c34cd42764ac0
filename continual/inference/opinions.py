"""What learned deltas say of inputs, each asked as one of several that might answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from continual.backbones.backbone import Backbone
from continual.deltas import Bank, Delta, MixedBatch
from continual.features.forward import ForwardRequest, NamedRequest, run_mixed_forward
from continual.features.random_features import FrozenFeatures
from continual.features.tokens import reserve_tokens
from continual.inference.delta_cache import DeltaCache
from continual.inference.task_statistics import PROBABILISTIC_KIND, answer_log_probabilities
from continual.kinds import Answer, ForwardContext, Kind, Outputs, TokenCallback, backbone_for, kind_of_delta
from continual.routing import FitStatistics, Opinion
from tasks import LabelledTexts, Text
from tasks.errors import ContinualError

ReadForward = Callable[[ForwardRequest[Any]], Any]


@dataclass(frozen=True)
class DeltaQuery:
    """Texts that a delta is to look at, cut at `max_length` tokens.

    evidence: what it is to be compared with; without it nothing is said of surely and fit · frozen: the same texts, cut
    alike, through the frozen backbone; a delta that changes nothing there needs no pass of its own · hear: as `Seen`'s.
    """

    texts: Sequence[Text]
    max_length: int
    evidence: FitStatistics | None = None
    frozen: FrozenFeatures | None = None
    on_token: Sequence[TokenCallback | None] = ()


@dataclass(frozen=True)
class FailedAnswer:
    """In the place of an answer, why there is none."""

    error: str


def query_delta(backbone: Backbone, delta: Delta, asked: DeltaQuery) -> Opinion[Answer]:
    """What a delta answers to each text, how surely, and how well the texts fit it."""
    return _expert(backbone, delta, asked).opinion({})


def opinion_from_outputs(
    kind: Kind[Any],
    seen: ForwardContext[Any],
    outputs: Outputs,
    *,
    evidence: FitStatistics | None,
    read: ReadForward | None = None,
) -> Opinion[Answer]:
    """The same of rows that a delta has answered already. read: how more is read of them, where it is not now."""
    answers = kind.answers(seen.backbone, outputs, seen.rows)
    surely = fit = torch.zeros(len(answers))
    if evidence is not None:
        surely = (
            answer_log_probabilities(answers) - evidence.mean_log_prob
            if kind.metric_kind == PROBABILISTIC_KIND
            else surely
        )
        fit = evidence.fit((read or seen.run)(seen.pooled_request))
    return Opinion(answers, surely, fit)


def query_deltas(
    backbone: Backbone, residents: DeltaCache, asked: Mapping[str, DeltaQuery]
) -> dict[str, Opinion[Answer | FailedAnswer]]:
    """What deltas say, by their names: those that are read in the same way in batches of rows of all of them.

    The texts of a delta that cannot be read or put on the device fail, and no others.
    """
    experts: dict[str, _DeltaQueryPlan] = {}
    failed: dict[str, ContinualError] = {}
    residents.prefetch(asked)
    for name, own in asked.items():
        try:
            experts[name] = _expert(backbone, residents.get(name), own)
        except ContinualError as error:
            failed[name] = error
    known = _read_together(backbone, residents, experts, failed)
    found: dict[str, Opinion[Answer | FailedAnswer]] = {}
    for name, own in asked.items():
        try:
            found[name] = _failed(own, failed[name]) if name in failed else experts[name].opinion(known)
        except ContinualError as error:
            found[name] = _failed(own, error)
    return found


@dataclass(frozen=True)
class _DeltaQueryPlan:
    """A delta that is asked. reading: what is read of the rows for its answers."""

    delta: Delta
    kind: Kind[Any]
    seen: ForwardContext[Any]
    reading: ForwardRequest[Any]
    evidence: FitStatistics | None

    @property
    def readings(self) -> dict[ForwardRequest[Any], None]:
        """All that is read of the rows."""
        return dict.fromkeys((self.reading,) if self.evidence is None else (self.reading, self.seen.pooled_request))

    def mixes(self) -> bool:
        """Whether its rows can be in one batch with those of others."""
        return self.seen.delta is not None and Bank.can_batch(self.seen.backbone, self.seen.delta)

    def opinion(self, known: Mapping[ForwardRequest[Any], Any]) -> Opinion[Any]:
        """What it says. known: what has been read already."""

        def read(reading: ForwardRequest[Any]) -> Any:
            return known[reading] if reading in known else self.seen.run(reading)

        outputs = self.kind.outputs_from(self.seen.rows, self.delta.head, read(self.reading))
        return opinion_from_outputs(self.kind, self.seen, outputs, evidence=self.evidence, read=read)


def _expert(backbone: Backbone, delta: Delta, asked: DeltaQuery) -> _DeltaQueryPlan:
    kind = kind_of_delta(delta)
    backbone = backbone_for(reserve_tokens(backbone, delta.settings), kind)
    rows = kind.prepare(backbone, LabelledTexts(tuple(asked.texts), ()), max_length=asked.max_length)
    unchanged = asked.frozen is not None and not delta.values
    through = ForwardContext(backbone, delta, rows, on_token=asked.on_token)
    seen = ForwardContext(backbone, None, rows, asked.frozen) if unchanged else through
    return _DeltaQueryPlan(delta, kind, seen, kind.forward_request(seen, delta.head), asked.evidence)


def _failed(asked: DeltaQuery, error: ContinualError) -> Opinion[Answer | FailedAnswer]:
    nothing = torch.zeros(len(asked.texts))
    return Opinion([FailedAnswer(f"{type(error).__name__}: {error}")] * len(asked.texts), nothing, nothing)


def _read_together(
    backbone: Backbone, residents: DeltaCache, experts: Mapping[str, _DeltaQueryPlan], failed: dict[str, ContinualError]
) -> dict[ForwardRequest[Any], Any]:
    """What can be read in batches of rows of several deltas. failed: takes those that cannot be put on the device."""
    ways: dict[object, list[NamedRequest]] = {}
    for name, expert in experts.items():
        if expert.mixes():
            for reading in expert.readings:
                ways.setdefault(reading.forward, []).append((name, reading))

    def mix(names: Sequence[str]) -> tuple[list[int], MixedBatch]:
        needed = set(names)
        for name in needed - failed.keys():
            own = experts[name]
            try:
                residents.put_on_device(name, own.delta, beside=needed, backbone=own.seen.backbone)
            except ContinualError as error:
                failed[name] = error
        rows = [i for i, name in enumerate(names) if name not in failed]
        order, mixture = residents.mixed_batch([names[i] for i in rows])
        return [rows[i] for i in order], mixture

    added = {name: expert.delta.settings.added_tokens for name, expert in experts.items()}
    whole = replace(backbone, edits_decoder=True)  # some deltas of a mixture may change a decoder
    shared = [readings for readings in ways.values() if len({name for name, _ in readings}) > 1]
    parts = [run_mixed_forward(whole, readings, mix, slots=residents.slots, added=added) for readings in shared]
    return {reading: found for part in parts for reading, found in part.items()}
