"""What learned deltas say of inputs, each asked as one of several that might answer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from continual.backbone import Backbone, Pooling
from continual.deltas import Bank, Delta, attached
from continual.described import RATED, log_probabilities
from continual.errors import ContinualError
from continual.features import Tokens, joined, making_room, pad, pool, sorted_batches
from continual.frozen import Frozen
from continual.kinds import Answer, Kind, Outputs, PooledKind, Seen, fitted, kind_of_delta
from continual.residents import Residents
from continual.routing import Evidence, Opinion
from tasks import Rows, Text

Batches = Iterator[list[int]]


@dataclass(frozen=True)
class Asked:
    """Texts that a delta is to look at, cut at `max_length` tokens.

    evidence: what it is to be compared with; without it nothing is said of surely and fit · frozen: the same texts, cut
    alike, through the frozen backbone; a delta that changes nothing there needs no pass of its own.
    """

    texts: Sequence[Text]
    max_length: int
    evidence: Evidence | None = None
    frozen: Frozen | None = None


@dataclass(frozen=True)
class Failed:
    """In the place of an answer, why there is none."""

    error: str


def opinion(backbone: Backbone, delta: Delta, asked: Asked) -> Opinion[Answer]:
    """What a delta answers to each text, how surely, and how well the texts fit it."""
    kind, seen = _seen(backbone, delta, asked)
    return opinion_of(kind, seen, kind.outputs(seen, delta.head), evidence=asked.evidence)


def opinion_of(kind: Kind[Any], seen: Seen[Any], outputs: Outputs, *, evidence: Evidence | None) -> Opinion[Answer]:
    """The same of rows that a delta has answered already."""
    answers = kind.answers(seen.backbone, outputs, seen.rows)
    surely = fit = torch.zeros(len(answers))
    if evidence is not None:
        surely = log_probabilities(answers) - evidence.sure if kind.scored == RATED else surely
        fit = evidence.fit(seen.vectors)
    return Opinion(answers, surely, fit)


def opinions(
    backbone: Backbone, residents: Residents, asked: Mapping[str, Asked]
) -> dict[str, Opinion[Answer | Failed]]:
    """What deltas say, by their names: those that answer from pooled vectors in batches of rows of all of them.

    The texts of a delta that cannot be read or put on the device fail, and no others.
    """
    found: dict[str, Opinion[Answer | Failed]] = {}
    deltas: dict[str, Delta] = {}
    looking: dict[str, tuple[Kind[Any], Seen[Any]]] = {}
    residents.expect(asked)
    for name, own in asked.items():
        try:
            deltas[name] = residents.delta(name)
            looking[name] = _seen(backbone, deltas[name], own)
        except ContinualError as error:
            found[name] = _failed(own, error)
    mixed = {name: seen for name, (kind, seen) in looking.items() if _mixes(kind, seen)}
    vectors = vectors_together(backbone, residents, mixed) if len(mixed) > 1 else {}
    for name, (kind, seen) in looking.items():
        through = vectors.get(name)
        if isinstance(through, ContinualError):
            found[name] = _failed(asked[name], through)
        else:
            seen = replace(seen, through=through)
            outputs = kind.outputs(seen, deltas[name].head)
            found[name] = opinion_of(kind, seen, outputs, evidence=asked[name].evidence)
    return found


def _seen(backbone: Backbone, delta: Delta, asked: Asked) -> tuple[Kind[Any], Seen[Any]]:
    kind = kind_of_delta(delta)
    backbone = fitted(making_room(backbone, delta.settings), kind)
    rows = kind.prepare(backbone, Rows(tuple(asked.texts), ()), max_length=asked.max_length)
    if asked.frozen is not None and not delta.values:
        return kind, Seen(backbone, None, rows, asked.frozen)
    return kind, Seen(backbone, delta, rows)


def _mixes(kind: Kind[Any], seen: Seen[Any]) -> bool:
    return isinstance(kind, PooledKind) and seen.delta is not None and Bank.takes(seen.backbone, seen.delta)


def _failed(asked: Asked, error: ContinualError) -> Opinion[Answer | Failed]:
    nothing = torch.zeros(len(asked.texts))
    return Opinion([Failed(f"{type(error).__name__}: {error}")] * len(asked.texts), nothing, nothing)


@torch.inference_mode()
def vectors_together(
    backbone: Backbone, residents: Residents, seen: Mapping[str, Seen[Any]]
) -> dict[str, Tensor | ContinualError]:
    """The pooled vectors [N, D] of each delta's rows, on the CPU, in batches of rows of all; or why there are none."""
    names = [name for name, own in seen.items() for _ in range(len(own.rows.tokens))]
    tokens = joined([own.rows.tokens for own in seen.values()])
    vectors = torch.empty(len(tokens), backbone.hidden_size)
    failed: dict[str, ContinualError] = {}
    deltas = {name: own.delta for name, own in seen.items() if own.delta}
    added = {name: delta.settings.added_tokens for name, delta in deltas.items()}
    for batch in _batches(tokens, names, added, slots=residents.slots, longest=backbone.longest_input):
        needed = {names[row] for row in batch}
        for name in needed - failed.keys():
            try:
                residents.hold(name, deltas[name], beside=needed)
            except ContinualError as error:
                failed[name] = error
        rows = [row for row in batch if names[row] not in failed]
        if rows:
            order, mixture = residents.mix([names[row] for row in rows])
            chosen = [rows[i] for i in order]
            with attached(backbone, mixture):
                vectors[chosen] = _pooled(backbone, tokens, chosen, [seen[names[row]].pooling for row in chosen])
    parts = torch.split(vectors, [len(own.rows.tokens) for own in seen.values()])
    return {name: failed.get(name, part) for name, part in zip(seen, parts, strict=True)}


def _batches(tokens: Tokens, names: Sequence[str], added: Mapping[str, int], *, slots: int, longest: int) -> Batches:
    """Batches of texts of like length: of not more than so many deltas, and that all fit the backbone's positions.

    added: how many tokens a delta puts before its texts, which makes those of a whole batch longer.
    """
    for rows in sorted_batches(tokens.lengths):
        own: list[int] = []
        for row in rows:
            more = [*own, row]
            width = max(tokens.lengths[i] for i in more) + max(added[names[i]] for i in more)
            if own and (len({names[i] for i in more}) > slots or width > longest):
                yield own
                more = [row]
            own = more
        yield own


def _pooled(backbone: Backbone, tokens: Tokens, rows: Sequence[int], poolings: Sequence[Pooling]) -> Tensor:
    """Vectors [B, D] of a batch through what is attached, each pooled in its own way."""
    batch = pad(backbone, tokens, rows)
    with backbone.precision():
        hidden = backbone.hidden_states(batch)
    by_way = {way: pool(hidden, batch["attention_mask"], way) for way in dict.fromkeys(poolings)}
    return torch.stack([by_way[way][i] for i, way in enumerate(poolings)]).cpu()
