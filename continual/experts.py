"""What learned deltas say of inputs, each asked as one of several that might answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from continual.backbone import Backbone
from continual.deltas import Bank, Delta, Mixed
from continual.described import RATED, log_probabilities
from continual.errors import ContinualError
from continual.features import making_room
from continual.frozen import Frozen
from continual.kinds import Answer, Hear, Kind, Outputs, Seen, fitted, kind_of_delta
from continual.reading import Named, Reading, together
from continual.residents import Residents
from continual.routing import Evidence, Opinion
from tasks import Rows, Text

Read = Callable[[Reading[Any]], Any]


@dataclass(frozen=True)
class Asked:
    """Texts that a delta is to look at, cut at `max_length` tokens.

    evidence: what it is to be compared with; without it nothing is said of surely and fit · frozen: the same texts, cut
    alike, through the frozen backbone; a delta that changes nothing there needs no pass of its own · hear: as `Seen`'s.
    """

    texts: Sequence[Text]
    max_length: int
    evidence: Evidence | None = None
    frozen: Frozen | None = None
    hear: Sequence[Hear | None] = ()


@dataclass(frozen=True)
class Failed:
    """In the place of an answer, why there is none."""

    error: str


def opinion(backbone: Backbone, delta: Delta, asked: Asked) -> Opinion[Answer]:
    """What a delta answers to each text, how surely, and how well the texts fit it."""
    return _expert(backbone, delta, asked).opinion({})


def opinion_of(
    kind: Kind[Any], seen: Seen[Any], outputs: Outputs, *, evidence: Evidence | None, read: Read | None = None
) -> Opinion[Answer]:
    """The same of rows that a delta has answered already. read: how more is read of them, where it is not now."""
    answers = kind.answers(seen.backbone, outputs, seen.rows)
    surely = fit = torch.zeros(len(answers))
    if evidence is not None:
        surely = log_probabilities(answers) - evidence.sure if kind.scored == RATED else surely
        fit = evidence.fit((read or seen.read)(seen.texts))
    return Opinion(answers, surely, fit)


def opinions(
    backbone: Backbone, residents: Residents, asked: Mapping[str, Asked]
) -> dict[str, Opinion[Answer | Failed]]:
    """What deltas say, by their names: those that are read in the same way in batches of rows of all of them.

    The texts of a delta that cannot be read or put on the device fail, and no others.
    """
    experts: dict[str, _Expert] = {}
    failed: dict[str, ContinualError] = {}
    residents.expect(asked)
    for name, own in asked.items():
        try:
            experts[name] = _expert(backbone, residents.delta(name), own)
        except ContinualError as error:
            failed[name] = error
    known = _read_together(backbone, residents, experts, failed)
    found: dict[str, Opinion[Answer | Failed]] = {}
    for name, own in asked.items():
        try:
            found[name] = _failed(own, failed[name]) if name in failed else experts[name].opinion(known)
        except ContinualError as error:
            found[name] = _failed(own, error)
    return found


@dataclass(frozen=True)
class _Expert:
    """A delta that is asked. reading: what is read of the rows for its answers."""

    delta: Delta
    kind: Kind[Any]
    seen: Seen[Any]
    reading: Reading[Any]
    evidence: Evidence | None

    @property
    def readings(self) -> dict[Reading[Any], None]:
        """All that is read of the rows."""
        return dict.fromkeys((self.reading,) if self.evidence is None else (self.reading, self.seen.texts))

    def mixes(self) -> bool:
        """Whether its rows can be in one batch with those of others."""
        return self.seen.delta is not None and Bank.takes(self.seen.backbone, self.seen.delta)

    def opinion(self, known: Mapping[Reading[Any], Any]) -> Opinion[Any]:
        """What it says. known: what has been read already."""

        def read(reading: Reading[Any]) -> Any:
            return known[reading] if reading in known else self.seen.read(reading)

        outputs = self.kind.outputs_of(self.seen.rows, self.delta.head, read(self.reading))
        return opinion_of(self.kind, self.seen, outputs, evidence=self.evidence, read=read)


def _expert(backbone: Backbone, delta: Delta, asked: Asked) -> _Expert:
    kind = kind_of_delta(delta)
    backbone = fitted(making_room(backbone, delta.settings), kind)
    rows = kind.prepare(backbone, Rows(tuple(asked.texts), ()), max_length=asked.max_length)
    unchanged = asked.frozen is not None and not delta.values
    through = Seen(backbone, delta, rows, hear=asked.hear)
    seen = Seen(backbone, None, rows, asked.frozen) if unchanged else through
    return _Expert(delta, kind, seen, kind.reading(seen, delta.head), asked.evidence)


def _failed(asked: Asked, error: ContinualError) -> Opinion[Answer | Failed]:
    nothing = torch.zeros(len(asked.texts))
    return Opinion([Failed(f"{type(error).__name__}: {error}")] * len(asked.texts), nothing, nothing)


def _read_together(
    backbone: Backbone, residents: Residents, experts: Mapping[str, _Expert], failed: dict[str, ContinualError]
) -> dict[Reading[Any], Any]:
    """What can be read in batches of rows of several deltas. failed: takes those that cannot be put on the device."""
    ways: dict[object, list[Named]] = {}
    for name, expert in experts.items():
        if expert.mixes():
            for reading in expert.readings:
                ways.setdefault(reading.read, []).append((name, reading))

    def mix(names: Sequence[str]) -> tuple[list[int], Mixed]:
        needed = set(names)
        for name in needed - failed.keys():
            own = experts[name]
            try:
                residents.hold(name, own.delta, beside=needed, backbone=own.seen.backbone)
            except ContinualError as error:
                failed[name] = error
        rows = [i for i, name in enumerate(names) if name not in failed]
        order, mixture = residents.mix([names[i] for i in rows])
        return [rows[i] for i in order], mixture

    added = {name: expert.delta.settings.added_tokens for name, expert in experts.items()}
    whole = replace(backbone, generates=True)  # some deltas of a mixture may change a decoder
    shared = [readings for readings in ways.values() if len({name for name, _ in readings}) > 1]
    parts = [together(whole, readings, mix, slots=residents.slots, added=added) for readings in shared]
    return {reading: found for part in parts for reading, found in part.items()}
