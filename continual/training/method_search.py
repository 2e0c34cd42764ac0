"""`method: auto`: choose method, size and learning rate by successive halving on the validation rows.

All candidates are trained on a few of the train rows; the better half continues with twice as many, until one is left,
which is then trained as if the stream file had named it. The resource is rows, so that every candidate is trained for a
whole schedule.

Jamieson and Talwalkar (2016), "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
arXiv:1502.07943.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

from pydantic import Field

from continual.backbones.backbone import Backbone
from continual.deltas import MethodSettings, init_values, method_settings
from continual.errors import MethodError
from continual.training.objective import Evaluation
from tasks import Budget, Method, StrictModel
from tasks.strict_model import validate_settings

AUTO = "auto"
CANDIDATES: tuple[Method, ...] = tuple(
    Method.model_validate(method)
    for method in (
        {"name": "lora", "rank": 4},
        {"name": "lora", "rank": 16},
        {"name": "adapter_pfeiffer", "size": 32},
        {"name": "parallel_adapter", "size": 32},
        {"name": "bitfit"},
        {"name": "ia3"},
        {"name": "probe"},
    )
)


class SearchSettings(StrictModel):
    """Settings of `method: auto`.

    Attributes:
        share: The most parameters that a delta may have without its head, as a fraction of the backbone's.
        candidates: The methods to choose from.
        rates: The multiples of the budget's learning rate at which each method is tried.
    """

    share: float = Field(default=0.02, gt=0, le=1)
    candidates: tuple[Method, ...] = Field(default=CANDIDATES, min_length=1)
    rates: tuple[float, ...] = Field(default=(1.0, 4.0), min_length=1)


@dataclass(frozen=True)
class SearchCandidate:
    """A method, and the learning rate at which it is tried."""

    method: Method
    learning_rate: float

    def to_json(self) -> dict[str, Any]:
        """Return the candidate as JSON."""
        return {"method": self.method.model_dump(mode="json"), "learning_rate": self.learning_rate}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "SearchCandidate":
        """Read what `to_json` returned."""
        return cls(Method.model_validate(stored["method"]), stored["learning_rate"])


@dataclass(frozen=True)
class SearchTrial:
    """A candidate's result: the train rows that it had, and its validation score and loss."""

    candidate: SearchCandidate
    rows: int
    score: float
    loss: float

    def to_json(self) -> dict[str, Any]:
        """Return the trial as JSON."""
        return {**self.candidate.to_json(), "rows": self.rows, "score": self.score, "loss": self.loss}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "SearchTrial":
        """Read what `to_json` returned."""
        return cls(SearchCandidate.from_json(stored), stored["rows"], stored["score"], stored["loss"])


def search_settings(method: Method) -> SearchSettings | None:
    """Return the settings of `method: auto`; None for a method that is named.

    Raises:
        MethodError: A setting is not known or not allowed.
    """
    if method.name != AUTO:
        return None
    return validate_settings(SearchSettings, method.settings, of=f"method {AUTO!r}", error=MethodError)


def candidate_settings(method: Method) -> tuple[MethodSettings, ...]:
    """Return the settings of the named method, or of each candidate of a search.

    Raises:
        MethodError: A method or setting is not known or not allowed.
    """
    search = search_settings(method)
    return tuple(method_settings(candidate) for candidate in (search.candidates if search else (method,)))


def search_candidates(backbone: Backbone, search: SearchSettings, budget: Budget) -> list[SearchCandidate]:
    """Return the candidates that fit the backbone and the share of parameters, at each learning rate.

    Raises:
        MethodError: None fits.
    """
    max_parameters, candidates, sizes = search.share * backbone.parameter_count, [], {}
    for method in search.candidates:
        parameters = sum(value.numel() for value in init_values(backbone, method_settings(method), seed=0).values())
        sizes[str(method.name)] = parameters
        if parameters <= max_parameters:
            candidates += [SearchCandidate(method, rate * budget.learning_rate) for rate in search.rates]
    if not candidates:
        raise MethodError(
            f"method {AUTO!r}: no candidate has at most {max_parameters:,.0f} parameters (share: {search.share}); they "
            f"have {', '.join(f'{name} {size:,}' for name, size in sizes.items())}. Raise `share` or name smaller "
            "candidates"
        )
    return candidates


def successive_halving(
    candidates: Sequence[SearchCandidate],
    rows: int,
    evaluate: Callable[[SearchCandidate, int], Evaluation],
    *,
    rank: Callable[[float, float], tuple[float, float]],
) -> tuple[SearchCandidate, list[SearchTrial]]:
    """Train all candidates on few rows, and the better half again on twice as many, until one is left.

    Args:
        candidates: At least one; of equal ranks the earlier goes on.
        rows: The train rows there are.
        evaluate: Trains a candidate on so many rows and returns its validation score and loss.
        rank: The rank of a score and a loss, as `Kind.rank` returns it.

    Returns:
        The candidate that is left, and all trials.
    """
    remaining, trials, rungs = list(candidates), [], ceil(log2(len(candidates)))
    for rung in range(rungs):
        share = max(1, rows // 2 ** (rungs - rung))
        rung_trials = [SearchTrial(candidate, share, *evaluate(candidate, share)) for candidate in remaining]
        trials += rung_trials
        ranked = sorted(rung_trials, key=lambda trial: rank(trial.score, trial.loss), reverse=True)  # it is stable
        remaining = [trial.candidate for trial in ranked[: ceil(len(remaining) / 2)]]
    return remaining[0], trials
