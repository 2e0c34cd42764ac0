"""Scores of the tasks by all rules, for all tasks or for the candidates that an index proposes.

Shapes: N inputs, M width of features, C classes of all tasks, K tasks, P candidate tasks, R rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.routing.candidates import CandidateIndex, Candidates
from continual.routing.moments import max_over_classes
from continual.routing.rules import ClassRule, RoutingRule


@dataclass(frozen=True)
class ScoredTasks:
    """Scores of N inputs by R rules.

    Attributes:
        scores: Scores [N, P] of each rule; −∞ in places that are not used and of tasks that are not allowed.
        tasks: Numbers [N, P] of the candidate tasks, −1 in places that are not used; None for all K tasks in order.
        familiarity: Familiarity [N, R] by each rule.
    """

    scores: tuple[Tensor, ...]
    tasks: Tensor | None
    familiarity: Tensor

    def log_p(self, weights: Sequence[float], offsets: Tensor) -> Tensor:
        """Return log softmax of Σ_r w_r s_r + b [N, P], with offsets b [K]."""
        weighted = torch.stack([weight * score for weight, score in zip(weights, self.scores, strict=True)])
        bias = offsets if self.tasks is None else offsets[self.tasks.clamp_min(0)]
        return torch.log_softmax(weighted.sum(dim=0) + bias, dim=1)

    def places(self, task_index: Tensor) -> Tensor:
        """Return the places [N] of given tasks [N] among the candidates, −1 where they are none."""
        if self.tasks is None:
            return task_index
        is_task = self.tasks == task_index.unsqueeze(1)
        return torch.where(is_task.any(dim=1), is_task.int().argmax(dim=1), -1)


def score_candidates(
    rules: Sequence[RoutingRule],
    features: Tensor,
    task_of_class: Tensor,
    num_tasks: int,
    *,
    index: CandidateIndex | None = None,
    allowed: Tensor | None = None,
) -> ScoredTasks:
    """Score tasks by every rule.

    Args:
        rules: R rules.
        features: Features [N, M].
        task_of_class: Number [C] of each class's task.
        num_tasks: K.
        index: Proposes candidate classes; None to score all.
        allowed: Which tasks [K] can be chosen; None for all.
    """
    allowed_classes = None if allowed is None else allowed[task_of_class]
    candidates = None
    if index is not None:
        candidates = Candidates.of_classes(index.propose(features, allowed_classes), task_of_class)
    scores, familiarity = [], []
    for rule in rules:
        if isinstance(rule, ClassRule):
            by_class = rule.class_scores(features, candidates.classes if candidates else None)
            if candidates is None and allowed_classes is not None:
                by_class = by_class.masked_fill(~allowed_classes, -torch.inf)
            familiarity.append(rule.familiarity_at(features, by_class.amax(dim=1)))
            best = candidates.max_over_classes(by_class) if candidates else max_over_classes(by_class, task_of_class)
        else:
            best = rule.scores(features)
            familiarity.append(rule.familiarity(features))
            if candidates:
                best = best.gather(1, candidates.tasks.clamp_min(0)).masked_fill(candidates.tasks < 0, -torch.inf)
            elif allowed is not None:
                best = best.masked_fill(~allowed, -torch.inf)
        scores.append(best)
    return ScoredTasks(tuple(scores), candidates.tasks if candidates else None, torch.stack(familiarity, dim=1))
