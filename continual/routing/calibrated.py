"""One or more rules as one router whose numbers mean something: probabilities of tasks, and "none of them".

    log p(t | x) = log softmax_t Σ_r w_r s_r(x, t)

The settings of each rule, the weights w ≥ 0, how many tasks are worth a second look and when, and below which value an
input belongs to no task are chosen on the tasks' held-out rows; every task counts the same. Nothing here looks at a
train row or at an input of no task.

Shapes: N inputs, H held-out rows of all tasks, K tasks, R rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from continual.frozen import Frozen
from continual.routing.router import ROUTERS, Rule
from continual.routing.statistics import Statistics
from continual.routing.totals import Totals
from continual.settings import FALSE_ABSTENTIONS

SMOOTHING = 0.001  # where all held-out rows are told apart, no weight would be large enough
LEAST_SURE = 0.001  # a second look is taken where the router alone would err more often than this
CANDIDATES = 5  # at most so many tasks are looked at again
LARGEST_WEIGHT = 1e4
OWN = ("ridge", "mahalanobis")


Features = Literal["wide", "vectors"]


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows of tasks: features [H, M] · own [H]: each one's task · fit [H]: how it fits that task's delta, 0
    where that is not known."""

    features: Tensor
    own: Tensor
    fit: Tensor

    @property
    def weights(self) -> Tensor:
        """What each row counts [H], all tasks together 1."""
        counts = torch.bincount(self.own)
        return 1.0 / (counts[self.own] * (counts > 0).sum())


def held_out(tasks: Sequence[str], parts: Mapping[str, Statistics], *, features: Features) -> HeldOut:
    """The held-out rows of those tasks of which there are statistics."""
    if not parts:
        return HeldOut(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    number = {name: number for number, name in enumerate(tasks)}
    rows = [getattr(part.held_out, features).float() for part in parts.values()]
    own = [torch.full((len(seen),), number[name]) for name, seen in zip(parts, rows, strict=True)]
    fits = [
        part.evidence.own if part.evidence else torch.zeros(len(seen))
        for part, seen in zip(parts.values(), rows, strict=True)
    ]
    return HeldOut(torch.cat(rows), torch.cat(own), torch.cat(fits))


@dataclass(frozen=True)
class Router:
    """The tasks that are known, in order, and how to tell them apart.

    features: those that are looked at · rules with their weights · scale [R, 2]: mean and standard deviation of what
    each holds for known · candidates: how many tasks are looked at again where the best has a probability below
    `margin` · levels [H], ascending: known and fit together of held-out rows, which count `level_weights`.
    """

    tasks: tuple[str, ...]
    features: Features
    rules: tuple[Rule, ...]
    weights: tuple[float, ...]
    scale: Tensor
    candidates: int
    margin: float
    levels: Tensor
    level_weights: Tensor

    def log_p(self, seen: Frozen) -> Tensor:
        """Log probabilities of the tasks [N, K]."""
        features = getattr(seen, self.features).float()
        scores = [weight * rule.scores(features) for rule, weight in zip(self.rules, self.weights, strict=True)]
        return torch.log_softmax(torch.stack(scores).sum(dim=0), dim=1)

    def known(self, seen: Frozen) -> Tensor:
        """How much each input is like those of any task [N], by frozen features alone."""
        features = getattr(seen, self.features).float()
        return _standard(torch.stack([rule.known(features) for rule in self.rules], dim=1), self.scale)

    def threshold(self, false_abstentions: float = FALSE_ABSTENTIONS) -> float:
        """What known and fit come to together in all but this share of the rows of known tasks."""
        below = int((torch.cumsum(self.level_weights, dim=0) <= false_abstentions).sum())
        return float(self.levels[below]) if 0 < below < len(self.levels) else -torch.inf


def build_router(parts: Mapping[str, Statistics], *, kind: str = "auto") -> Router:
    """The router of one task or more: by a rule of `ROUTERS`, or by both of our own together (`auto`)."""
    rows = held_out([*parts], parts, features="wide")
    return calibrate(Totals.of(parts), rows, features="wide", names=OWN if kind == "auto" else (kind,))


def calibrate(totals: Totals, rows: HeldOut, *, features: Features, names: Sequence[str]) -> Router:
    """The router of the tasks in `totals` by the rules of these names, its settings chosen on held-out rows.

    Without any, as where all was learned by an older release, each rule is taken as it is, and nothing is abstained on.
    """
    if not len(rows.own):
        plain = tuple(next(ROUTERS[name](totals)) for name in names)
        none, scale = torch.zeros(0), torch.tensor([[0.0, 1.0]]).expand(len(plain), 2)
        return Router(tuple(totals.tasks), features, plain, (1.0,) * len(plain), scale, 1, 0.0, none, none)
    rules = [_best(list(ROUTERS[name](totals)), rows) for name in names]
    scores = [rule.scores(rows.features) for rule in rules]
    weights = _weights(scores, rows)
    log_p = torch.log_softmax(torch.stack([w * s for w, s in zip(weights, scores, strict=True)]).sum(dim=0), dim=1)
    known = torch.stack([rule.known(rows.features) for rule in rules], dim=1)
    scale = _scale(known, rows.weights)
    together = _standard(known, scale) + rows.fit
    order = together.argsort()
    candidates, margin = _second_look(log_p, rows)
    return Router(
        tasks=tuple(totals.tasks),
        features=features,
        rules=tuple(rules),
        weights=tuple(weights),
        scale=scale,
        candidates=candidates,
        margin=margin,
        levels=together[order],
        level_weights=rows.weights[order],
    )


def _best(rules: Sequence[Rule], rows: HeldOut) -> Rule:
    """The rule whose probabilities are best on held-out rows, each at its own temperature."""

    def loss(rule: Rule) -> float:
        scores = rule.scores(rows.features)
        return _loss(_weights([scores], rows), [scores], rows)

    return min(rules, key=loss) if len(rules) > 1 else rules[0]


def _weights(scores: Sequence[Tensor], rows: HeldOut) -> list[float]:
    """The weights w [R] that are best on held-out rows; of one task any would do."""
    scales = [1.0 / max(float(score.std(dim=1, correction=0).mean()), 1e-12) for score in scores]
    if scores[0].shape[1] == 1:
        return scales

    def loss(log_weights: np.ndarray) -> tuple[float, np.ndarray]:
        logs = torch.tensor(log_weights, requires_grad=True)
        value = _cross_entropy([torch.exp(w) * k * s for w, k, s in zip(logs, scales, scores, strict=True)], rows)
        (slope,) = torch.autograd.grad(value, logs)
        return float(value.detach()), slope.numpy()

    bound = float(np.log(LARGEST_WEIGHT))
    found = minimize(loss, np.zeros(len(scores)), jac=True, bounds=[(-bound, bound)] * len(scores), method="L-BFGS-B")
    return [float(np.exp(w)) * k for w, k in zip(found.x, scales, strict=True)]


def _loss(weights: Sequence[float], scores: Sequence[Tensor], rows: HeldOut) -> float:
    return float(_cross_entropy([w * s for w, s in zip(weights, scores, strict=True)], rows))


def _cross_entropy(weighted: Sequence[Tensor], rows: HeldOut) -> Tensor:
    logits = torch.stack([score.double() for score in weighted]).sum(dim=0)
    each = F.cross_entropy(logits, rows.own, reduction="none", label_smoothing=SMOOTHING)
    return (each * rows.weights).sum()


def _standard(known: Tensor, scale: Tensor) -> Tensor:
    """The sum [N] of what the rules hold for known [N, R], each in its own standard deviations."""
    return ((known - scale[:, 0]) / scale[:, 1]).sum(dim=1)


def _scale(known: Tensor, weights: Tensor) -> Tensor:
    """Mean and standard deviation [R, 2] of what the rules hold for known."""
    mean = (known * weights.unsqueeze(1)).sum(dim=0)
    variance = ((known - mean).square() * weights.unsqueeze(1)).sum(dim=0)
    return torch.stack([mean, variance.sqrt().clamp_min(1e-12)], dim=1)


def _second_look(log_p: Tensor, rows: HeldOut) -> tuple[int, float]:
    """How many tasks hold the right one for nearly all rows, and the probability above which the best is right."""
    rank = (log_p > log_p.gather(1, rows.own.unsqueeze(1))).sum(dim=1)
    most = min(CANDIDATES, log_p.shape[1])
    missed = [float((rows.weights * (rank >= k)).sum()) for k in range(1, most + 1)]
    candidates = next((k for k, miss in enumerate(missed, start=1) if miss <= LEAST_SURE), most)
    sure, wrong = log_p.amax(dim=1).exp(), rows.weights * (rank > 0)
    order = sure.argsort(descending=True)
    errors = torch.cumsum(wrong[order], dim=0) > LEAST_SURE
    margin = float(sure[order][int(errors.int().argmax())]) if bool(errors.any()) else 0.0
    return max(candidates, min(2, most)), margin
