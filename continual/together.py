"""Several deltas trained at once: one pass of the backbone for a batch of each.

    ∇ Σ_i L_i = (∇ L_1, …, ∇ L_n)

since the loss L_i of a task depends on its own rows and its own delta alone: every delta gets the gradient that it
would get by itself. Each has an optimiser of its own, so those that wait do not move, and each ends when it is done.

Shapes: B rows of all tasks, T tokens, D hidden size.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from continual.backbone import Backbone
from continual.deltas import Bank, Mixed, Stack, attached, stack_of
from continual.errors import LearnError
from continual.features import joined, pad, pool
from continual.train import Spent, Stint, Trained, Training, alone, seeded


@dataclass
class _Going:
    """A training and the stint it is at."""

    training: Training
    stint: Stint[Any]
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def batch(self) -> Any:
        return self.stint.batches[len(self.losses)]

    @property
    def done(self) -> bool:
        return len(self.losses) == len(self.stint.batches)


def train_together(
    backbone: Backbone, trainings: Mapping[str, Training], *, seed: int
) -> Iterator[tuple[str, Trained | LearnError]]:
    """What becomes of each training, by name, as soon as it is done: what was trained, or why it could not be.

    Those whose loss does not follow from pooled vectors, or that change what all rows of a batch have in common, are
    trained by themselves. Texts of all others share their batches.
    """
    with seeded(seed):
        going: dict[str, _Going] = {}
        for name, training in trainings.items():
            yield from _on(backbone, going, name, training)
        while going:
            for name, failure in _step(backbone, going):
                going.pop(name)
                yield name, failure
            for name in [name for name, own in going.items() if own.done]:
                own = going.pop(name)
                yield from _on(backbone, going, name, own.training, Spent(own.losses, own.seconds))


def _on(
    backbone: Backbone, going: dict[str, _Going], name: str, training: Training, spent: Spent | None = None
) -> Iterator[tuple[str, Trained | LearnError]]:
    """Bring a training to its next stint that can be done together with others, or to its end."""
    try:
        stint = next(training) if spent is None else training.send(spent)
        while not _shares(backbone, stint):
            stint = training.send(alone(backbone, stint))
        going[name] = _Going(training, stint)
    except StopIteration as end:
        yield name, end.value
    except LearnError as error:
        yield name, error


def _shares(backbone: Backbone, stint: Stint[Any]) -> bool:
    return stint.lesson.from_vectors is not None and Bank.takes(backbone, stint.delta)


def _step(backbone: Backbone, going: Mapping[str, _Going]) -> list[tuple[str, LearnError]]:
    """One step of each training; those whose loss is no number fail, and move nothing."""
    began, failed = time.perf_counter(), []
    ordered = sorted(going.items(), key=lambda pair: hash(pair[1].stint.own.key))  # those of one stack together
    with backbone.dropping():
        losses = _losses(backbone, [own for _, own in ordered])
    good = []
    for (name, own), loss in zip(ordered, losses, strict=True):
        try:
            own.losses.append(own.stint.optimise.checked(loss))
            good.append((own, loss))
        except LearnError as error:
            failed.append((name, error))
    if good:
        torch.autograd.backward([loss for _, loss in good])
    for own, _ in good:
        own.stint.optimise.step()
        own.stint.step()
    for own, _ in good:
        own.seconds += (time.perf_counter() - began) / len(good)
    return failed


def _losses(backbone: Backbone, going: list[_Going]) -> list[Tensor]:
    """The loss of each training's next batch, all from one pass."""
    lessons = [own.stint.lesson.from_vectors for own in going]
    texts = [lesson.tokens(own.batch) for lesson, own in zip(lessons, going, strict=True) if lesson]
    counts = [len(own) for own in texts]
    batch = pad(backbone, joined(texts), range(sum(counts)))
    with attached(backbone, _mixed(going, counts)), backbone.precision():
        hidden = backbone.hidden_states(batch)
    losses, begin = [], 0
    for own, lesson, count in zip(going, lessons, counts, strict=True):
        rows, head = slice(begin, begin + count), own.stint.delta.head
        assert lesson is not None
        assert head is not None
        vectors = pool(hidden[rows], batch["attention_mask"][rows], head.pooling)
        losses.append(own.stint.loss(backbone, lesson.loss(head, vectors, own.batch)))
        begin += count
    return losses


def _mixed(going: list[_Going], counts: list[int]) -> Mixed:
    """The mixture of a batch in which `counts` rows of each training follow each other."""
    shares: list[tuple[Stack, list[int]]] = []
    members: dict[object, list[tuple[Stint[Any], int]]] = {}
    for own, count in zip(going, counts, strict=True):
        members.setdefault(own.stint.own.key, []).append((own.stint, count))
    for several in members.values():
        pools = [torch.stack(same, dim=1) for same in zip(*(stint.pools for stint, _ in several), strict=True)]
        slots = [slot for slot, (_, count) in enumerate(several) for _ in range(count)]
        shares.append((stack_of(several[0][0].own, pools), slots))
    return Mixed(shares, sum(counts))
