"""One router at any number of tasks: candidates, sums that are kept, and sets of tasks."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from continual.features.random_features import FrozenFeatures
from continual.routing import Router, RoutingStatistics, build_router, compute_statistics
from continual.routing.candidates import Candidates, ClassWeights, build_index
from continual.routing.held_out import MAX_HELD_OUT_ROWS, TaskHeldOut, rows_per_task
from continual.routing.moments import AccumulatedMoments
from continual.routing.router import build_from_sums
from continual.routing.router_serialization import router_from_bytes, router_to_bytes
from continual.routing.router_sums import RouterSums
from continual.routing.statistics import HELD_OUT
from registry.errors import BlobError

WIDTH = 96


@cache
def rows_of(number: int, *, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Draw rows of a task's two classes around a mean of its own."""
    means = 0.7 * torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(number))
    labels = torch.arange(count) % 2
    noise = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(10_000 * seed + number))
    return means[labels] + noise, labels


def features_of(rows: Tensor) -> FrozenFeatures:
    return FrozenFeatures(rows[:, :2], rows)


@cache
def statistics_of(number: int) -> RoutingStatistics:
    (x, y), (held_out, _) = rows_of(number, seed=1, count=24), rows_of(number, seed=2, count=8)
    return compute_statistics(x, y, count=2, held_out=features_of(held_out))


def parts(count: int) -> dict[str, RoutingStatistics]:
    return {f"t{number:03}": statistics_of(number) for number in range(count)}


def probes(count: int) -> tuple[FrozenFeatures, Tensor]:
    """Return inputs of the first tasks, with their tasks' numbers."""
    rows = torch.cat([rows_of(number, seed=3, count=4)[0] for number in range(count)])
    return features_of(rows), torch.arange(count).repeat_interleave(4)


def accuracy(router: Router, count: int) -> float:
    inputs, truth = probes(count)
    return float((router.log_p(inputs).argmax(dim=1) == truth).double().mean())


def sums_of(names: dict[str, RoutingStatistics]) -> RouterSums:
    sums = RouterSums()
    for name, part in names.items():
        sums.add(name, f"digest of {name}", part, num_tasks=len(names))
    return sums


def same_answers(first: Router, second: Router, *, to: float = 1e-5) -> None:
    inputs, _ = probes(20)
    a, b = first.route(inputs), second.route(inputs)
    assert first.tasks == second.tasks
    torch.testing.assert_close(a.log_p.exp(), b.log_p.exp(), rtol=to, atol=to)
    torch.testing.assert_close(a.familiarity, b.familiarity, rtol=10 * to, atol=10 * to)
    assert first.threshold() == pytest.approx(second.threshold(), rel=1e-3, abs=1e-3)


def test_no_number_of_tasks_is_a_cliff() -> None:
    accuracies = {count: accuracy(build_router(parts(count)), count) for count in (64, 256, 257, 300)}
    assert accuracies[256] - accuracies[257] < 0.01
    assert accuracies[257] - accuracies[300] < 0.02
    assert accuracies[64] - accuracies[300] < 0.1


def test_candidates_answer_as_a_comparison_with_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = build_router(parts(200))
    monkeypatch.setattr("continual.routing.router.EXHAUSTIVE_CLASSES", 100)
    monkeypatch.setattr("continual.routing.candidates.EXHAUSTIVE_CLASSES", 100)
    routed = build_router(parts(200))
    assert (exact.index, routed.index is None) == (None, False)
    inputs, _ = probes(200)
    a, b = exact.route(inputs), routed.route(inputs)
    assert float((a.log_p.argmax(dim=1) == b.log_p.argmax(dim=1)).double().mean()) > 0.98
    torch.testing.assert_close(b.log_p.exp().sum(dim=1), torch.ones(len(b.log_p)))
    assert float((a.log_p.amax(dim=1).exp() - b.log_p.amax(dim=1).exp()).abs().mean()) < 0.03
    assert float((a.familiarity - b.familiarity).abs().mean()) < 0.1


def test_candidates_are_grouped_by_task() -> None:
    task_of_class = torch.tensor([0, 0, 1, 2, 2, 2])
    candidates = Candidates.of_classes(torch.tensor([[5, 0, 3], [2, 1, 0]]), task_of_class)
    assert candidates.tasks.tolist() == [[0, 2], [0, 1]]
    scores = candidates.max_over_classes(candidates.classes.float())
    assert scores.tolist() == [[0.0, 5.0], [1.0, 2.0]]
    single = Candidates.of_classes(torch.tensor([[3, 4], [0, 2]]), task_of_class)
    assert single.tasks.tolist() == [[2, -1], [0, 1]]
    assert single.max_over_classes(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist() == [[2.0, -np.inf], [3.0, 4.0]]


def test_the_index_proposes_the_nearest_classes() -> None:
    totals = AccumulatedMoments.from_tasks(parts(300))
    index = build_index(totals)
    inputs, truth = probes(300)
    proposed = totals.task_of_class[index.propose(inputs.random_features)]
    assert float((proposed == truth.unsqueeze(1)).any(dim=1).double().mean()) > 0.98
    allowed = totals.task_of_class < 10
    assert int(totals.task_of_class[index.propose(inputs.random_features, allowed)].max()) < 10


def test_weights_of_many_classes_keep_three_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("continual.routing.candidates.EXHAUSTIVE_CLASSES", 10)
    draw = torch.Generator().manual_seed(0)
    weight, x = 1e-7 * torch.randn(50, WIDTH, generator=draw), torch.randn(5, WIDTH, generator=draw)
    weights, exact = ClassWeights.of(weight), x @ weight.T
    assert weights.values.dtype == torch.float16
    torch.testing.assert_close(weights.scores(x, None), exact, rtol=1e-2, atol=1e-9)
    classes = torch.tensor([[3, 1]] * 5)
    torch.testing.assert_close(weights.scores(x, classes), exact.gather(1, classes), rtol=1e-2, atol=1e-9)


@settings(max_examples=5, deadline=None)
@given(st.permutations(range(40)))
def test_sums_do_not_depend_on_the_order_and_removal_is_exact(order: list[int]) -> None:
    wanted, extra = parts(40), {f"x{number}": statistics_of(number) for number in range(50, 55)}
    names = list(wanted)
    shuffled = sums_of({names[i]: wanted[names[i]] for i in order} | extra)
    for name, part in extra.items():
        shuffled.remove(name, part)
    first, again = sums_of(wanted), shuffled
    torch.testing.assert_close(again.totals.moment, first.totals.moment, rtol=1e-9, atol=1e-9)
    same_answers(build_from_sums(first.totals, first.held_out), build_from_sums(again.totals, again.held_out), to=1e-4)


def test_sums_and_routers_survive_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = sums_of(parts(40))
    again = RouterSums.from_bytes(sums.to_bytes())
    assert again.to_bytes() == sums.to_bytes()
    assert again.sources == sums.sources
    for limit in (1000, 50):
        monkeypatch.setattr("continual.routing.router.EXHAUSTIVE_CLASSES", limit)
        monkeypatch.setattr("continual.routing.candidates.EXHAUSTIVE_CLASSES", limit)
        built, restored = (build_from_sums(each.totals, each.held_out) for each in (sums, again))
        stored = router_to_bytes(built)
        assert stored is not None
        assert stored == router_to_bytes(restored)
        loaded, (inputs, _) = router_from_bytes(stored), probes(20)
        assert torch.equal(loaded.route(inputs).log_p, built.route(inputs).log_p)
    with pytest.raises(BlobError, match="no sums"):
        RouterSums.from_bytes(stored or b"")


def test_few_changes_are_made_by_difference() -> None:
    sums = sums_of(parts(40))
    assert sums.can_become(sums.sources | {"new": "digest"})
    assert not sums.can_become({"other": "digest"})
    assert not sums_of(parts(80)).can_become(sums.sources), "of fewer tasks more rows each are used"


def test_held_out_rows_are_bounded_and_nested() -> None:
    counts = {tasks: rows_per_task(tasks) for tasks in (1, 64, 65, 1000, 10_000)}
    assert counts == {1: HELD_OUT, 64: HELD_OUT, 65: HELD_OUT // 2, 1000: 8, 10_000: 1}
    assert all(tasks * rows <= MAX_HELD_OUT_ROWS or rows == 1 for tasks, rows in counts.items())
    rows = TaskHeldOut(torch.arange(100.0).unsqueeze(1), torch.arange(100.0))
    kept = {count: set(rows.thin(count).fit.tolist()) for count in (128, 64, 8, 1)}
    assert kept[128] > kept[64] > kept[8] > kept[1] == {0.0}
    assert set(rows.thin(64).thin(8).fit.tolist()) == kept[8]


@pytest.mark.parametrize("limit", [1000, 50])
def test_a_set_of_tasks_conditions_the_probabilities(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("continual.routing.router.EXHAUSTIVE_CLASSES", limit)
    monkeypatch.setattr("continual.routing.candidates.EXHAUSTIVE_CLASSES", limit)
    router = build_router(parts(40))
    chosen = ["t003", "t011", "t020"]
    among, (inputs, truth) = router.among(chosen), probes(40)
    numbers = [router.tasks.index(name) for name in chosen]
    p = among.log_p(inputs).exp()
    others = [number for number in range(40) if number not in numbers]
    assert float(p[:, others].max()) == 0.0
    torch.testing.assert_close(p.sum(dim=1), torch.ones(len(p)))
    if limit == 1000:
        expected = router.log_p(inputs).exp()[:, numbers]
        torch.testing.assert_close(p[:, numbers], expected / expected.sum(dim=1, keepdim=True), rtol=1e-3, atol=1e-5)
    theirs = torch.isin(truth, torch.tensor(numbers))
    levels = among.familiarity(inputs)
    assert float(levels[theirs].mean()) > float(levels[~theirs].mean())
    assert among.candidates <= 3
    assert np.isfinite(among.threshold())
