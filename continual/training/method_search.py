"""`method: auto`: which method, of what size and at what learning rate, by successive halving on held-out rows.

All candidates are trained on a few of the rows; the better half goes on with twice as many, until one is left, which is
then trained as if it had been named. Jamieson and Talwalkar (2016), "Non-stochastic Best Arm Identification and
Hyperparameter Optimization", arXiv:1502.07943; the resource is rows, so that every candidate sees a whole schedule.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

from pydantic import Field

from continual.backbones.backbone import Backbone
from continual.deltas import MethodSettings, init_values, method_settings
from continual.deltas.method import validate_settings
from continual.errors import MethodError
from tasks import Budget, Method, StrictModel

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
    )
)


class SearchSettings(StrictModel):
    """Settings of `method: auto`.

    share: most parameters a delta may have without its head, a fraction of the backbone's · candidates: methods to
    choose from · rates: multiples of the budget's learning rate that each is tried at.
    """

    share: float = Field(default=0.02, gt=0, le=1)
    candidates: tuple[Method, ...] = Field(default=CANDIDATES, min_length=1)
    rates: tuple[float, ...] = Field(default=(1.0, 4.0), min_length=1)


@dataclass(frozen=True)
class SearchCandidate:
    """One candidate: a method and the learning rate it is tried at."""

    method: Method
    learning_rate: float

    def to_json(self) -> dict[str, Any]:
        """The arm as it is written down."""
        return {"method": self.method.model_dump(mode="json"), "learning_rate": self.learning_rate}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "SearchCandidate":
        """The arm that was written down."""
        return cls(Method.model_validate(told["method"]), told["learning_rate"])


@dataclass(frozen=True)
class SearchTrial:
    """What was found of an arm: the train rows it had, and the validation score it reached."""

    arm: SearchCandidate
    rows: int
    score: float

    def told(self) -> dict[str, Any]:
        """The trial as it is written down."""
        return {**self.arm.to_json(), "rows": self.rows, "score": self.score}

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> "SearchTrial":
        """The trial that was written down."""
        return cls(SearchCandidate.from_json(told), told["rows"], told["score"])


def search_settings(method: Method) -> SearchSettings | None:
    """The search that a stream file asks for with `method: auto`; None where it names a method.

    Raises MethodError for a setting that is not known or not allowed.
    """
    return validate_settings(SearchSettings, method) if method.name == AUTO else None


def candidate_settings(method: Method) -> tuple[MethodSettings, ...]:
    """The settings that a task may be learned with: of the method named, or of each candidate of a search.

    Raises MethodError as `method_settings` and `search_of` do.
    """
    search = search_settings(method)
    return tuple(method_settings(candidate) for candidate in (search.candidates if search else (method,)))


def search_candidates(backbone: Backbone, search: SearchSettings, budget: Budget) -> list[SearchCandidate]:
    """The arms that fit the backbone and the share of parameters.

    Raises MethodError where none does.
    """
    most, found, sizes = search.share * backbone.parameter_count, [], {}
    for method in search.candidates:
        parameters = sum(value.numel() for value in init_values(backbone, method_settings(method), seed=0).values())
        sizes[str(method.name)] = parameters
        if parameters <= most:
            found += [SearchCandidate(method, rate * budget.learning_rate) for rate in search.rates]
    if not found:
        raise MethodError(
            f"method {AUTO!r}: no candidate has at most {most:,.0f} parameters (share: {search.share}); they have "
            f"{', '.join(f'{name} {size:,}' for name, size in sizes.items())}. Raise `share` or name smaller candidates"
        )
    return found


def successive_halving(
    arms: Sequence[SearchCandidate], rows: int, score: Callable[[SearchCandidate, int], float]
) -> tuple[SearchCandidate, list[SearchTrial]]:
    """The arm that is left, and all that was tried; `score` trains an arm on so many rows and scores it on others.

    Of equal scores the earlier arm goes on.
    """
    left, trials, rungs = list(arms), [], ceil(log2(len(arms)))
    for rung in range(rungs):
        share = max(1, rows // 2 ** (rungs - rung))
        found = [SearchTrial(arm, share, score(arm, share)) for arm in left]
        trials += found
        ranked = sorted(found, key=lambda trial: -trial.score)  # stable: of equals the earlier
        left = [trial.arm for trial in ranked[: ceil(len(left) / 2)]]
    return left[0], trials
