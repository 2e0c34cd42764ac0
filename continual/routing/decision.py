"""From probabilities to a decision: the deltas of the likeliest tasks look again where the router is not sure.

    log p(t | x) ← log p(t | x) + log p(ŷ_t | x, t) − E_t[log p(ŷ_t | x, t)] + ½ fit_t(x)

for the tasks looked at, where ŷ_t is what the task's delta answers and E_t the mean over held-out rows of the task: the
probability of task and answer together, a delta that is always sure being no more believed than one that never is.
fit_t(x) is how well the input fits the delta's own features, in standard deviations of the task's rows; that of the
delta which is chosen also decides whether the input belongs to any task.

Shapes: N inputs, K tasks.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from continual.routing.router import Router

FIT_WEIGHT = 0.5  # nats for a standard deviation
A = TypeVar("A", covariant=True)
B = TypeVar("B")


@dataclass(frozen=True)
class Opinion(Generic[A]):
    """What a task's delta says of inputs: its answers, how much surer it is of them than usual [N], in nats, and how
    well they fit it [N]."""

    answers: Sequence[A]
    excess_log_prob: Tensor
    fit: Tensor


@dataclass(frozen=True)
class Decision(Generic[A]):
    """tasks [N]: the number of the one that is chosen · log_p [N, K] · fit [N]: to the chosen task's delta ·
    answers: of that delta."""

    tasks: Tensor
    log_p: Tensor
    fit: Tensor
    answers: tuple[A, ...]

    @property
    def confidence(self) -> Tensor:
        """The probability [N] of the task that is chosen."""
        return self.log_p.gather(1, self.tasks.unsqueeze(1)).squeeze(1).exp()


# By the number of a task, those of inputs that its delta is to look at, and what it says of them.
QueryDeltas = Callable[[Mapping[int, list[int]]], Mapping[int, Opinion[B]]]


def choose_tasks(router: Router, log_p: Tensor, ask: QueryDeltas[B]) -> Decision[B]:
    """The task of each input, from what the router says [N, K] and, of all tasks at once, their deltas are asked."""
    unsure = log_p.amax(dim=1).exp() < router.margin
    looked = _looked_at(log_p, unsure, candidates=router.candidates)
    surely, fit = torch.zeros_like(log_p), torch.zeros_like(log_p)
    answers: dict[tuple[int, int], B] = {}
    for task, opinion in ask(looked).items():
        inputs = looked[task]
        surely[inputs, task], fit[inputs, task] = opinion.excess_log_prob, opinion.fit
        answers |= {(i, task): answer for i, answer in zip(inputs, opinion.answers, strict=True)}
    log_p = torch.log_softmax(log_p + unsure.unsqueeze(1) * (surely + FIT_WEIGHT * fit), dim=1)
    among = torch.full_like(log_p, -torch.inf)
    for task, inputs in looked.items():
        among[inputs, task] = log_p[inputs, task]
    tasks = among.argmax(dim=1)
    chosen = fit.gather(1, tasks.unsqueeze(1)).squeeze(1)
    return Decision(tasks, log_p, chosen, tuple(answers[i, task] for i, task in enumerate(tasks.tolist())))


def _looked_at(log_p: Tensor, unsure: Tensor, *, candidates: int) -> dict[int, list[int]]:
    """The inputs that each task's delta looks at: those of which it is the likeliest task, or nearly so."""
    order = log_p.topk(candidates, dim=1).indices.tolist()
    looked: dict[int, list[int]] = defaultdict(list)
    for i, (likely, doubt) in enumerate(zip(order, unsure.tolist(), strict=True)):
        for task in likely if doubt else likely[:1]:
            looked[task].append(i)
    return looked
