"""Choose tasks by the router's probabilities and, where it is unsure, by the likeliest tasks' deltas.

    log p(t | x) ← log p(t | x) + log p(ŷ_t | x, t) − E_t[log p(ŷ_t | x, t)] + ½ fit_t(x)

for the candidate tasks, where ŷ_t is the answer of the task's delta and E_t the mean over held-out rows of the task:
the joint probability of task and answer, normalised so that a delta which is always sure counts no more than one which
never is. fit_t(x) is how well the input fits the delta's own features, in standard deviations of the task's rows; the
fit to the chosen delta also decides whether the input belongs to any task.

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
    """Answers of one task's delta to N inputs, with the evidence that the inputs belong to that task.

    Attributes:
        answers: One answer per input.
        excess_log_prob: Log-probability [N] of each answer less its mean on held-out rows of the task, in nats.
        fit: Fit [N] of each input to the delta's features, in standard deviations of the task's rows.
    """

    answers: Sequence[A]
    excess_log_prob: Tensor
    fit: Tensor


@dataclass(frozen=True)
class Decision(Generic[A]):
    """The chosen task of each of N inputs, with its delta's answer.

    Attributes:
        tasks: Numbers [N] of the chosen tasks.
        log_p: Calibrated log-probabilities [N, K] of all tasks.
        fit: Fit [N] of each input to the chosen task's delta.
        answers: Answers of the chosen tasks' deltas.
    """

    tasks: Tensor
    log_p: Tensor
    fit: Tensor
    answers: tuple[A, ...]

    @property
    def confidence(self) -> Tensor:
        """Probability [N] of the chosen task."""
        return self.log_p.gather(1, self.tasks.unsqueeze(1)).squeeze(1).exp()


QueryDeltas = Callable[[Mapping[int, list[int]]], Mapping[int, Opinion[B]]]
"""From the input numbers for each task number to the opinions of the tasks' deltas on those inputs."""


def choose_tasks(router: Router, log_p: Tensor, query: QueryDeltas[B]) -> Decision[B]:
    """Choose the task of each input from the router's log-probabilities and the deltas' opinions.

    Args:
        router: Sets how many candidates are queried, and below which probability.
        log_p: The router's log-probabilities [N, K].
        query: Called once, with the inputs of all candidate tasks.

    Returns:
        The chosen tasks, with the answers of their deltas.
    """
    unsure = log_p.amax(dim=1).exp() < router.margin
    inputs_of_task = _candidate_inputs(log_p, unsure, candidates=router.candidates)
    excess, fit = torch.zeros_like(log_p), torch.zeros_like(log_p)
    answers: dict[tuple[int, int], B] = {}
    for task, opinion in query(inputs_of_task).items():
        inputs = inputs_of_task[task]
        excess[inputs, task], fit[inputs, task] = opinion.excess_log_prob, opinion.fit
        answers |= {(i, task): answer for i, answer in zip(inputs, opinion.answers, strict=True)}
    log_p = torch.log_softmax(log_p + unsure.unsqueeze(1) * (excess + FIT_WEIGHT * fit), dim=1)
    candidate_log_p = torch.full_like(log_p, -torch.inf)
    for task, inputs in inputs_of_task.items():
        candidate_log_p[inputs, task] = log_p[inputs, task]
    tasks = candidate_log_p.argmax(dim=1)
    chosen_fit = fit.gather(1, tasks.unsqueeze(1)).squeeze(1)
    return Decision(
        tasks, router.confidence(log_p), chosen_fit, tuple(answers[i, task] for i, task in enumerate(tasks.tolist()))
    )


def _candidate_inputs(log_p: Tensor, unsure: Tensor, *, candidates: int) -> dict[int, list[int]]:
    """Return the inputs of each candidate task: the likeliest or, where `unsure` [N], the first possible ones."""
    ranked = log_p.topk(candidates, dim=1)
    is_candidate = ranked.values.isfinite() & unsure.unsqueeze(1)
    is_candidate[:, 0] = True
    inputs_of_task: dict[int, list[int]] = defaultdict(list)
    for i, place in is_candidate.nonzero().tolist():
        inputs_of_task[int(ranked.indices[i, place])].append(i)
    return inputs_of_task
