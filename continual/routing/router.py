"""One or more rules as one router whose numbers mean something: probabilities of tasks, and "none of them".

    log p(t | x) = log softmax_t (Σ_r w_r s_r(x, t) + b_t)

The settings of each rule, the weights w ≥ 0 and offsets b, how many tasks are worth a second look and when, and below
which value an input belongs to no task are chosen on the tasks' held-out rows; every task counts the same. Nothing here
looks at a train row or at an input of no task.

Shapes: N inputs, H held-out rows of all tasks, K tasks, R rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.features.random_features import FrozenFeatures
from continual.routing.held_out import Features, HeldOutRows, collect_held_out, fit_calibration
from continual.routing.rules import AUTO, ROUTERS, RoutingRule, rule_names
from continual.routing.statistics import RoutingStatistics
from continual.routing.totals import AccumulatedMoments
from continual.settings import FALSE_ABSTENTION_RATE

SECOND_LOOK_PROBABILITY = 0.001  # a second look is taken where the router alone would err more often than this
MIN_CANDIDATES, CANDIDATES = 3, 5  # so many tasks are looked at again


@dataclass(frozen=True)
class Router:
    """The tasks that are known, in order, and how to tell them apart.

    features: those that are looked at · rules with their weights, offsets [K] · scale [R, 2]: mean and standard
    deviation of what each holds for known · candidates: how many tasks are looked at again where the best has a
    probability below `margin` · levels [H], ascending: known and fit together of held-out rows, which count
    `level_weights`.
    """

    tasks: tuple[str, ...]
    features: Features
    rules: tuple[RoutingRule, ...]
    weights: tuple[float, ...]
    offsets: Tensor
    scale: Tensor
    candidates: int
    margin: float
    familiarity_levels: Tensor
    level_weights: Tensor

    def log_p(self, seen: FrozenFeatures) -> Tensor:
        """Log probabilities of the tasks [N, K]."""
        features = getattr(seen, self.features).float()
        scores = [rule.scores(features) for rule in self.rules]
        return _log_p(scores, self.weights, self.offsets)

    def familiarity(self, seen: FrozenFeatures) -> Tensor:
        """How much each input is like those of any task [N], by frozen features alone."""
        features = getattr(seen, self.features).float()
        return _standard(torch.stack([rule.familiarity(features) for rule in self.rules], dim=1), self.scale)

    def threshold(self, false_abstentions: float = FALSE_ABSTENTION_RATE) -> float:
        """What known and fit come to together in all but this share of the rows of known tasks."""
        below = int((torch.cumsum(self.level_weights, dim=0) <= false_abstentions).sum())
        return float(self.familiarity_levels[below]) if 0 < below < len(self.familiarity_levels) else -torch.inf


def build_router(
    parts: Mapping[str, RoutingStatistics], *, kind: str = AUTO, totals: AccumulatedMoments | None = None
) -> Router:
    """The router of one task or more: by a rule of `ROUTERS`, or by both of our own together (`auto`).

    totals: the sums over some of them, which those over all are made of.
    """
    sums = totals or AccumulatedMoments()
    sums.update_to(parts)
    ordered = sums.sorted_by_name()
    rows = collect_held_out([*ordered.tasks], parts, features="random_features")
    return calibrate(ordered, rows, features="random_features", names=rule_names(kind))


def calibrate(totals: AccumulatedMoments, rows: HeldOutRows, *, features: Features, names: Sequence[str]) -> Router:
    """The router of the tasks in `totals` by the rules of these names, its settings chosen on held-out rows.

    Without any, as where all was learned by an older release, each rule is taken as it is, and nothing is abstained on.
    """
    rules = [ROUTERS[name](totals, rows) for name in names]
    if not len(rows.task_index):
        return _plain(totals, rules, features=features)
    scores = [rule.scores(rows.features) for rule in rules]
    weights, offsets = fit_calibration(scores, rows)
    log_p = _log_p(scores, weights, offsets)
    known = torch.stack([rule.familiarity(rows.features) for rule in rules], dim=1)
    scale = _scale(known, rows.weights)
    together = _standard(known, scale) + rows.fit
    order = together.argsort()
    candidates, margin = _second_look(log_p, rows)
    return Router(
        tasks=tuple(totals.tasks),
        features=features,
        rules=tuple(rules),
        weights=tuple(weights),
        offsets=offsets,
        scale=scale,
        candidates=candidates,
        margin=margin,
        familiarity_levels=together[order],
        level_weights=rows.weights[order],
    )


def _plain(totals: AccumulatedMoments, rules: Sequence[RoutingRule], *, features: Features) -> Router:
    none, tasks = torch.zeros(0), tuple(totals.tasks)
    return Router(
        tasks=tasks,
        features=features,
        rules=tuple(rules),
        weights=(1.0,) * len(rules),
        offsets=torch.zeros(len(tasks)),
        scale=torch.tensor([[0.0, 1.0]]).expand(len(rules), 2),
        candidates=1,
        margin=0.0,
        familiarity_levels=none,
        level_weights=none,
    )


def _log_p(scores: Sequence[Tensor], weights: Sequence[float], offsets: Tensor) -> Tensor:
    weighted = [weight * score for weight, score in zip(weights, scores, strict=True)]
    return torch.log_softmax(torch.stack(weighted).sum(dim=0) + offsets, dim=1)


def _standard(known: Tensor, scale: Tensor) -> Tensor:
    """The sum [N] of what the rules hold for known [N, R], each in its own standard deviations."""
    return ((known - scale[:, 0]) / scale[:, 1]).sum(dim=1)


def _scale(known: Tensor, weights: Tensor) -> Tensor:
    """Mean and standard deviation [R, 2] of what the rules hold for known."""
    mean = (known * weights.unsqueeze(1)).sum(dim=0)
    variance = ((known - mean).square() * weights.unsqueeze(1)).sum(dim=0)
    return torch.stack([mean, variance.sqrt().clamp_min(1e-12)], dim=1)


def _second_look(log_p: Tensor, rows: HeldOutRows) -> tuple[int, float]:
    """How many tasks hold the right one for nearly all rows, and the probability above which the best is right."""
    rank = (log_p > log_p.gather(1, rows.task_index.unsqueeze(1))).sum(dim=1)
    most = min(CANDIDATES, log_p.shape[1])
    missed = [float((rows.weights * (rank >= k)).sum()) for k in range(1, most + 1)]
    candidates = next((k for k, miss in enumerate(missed, start=1) if miss <= SECOND_LOOK_PROBABILITY), most)
    sure, wrong = log_p.amax(dim=1).exp(), rows.weights * (rank > 0)
    order = sure.argsort(descending=True)
    errors = torch.cumsum(wrong[order], dim=0) > SECOND_LOOK_PROBABILITY
    margin = float(sure[order][int(errors.int().argmax())]) if bool(errors.any()) else 0.0
    return max(candidates, min(MIN_CANDIDATES, most)), margin
