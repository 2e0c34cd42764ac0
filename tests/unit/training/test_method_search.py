"""Successive halving over methods: the best candidate, fair trials, and the parameter limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continual.backbones.backbone import Backbone
from continual.deltas import method_settings
from continual.errors import MethodError
from continual.training.method_search import (
    SearchCandidate,
    SearchSettings,
    search_candidates,
    search_settings,
    successive_halving,
)
from continual.training.objective import Evaluation
from tasks import Budget, Method


def by_score(score: float, loss: float) -> tuple[float, float]:
    return score, -loss


def candidate(number: int) -> SearchCandidate:
    return SearchCandidate(Method(name="lora"), float(number))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20, unique=True), st.integers(1, 5000))
def test_scores_independent_of_the_rows_select_the_best_candidate(scores: list[int], rows: int) -> None:
    evaluated: list[int] = []

    def evaluate(searched: SearchCandidate, share: int) -> Evaluation:
        evaluated.append(share)
        return Evaluation(scores[int(searched.learning_rate)], 1.0)

    best, trials = successive_halving([candidate(i) for i in range(len(scores))], rows, evaluate, rank=by_score)
    assert scores[int(best.learning_rate)] == max(scores)
    assert [trial.rows for trial in trials] == evaluated == sorted(evaluated)
    assert all(1 <= share <= rows for share in evaluated)


def test_the_better_half_continues_with_twice_the_rows() -> None:
    def evaluate(searched: SearchCandidate, share: int) -> Evaluation:
        return Evaluation(0.5, 1.0)

    best, trials = successive_halving([candidate(i) for i in range(5)], 800, evaluate, rank=by_score)
    assert [(trial.candidate.learning_rate, trial.rows) for trial in trials] == [
        *((number, 100) for number in range(5)),
        *((number, 200) for number in range(3)),
        *((number, 400) for number in range(2)),
    ]
    assert best.learning_rate == 0


def test_a_single_candidate_is_not_trained() -> None:
    def evaluate(searched: SearchCandidate, share: int) -> Evaluation:
        raise AssertionError

    assert successive_halving([candidate(7)], 100, evaluate, rank=by_score) == (candidate(7), [])


def test_of_equal_scores_the_lower_loss_goes_on() -> None:
    def evaluate(searched: SearchCandidate, share: int) -> Evaluation:
        return Evaluation(0.5, abs(searched.learning_rate - 3))

    assert successive_halving([candidate(i) for i in range(6)], 800, evaluate, rank=by_score)[0] == candidate(3)


def test_candidates_are_within_the_parameter_share_at_each_rate(bert: Backbone) -> None:
    large, small = Method.model_validate({"name": "lora", "rank": 32}), Method(name="ia3")
    search = SearchSettings(share=0.05, candidates=(large, small), rates=(1.0, 2.0))
    candidates = search_candidates(bert, search, Budget(learning_rate=1e-3))
    assert [(candidate.method.name, candidate.learning_rate) for candidate in candidates] == [
        ("ia3", 1e-3),
        ("ia3", 2e-3),
    ]
    with pytest.raises(MethodError, match=r"no candidate has at most .* lora .*, ia3 .*Raise `share`"):
        search_candidates(bert, SearchSettings(share=1e-6, candidates=(large, small)), Budget())


def test_auto_is_a_search_and_a_name_is_not() -> None:
    assert search_settings(Method(name="lora")) is None
    assert search_settings(Method.model_validate({"name": "auto", "share": 0.5})) == SearchSettings(share=0.5)
    with pytest.raises(MethodError, match=r"zzz = 1.*Settings: share .*candidates .*rates"):
        search_settings(Method.model_validate({"name": "auto", "zzz": 1}))
    with pytest.raises(MethodError, match="share = True: should be a number, not true or false"):
        search_settings(Method.model_validate({"name": "auto", "share": True}))
    with pytest.raises(MethodError, match="rank = True: should be a number, not true or false"):
        method_settings(Method.model_validate({"name": "lora", "rank": True}))
