"""The contract of every router: it depends on sums alone, and tells tasks apart and from strange inputs."""

from functools import cache

import pytest
import torch
from torch import Tensor

from continual.features.random_features import FrozenFeatures
from continual.routing import ROUTERS, RoutingStatistics, build_router, compute_statistics

WIDTH, TASKS, ROWS = 12, 4, 120
all_routers = pytest.mark.parametrize("name", list(ROUTERS))


def rows_of(task: int, *, seed: int, count: int = ROWS) -> tuple[Tensor, Tensor]:
    """Draw non-negative features of a task's two classes, as wide random features are."""
    centre = torch.Generator().manual_seed(task)
    means = 4 * torch.rand(2, WIDTH, generator=centre)
    labels = torch.arange(count) % 2
    noise = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1000 * task + seed))
    return torch.relu(means[labels] + 0.5 * noise), labels


def features_of(wide: Tensor) -> FrozenFeatures:
    return FrozenFeatures(wide, wide)


@cache
def statistics_of(task: int) -> RoutingStatistics:
    (x, y), (held_out, _) = rows_of(task, seed=1), rows_of(task, seed=2, count=60)
    return compute_statistics(x, y, count=2, held_out=features_of(held_out))


def parts(*tasks: int) -> dict[str, RoutingStatistics]:
    return {str(task): statistics_of(task) for task in tasks}


@all_routers
def test_inputs_go_to_their_task_with_probabilities(name: str) -> None:
    router = build_router(parts(*range(TASKS)), kind=name)
    for task in range(TASKS):
        log_p = router.log_p(features_of(rows_of(task, seed=3)[0]))
        assert float((log_p.argmax(dim=1) == task).double().mean()) > 0.95
        torch.testing.assert_close(log_p.exp().sum(dim=1), torch.ones(ROWS))


@all_routers
def test_the_order_of_arrival_has_no_effect(name: str) -> None:
    inputs = features_of(torch.cat([rows_of(task, seed=4)[0] for task in range(TASKS)]))
    first, again = (build_router(parts(*order), kind=name) for order in ((0, 1, 2, 3), (2, 0, 3, 1)))
    assert again.tasks == first.tasks
    torch.testing.assert_close(again.log_p(inputs), first.log_p(inputs), rtol=1e-6, atol=1e-6)


@all_routers
def test_a_removed_task_leaves_no_trace(name: str) -> None:
    inputs = features_of(torch.cat([rows_of(task, seed=5)[0] for task in range(TASKS)]))
    without = build_router(parts(0, 1, 2), kind=name)
    assert without.tasks == ("0", "1", "2")
    again = build_router({task: part for task, part in parts(0, 1, 2, 3).items() if task != "3"}, kind=name)
    torch.testing.assert_close(again.log_p(inputs), without.log_p(inputs))


@all_routers
def test_strange_inputs_are_less_familiar(name: str) -> None:
    router = build_router(parts(0, 1, 2), kind=name)
    familiar = router.familiarity(features_of(torch.cat([rows_of(task, seed=6)[0] for task in range(3)])))
    unfamiliar = router.familiarity(features_of(rows_of(9, seed=6)[0]))
    assert float((familiar.median() > unfamiliar).double().mean()) > 0.9


@all_routers
def test_a_single_task_is_certain(name: str) -> None:
    router = build_router(parts(0), kind=name)
    assert router.log_p(features_of(rows_of(1, seed=7)[0])).exp().min() == 1.0
