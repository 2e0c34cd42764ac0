"""Calibrate rules into a router: probabilities of tasks, and a threshold for inputs of no task.

    log p(t | x) = log softmax_t (Σ_r w_r s_r(x, t) + b_t)

The settings of each rule, the weights w ≥ 0 and offsets b, how many candidates the deltas are queried for and when, and
the threshold of abstention are chosen on the tasks' held-out rows; every task counts the same. No train row and no
input of an unknown task is used.

Shapes: N inputs, H held-out rows of all tasks, M width of features, K tasks, R rules.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from continual.features.random_features import FrozenFeatures
from continual.routing.calibration import IDENTITY, fit_calibration, recalibrate
from continual.routing.candidates import EXHAUSTIVE_CLASSES, CandidateIndex, build_index
from continual.routing.held_out import (
    Features,
    HeldOutRows,
    TaskHeldOut,
    join_held_out,
    task_held_out,
)
from continual.routing.moments import WIDTH, AccumulatedMoments
from continual.routing.rules import AUTO, ROUTERS, RoutingRule, rule_names
from continual.routing.scores import score_candidates
from continual.routing.statistics import RoutingStatistics
from continual.settings import FALSE_ABSTENTION_RATE

SECOND_LOOK_PROBABILITY = 0.001  # deltas are queried where the router alone would err more often than this
MIN_CANDIDATES, CANDIDATES = 3, 5  # bounds of the number of tasks whose deltas are queried


@dataclass(frozen=True)
class RoutedInputs:
    """What a router computes of N inputs.

    Attributes:
        log_p: Log-probabilities [N, K] of the tasks; −∞ of those that are no candidates.
        familiarity: How much each input resembles the tasks' rows [N].
    """

    log_p: Tensor
    familiarity: Tensor


@dataclass(frozen=True)
class Router:
    """A calibrated router among K tasks.

    Attributes:
        tasks: Names of the tasks, in the order of their numbers.
        features: Attribute of `FrozenFeatures` that the rules read.
        rules: R rules.
        weights: R weights w of the rules' scores.
        offsets: Offsets b [K] of the tasks.
        curve: Coefficients of the confidence; see `continual.routing.calibration`.
        scale: Mean and standard deviation [R, 2] of each rule's familiarity on held-out rows.
        candidates: How many tasks' deltas are queried where the likeliest has a probability below `margin`.
        margin: A probability; 0 where no delta needs to be queried.
        familiarity_levels: Familiarity plus fit [H] of the held-out rows, ascending.
        level_weights: Weights [H] of those rows, 1 in all.
        level_tasks: Numbers [H] of their tasks.
        task_of_class: Number [C] of each class's task.
        index: Proposes the classes that rules are evaluated for; None where they are evaluated for all.
        allowed: Which tasks [K] can be chosen; None where all can.
    """

    tasks: tuple[str, ...]
    features: Features
    rules: tuple[RoutingRule, ...]
    weights: tuple[float, ...]
    offsets: Tensor
    curve: tuple[float, float, float]
    scale: Tensor
    candidates: int
    margin: float
    familiarity_levels: Tensor
    level_weights: Tensor
    level_tasks: Tensor
    task_of_class: Tensor
    index: CandidateIndex | None = None
    allowed: Tensor | None = None

    def among(self, tasks: Collection[str]) -> "Router":
        """Return the router that chooses among some of the tasks: log p(t | x, t is one of them).

        Its threshold is that of the held-out rows of these tasks.

        Args:
            tasks: Names of tasks of the router, at least one.
        """
        chosen = set(tasks)
        allowed = torch.tensor([name in chosen for name in self.tasks])
        is_level = allowed[self.level_tasks]
        weights = self.level_weights[is_level]
        return replace(
            self,
            candidates=min(self.candidates, int(allowed.sum())),
            familiarity_levels=self.familiarity_levels[is_level],
            level_weights=weights / weights.sum(),
            level_tasks=self.level_tasks[is_level],
            allowed=allowed,
        )

    def route(self, frozen: FrozenFeatures) -> RoutedInputs:
        """Compute log-probabilities [N, K] and familiarity [N] from frozen features of N inputs."""
        features = getattr(frozen, self.features)[:, :WIDTH].float()
        scored = score_candidates(
            self.rules, features, self.task_of_class, len(self.tasks), index=self.index, allowed=self.allowed
        )
        log_p = scored.log_p(self.weights, self.offsets)
        if scored.tasks is not None:
            everywhere = torch.full((len(log_p), len(self.tasks) + 1), -torch.inf)
            log_p = everywhere.scatter_(1, scored.tasks % (len(self.tasks) + 1), log_p)[:, :-1]
        return RoutedInputs(log_p, _standardize(scored.familiarity, self.scale))

    def log_p(self, frozen: FrozenFeatures) -> Tensor:
        """Compute the log-probabilities [N, K] of the tasks from frozen features of N inputs."""
        return self.route(frozen).log_p

    def confidence(self, log_p: Tensor) -> Tensor:
        """Return calibrated log-probabilities [N, K] from those of tasks [N, K]; their order in a row is the same."""
        return recalibrate(log_p, curve=self.curve)

    def familiarity(self, frozen: FrozenFeatures) -> Tensor:
        """Compute how much each of N inputs resembles the tasks' rows [N], from frozen features alone."""
        return self.route(frozen).familiarity

    def threshold(self, false_abstentions: float = FALSE_ABSTENTION_RATE) -> float:
        """Return the familiarity plus fit below which an input belongs to no task.

        Args:
            false_abstentions: Share of the held-out rows that lie below; every task counts the same.

        Returns:
            The threshold, or −∞ where no row may lie below or there are no held-out rows.
        """
        below = int((torch.cumsum(self.level_weights, dim=0) <= false_abstentions).sum())
        return float(self.familiarity_levels[below]) if 0 < below < len(self.familiarity_levels) else -torch.inf


def build_router(
    parts: Mapping[str, RoutingStatistics], *, kind: str = AUTO, totals: AccumulatedMoments | None = None
) -> Router:
    """Build a calibrated router of at least one task.

    Args:
        parts: Statistics by task name.
        kind: Name of a rule of `ROUTERS`, or `auto` for all built-in rules together.
        totals: Sums over some of the tasks, to be extended in place to all of them; empty where not given.

    Returns:
        The router, with its tasks sorted by name.

    Raises:
        RoutingError: There is no such rule.
    """
    sums = totals or AccumulatedMoments()
    sums.update_to(parts)
    held_out = {name: task_held_out(part, features="random_features") for name, part in parts.items()}
    return build_from_sums(sums, held_out, kind=kind)


def build_from_sums(totals: AccumulatedMoments, held_out: Mapping[str, TaskHeldOut], *, kind: str = AUTO) -> Router:
    """Build a calibrated router from sums over tasks and their held-out rows in random features; see `build_router`."""
    ordered = totals.sorted_by_name()
    rows = join_held_out([*ordered.tasks], held_out)
    return calibrate(ordered, rows, features="random_features", names=rule_names(kind))


def calibrate(totals: AccumulatedMoments, rows: HeldOutRows, *, features: Features, names: Sequence[str]) -> Router:
    """Build a router of the tasks in `totals`, its settings chosen on held-out rows.

    Without held-out rows, as where all tasks were learned by an older release, the rules keep their default settings
    and the router never abstains.

    Args:
        totals: Sums over the tasks.
        rows: Held-out rows [H, M], whose task numbers follow the order of `totals`.
        features: Attribute of `FrozenFeatures` that `totals` and `rows` were taken from.
        names: Names of rules in `ROUTERS`.

    Returns:
        The router.
    """
    rules = [ROUTERS[name](totals, rows) for name in names]
    task_of_class, num_tasks = totals.task_of_class, len(totals.tasks)
    index = build_index(totals) if len(task_of_class) > EXHAUSTIVE_CLASSES else None
    if not len(rows.task_index):
        return _uncalibrated(totals, rules, features=features, index=index)
    scored = score_candidates(rules, rows.features, task_of_class, num_tasks, index=index)
    fitted = fit_calibration(scored.scores, rows, candidates=scored.tasks, num_tasks=num_tasks)
    scale = _mean_and_deviation(scored.familiarity, rows.weights)
    levels = _standardize(scored.familiarity, scale) + rows.fit
    order = levels.argsort()
    candidates, margin = _second_look(
        scored.log_p(fitted.weights, fitted.offsets), scored.places(rows.task_index), rows.weights
    )
    return Router(
        tasks=tuple(totals.tasks),
        features=features,
        rules=tuple(rules),
        weights=tuple(fitted.weights),
        offsets=fitted.offsets,
        curve=fitted.curve,
        scale=scale,
        candidates=candidates,
        margin=margin,
        familiarity_levels=levels[order],
        level_weights=rows.weights[order],
        level_tasks=rows.task_index[order],
        task_of_class=task_of_class,
        index=index,
    )


def _uncalibrated(
    totals: AccumulatedMoments, rules: Sequence[RoutingRule], *, features: Features, index: CandidateIndex | None
) -> Router:
    empty, tasks = torch.zeros(0), tuple(totals.tasks)
    return Router(
        tasks=tasks,
        features=features,
        rules=tuple(rules),
        weights=(1.0,) * len(rules),
        offsets=torch.zeros(len(tasks)),
        curve=IDENTITY,
        scale=torch.tensor([[0.0, 1.0]]).expand(len(rules), 2),
        candidates=1,
        margin=0.0,
        familiarity_levels=empty,
        level_weights=empty,
        level_tasks=empty.long(),
        task_of_class=totals.task_of_class,
        index=index,
    )


def _standardize(familiarity: Tensor, scale: Tensor) -> Tensor:
    """Return the sum [N] of the rules' familiarity [N, R], each in its own standard deviations."""
    return ((familiarity - scale[:, 0]) / scale[:, 1]).sum(dim=1)


def _mean_and_deviation(familiarity: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean and standard deviation [R, 2] of familiarity [H, R]."""
    mean = (familiarity * weights.unsqueeze(1)).sum(dim=0)
    variance = ((familiarity - mean).square() * weights.unsqueeze(1)).sum(dim=0)
    return torch.stack([mean, variance.sqrt().clamp_min(1e-12)], dim=1)


def _second_look(log_p: Tensor, places: Tensor, weights: Tensor) -> tuple[int, float]:
    """Return how many candidates to query, and the probability below which to query them.

    The candidates include the right task of nearly all rows; above the probability nearly all first choices are right.

    Args:
        log_p: Log-probabilities [H, P] of candidate tasks of the held-out rows.
        places: Place [H] of the right task among them; −1 where it is none of them.
        weights: Weights [H] of the rows.
    """
    rank = (log_p > log_p.gather(1, places.clamp_min(0).unsqueeze(1))).sum(dim=1)
    rank = rank.masked_fill(places < 0, log_p.shape[1])
    max_candidates = min(CANDIDATES, log_p.shape[1])
    miss_rates = [float((weights * (rank >= k)).sum()) for k in range(1, max_candidates + 1)]
    candidates = next(
        (k for k, rate in enumerate(miss_rates, start=1) if rate <= SECOND_LOOK_PROBABILITY), max_candidates
    )
    confidence, error_weights = log_p.amax(dim=1).exp(), weights * (rank > 0)
    order = confidence.argsort(descending=True)
    too_many_errors = torch.cumsum(error_weights[order], dim=0) > SECOND_LOOK_PROBABILITY
    margin = float(confidence[order][int(too_many_errors.int().argmax())]) if bool(too_many_errors.any()) else 0.0
    return max(candidates, min(MIN_CANDIDATES, max_candidates)), margin
