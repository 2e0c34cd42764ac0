"""AdaLoRA's budget of ranks: the triplets that training keeps, against PEFT's allocator."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from continual.backbones.backbone import Backbone
from continual.deltas import Delta
from continual.deltas.methods.ada_lora import AdaLoRA
from continual.deltas.methods.ada_lora_forms import RankBudget, SingularTriplets
from continual.training.joint import train_jointly
from continual.training.state import TrainingState
from tests.helpers.tiny_tasks import fresh_delta, mood_run

RANK, TARGET, STEPS, PLACES = 4, 1.5, 20, 3
SCHEDULE = {"tinit": 2, "tfinal": 8, "deltaT": 3, "beta1": 0.85, "beta2": 0.85}


class Triplets(nn.Module):
    """One place's parameters by PEFT's names."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"lora_A": (RANK, 5), "lora_B": (6, RANK), "lora_E": (RANK, 1)}
        for name, shape in shapes.items():
            self.register_module(name, nn.ParameterDict({"default": torch.randn(shape)}))


def copied(place: Any) -> dict[str, Tensor]:
    """Return a place's values by our names, with its gradients."""
    values = {}
    for name, peft_name in (("left", "lora_B"), ("sizes", "lora_E"), ("right", "lora_A")):
        parameter = getattr(place, peft_name)["default"]
        shape = (RANK,) if name == "sizes" else parameter.shape
        values[name] = parameter.detach().clone().view(shape)
        values[name].grad = parameter.grad.clone().view(shape)
    return values


def test_the_triplets_that_are_kept_are_pefts() -> None:
    peft: Any = pytest.importorskip("peft")
    torch.manual_seed(0)
    places = nn.ModuleList([Triplets() for _ in range(PLACES)])
    config = SimpleNamespace(target_r=TARGET, total_step=STEPS, **SCHEDULE)
    allocator = peft.tuners.adalora.layer.RankAllocator(places, config, "default")
    form = SingularTriplets(RANK, 0.1, RankBudget(TARGET, 2 / STEPS, 8 / STEPS, 3))
    statistics: list[dict[str, Tensor]] = []
    cuts = 0
    for step in range(1, 12):  # at the last cut PEFT takes the importances of the step before
        for parameter in places.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
            parameter.grad = torch.randn_like(parameter)
        ours = [copied(place) for place in places]
        statistics = statistics or [form.init_statistics(values) for values in ours]
        for values, own in zip(ours, statistics, strict=True):
            form.observe(values, own)
        form.prune(list(zip(ours, statistics, strict=True)), step=step, steps=STEPS)
        _, pattern = allocator.update_and_allocate(places, step)
        cuts += pattern is not None
        for values, place in zip(ours, places, strict=True):
            assert torch.equal(values["sizes"], copied(place)["sizes"])
    assert cuts == 3


def test_the_budget_falls_from_all_triplets_to_the_target() -> None:
    budget = RankBudget(2, warmup=0.1, final=0.4, interval=5)
    counts = [budget.triplets(10, 8, step=step, steps=100) for step in range(101)]
    assert counts[:11] == [80] * 11
    assert counts[35] == 20 + 60 // 8  # half of the way, cubed
    assert counts[60:] == [20] * 41
    assert counts == sorted(counts, reverse=True)
    assert [step for step in range(101) if budget.is_due(step=step, steps=100)] == list(range(15, 61, 5))


def kept(delta: Delta) -> int:
    return sum(int((value != 0).sum()) for key, value in delta.values.items() if key.endswith("/sizes"))


def states_of(backbone: Backbone, **settings: Any) -> list[TrainingState]:
    states: list[TrainingState] = []
    start = fresh_delta(backbone, "ada_lora", rank=3, interval=1, **settings)
    replace(mood_run(backbone, start, epochs=4), on_state=states.append).run()
    return states


def test_training_ends_with_the_target_of_all_places_together(bert: Backbone) -> None:
    last = states_of(bert, target_rank=1.25)[-1].current
    counts = [int((value != 0).sum()) for key, value in last.values.items() if key.endswith("/sizes")]
    assert sum(counts) == int(1.25 * len(counts))
    assert len(set(counts)) > 1, "places have ranks of their own"
    assert kept(states_of(bert)[-1].current) == 3 * len(counts), "without a target all are kept"


def test_a_budget_is_each_deltas_own_in_joint_training(bert: Backbone) -> None:
    start = fresh_delta(bert, "ada_lora", rank=3, target_rank=1.0, interval=1)
    states: dict[str, list[TrainingState]] = {"first": [], "second": []}
    runs = {n: replace(mood_run(bert, start, epochs=4), on_state=own.append) for n, own in states.items()}
    dict(train_jointly(runs, seed=0))
    for own in states.values():
        assert kept(own[-1].current) == sum(key.endswith("/sizes") for key in start.values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rank": 4, "target_rank": 5}, "target_rank 5.0 is more than rank 4"), ({"warmup": 0.6}, "leave no steps")],
)
def test_a_budget_that_cannot_be_kept_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AdaLoRA.model_validate(settings)
