"""Parts of the strategies: Fisher information, stacked heads, replay buffers, states and objectives."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch.nn import functional as F

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, attached
from continual.experiments.strategies import STRATEGIES, select_strategies
from continual.experiments.strategies.compare import strategy_context
from continual.experiments.strategies.ewc import with_ewc_penalty
from continual.experiments.strategies.fisher import FisherImportance, estimate_fisher
from continual.experiments.strategies.joint import JointTraining, interleaved_objective
from continual.experiments.strategies.replay import ExperienceReplay, sample_buffer, with_replay
from continual.experiments.strategies.state import StrategyState, load_state, split_head, stack_heads
from continual.experiments.strategies.strategy import StrategyContext, starting_delta, task_objective
from continual.features.pooling import pooled_features
from continual.features.tokens import pad
from continual.kinds import Kind
from continual.kinds.classification import Classification
from registry.errors import BlobError
from tasks import Stream, load_stream
from tasks.errors import InputError
from tests.helpers.tiny_tasks import fresh_delta, head_of, labels_of, perturbed_delta, prepared_rows, write_task

TASKS = ("animals", "mood", "place")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def context(bert: Backbone, tmp_path_factory: pytest.TempPathFactory) -> StrategyContext:
    """Three tasks to be learned by one delta."""
    folder = tmp_path_factory.mktemp("rows")
    entries = [write_task(folder, task, train=30, validation=6, test=6) for task in TASKS]
    budget = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01, "max_length": 32}
    content = {"name": "core", "tasks": entries, "budget": budget, "method": {"name": "lora", "rank": 2}}
    stream = Stream.model_validate(content | {"folder": str(folder)})
    return strategy_context(ExperienceReplay(rows=6), bert, stream, load_stream(stream))


class _Square:
    """A kind whose −log p(y_n | x_n) is ½ Σ (θ − n)², with gradient θ − n."""

    def loss(self, backbone: Backbone, delta: Delta, rows: Any, batch: list[int]) -> torch.Tensor:
        (row,) = batch
        return 0.5 * (delta.values[KEY] - row).square().sum()


KEY = "layer.0.attn.q/0/B"


def test_fisher_information_is_the_mean_square_of_each_rows_gradient(bert: Backbone) -> None:
    delta = perturbed_delta(bert, "lora", rank=2)
    importance = estimate_fisher(bert, cast(Kind[Any], _Square()), delta, cast(Any, None), [1, 2, 6])
    theta = delta.values[KEY]
    assert torch.allclose(importance.fisher[KEY], ((theta - 1) ** 2 + (theta - 2) ** 2 + (theta - 6) ** 2) / 3)
    assert torch.equal(importance.anchor[KEY], theta)
    assert not any(fisher.any() for key, fisher in importance.fisher.items() if key != KEY)
    assert importance.fisher.keys() == delta.values.keys()


def test_fisher_information_of_a_classification_is_of_the_rows_own_labels(bert: Backbone) -> None:
    delta, rows = perturbed_delta(bert, "lora", rank=2), prepared_rows(bert, "mood", 3)
    importance = estimate_fisher(bert, Classification(labels_of("mood")), delta, rows, range(3))
    leaf = delta.values[KEY].clone().requires_grad_()
    probe, squares = replace(delta, values={**delta.values, KEY: leaf}), torch.zeros_like(leaf)
    for row in range(3):
        with attached(bert, probe):
            vector = pooled_features(bert, pad(bert, rows.tokens, [row]), bert.readout)
        loss = F.cross_entropy(head_of(probe)(vector), rows.classes[[row]])
        squares += torch.autograd.grad(loss, leaf)[0].square()
    assert squares.any()
    assert torch.allclose(importance.fisher[KEY], squares / 3, rtol=1e-4)


def test_the_penalties_of_all_tasks_add_up_to_one_quadratic() -> None:
    """Σ_k F_k (θ − θ_k)², with weights that matter to one task only, or to none."""
    draw = torch.Generator().manual_seed(0)
    fishers, anchors = (torch.rand(3, 2, 5, generator=draw) for _ in range(2))
    fishers[0, 0, 0] = fishers[1, 0, 1] = fishers[2, 0, 0] = 0.0
    fishers[:, 1, 4] = 0.0
    parts_of = [FisherImportance({"w": f}, {"w": a}) for f, a in zip(fishers, anchors, strict=True)]
    whole = parts_of[0].merged_with(parts_of[1]).merged_with(parts_of[2])
    for theta in torch.randn(4, 2, 5, generator=draw):
        expected = sum(float((f * (theta - a) ** 2).sum()) for f, a in zip(fishers, anchors, strict=True))
        assert float(whole.penalty({"w": theta})) == pytest.approx(expected, rel=1e-5)


def test_ewc_adds_half_its_strength_times_the_penalty(context: StrategyContext) -> None:
    start, objective = starting_delta(context, 1, None), task_objective(context, 1)
    importance = FisherImportance({KEY: torch.full_like(start.values[KEY], 2.0)}, {KEY: start.values[KEY] + 0.5})
    batch = [0, 1, 2]
    with attached(context.backbone, start):
        plain, penalized = (
            objective.loss(start, batch),
            with_ewc_penalty(objective, importance, strength=3.0).loss(start, batch),
        )
    assert float(penalized - plain) == pytest.approx(3.0 / 2 * 2.0 * 0.25 * start.values[KEY].numel(), rel=1e-4)


def test_stacked_heads_are_split_again_and_learn_one_at_a_time(bert: Backbone) -> None:
    task_heads = [head_of(fresh_delta(bert, "probe", task=task, seed=n)) for n, task in enumerate(TASKS)]
    heads = [task_heads[0], None, *task_heads[1:]]
    whole = stack_heads(heads)
    assert whole is not None
    parts = split_head(whole, heads)
    assert parts[1] is None
    for head, part in zip(task_heads, (parts[0], *parts[2:]), strict=True):
        assert part is not None
        assert torch.equal(head.weight, part.weight)
        assert head.labels == part.labels
    leaf = whole.map(lambda tensor: tensor.clone().requires_grad_())
    third = split_head(leaf, heads)[2]
    assert third is not None
    torch.autograd.backward(third(torch.ones(1, bert.hidden_size)).sum())
    begin, end = len(task_heads[0].labels), len(task_heads[0].labels) + len(task_heads[1].labels)
    assert leaf.weight.grad is not None
    moved = leaf.weight.grad.any(dim=1).nonzero().flatten().tolist()
    assert moved == list(range(begin, end))
    assert stack_heads([None, None]) is None
    assert split_head(None, [None, None]) == (None, None)


def test_a_buffer_has_the_proportions_of_the_labels_and_follows_from_the_seed(context: StrategyContext) -> None:
    task = context.tasks[0]
    buffer = sample_buffer(task, 6, seed=0)
    assert Counter(buffer.labels) == {"bird": 2, "cat": 2, "dog": 2}
    assert set(buffer.texts) <= set(task.data.train.texts)
    assert sample_buffer(task, 6, seed=0) == buffer != sample_buffer(task, 6, seed=1)
    assert Counter(sample_buffer(task, 1, seed=0).labels) == {"bird": 1, "cat": 1, "dog": 1}  # one of each at least


def test_replay_learns_an_earlier_batch_through_its_own_head_in_every_step(context: StrategyContext) -> None:
    start = starting_delta(context, 2, None)
    heads = [starting_delta(context, i, None).head for i in range(3)]
    buffers = [sample_buffer(task, 6, seed=0) for task in context.tasks[:2]]
    plain, again = task_objective(context, 2), task_objective(context, 2)
    objective = with_replay(context, plain, heads, buffers)
    assert [[batch for batch, _, _ in epoch] for epoch in objective.epochs] == plain.epochs
    assert {earlier for epoch in objective.epochs for _, earlier, _ in epoch} == {0, 1}
    assert all(len(rows) == 6 for epoch in objective.epochs for _, _, rows in epoch)
    assert with_replay(context, again, heads, buffers).epochs == objective.epochs
    whole = replace(start, head=stack_heads(heads))
    batch, earlier, rows = objective.epochs[0][0]
    task = context.tasks[earlier]
    with attached(context.backbone, whole):
        loss = float(objective.loss(whole, (batch, earlier, rows)))
        new = float(plain.loss(replace(whole, head=heads[2]), batch))
        replayed = task.kind.prepare(context.backbone, buffers[earlier], max_length=32)
        old = float(task.kind.loss(context.backbone, replace(whole, head=heads[earlier]), replayed, rows))
    assert loss == pytest.approx((len(batch) * new + len(rows) * old) / (len(batch) + len(rows)), rel=1e-5)
    assert objective.evaluate(whole) == plain.evaluate(replace(whole, head=heads[2]))


def test_joint_training_sees_every_row_of_every_task_in_every_epoch(context: StrategyContext) -> None:
    objective = interleaved_objective(context, [starting_delta(context, i, None).head for i in range(3)])
    for epoch in objective.epochs:
        counts = Counter((number, row) for number, rows in epoch for row in rows)
        assert counts == {(number, row): 1 for number in range(3) for row in range(30)}
        assert [number for number, _ in epoch] != sorted(number for number, _ in epoch)
    assert objective.rows == 2 * 3 * 30
    step = JointTraining(full_learning_rate=None).learn(context, StrategyState(), 2)
    assert step.changed_deltas.keys() == {0, 1, 2}


def test_a_state_survives_storage(context: StrategyContext) -> None:
    ewc = STRATEGIES["ewc"].with_options({"ewc_strength": 10.0})
    assert ewc is not None
    state = StrategyState()
    for number in range(2):
        step = ewc.learn(context, state, number)
        state = replace(step.state, outputs={number: {"logits": torch.ones(2, 3)}})
    again = load_state(state.to_bytes())
    assert again.to_bytes() == state.to_bytes()
    assert again.shared_delta is not None
    assert state.shared_delta is not None
    assert again.importance is not None
    assert state.importance is not None
    assert again.shared_delta.digest == state.shared_delta.digest
    assert [*again.shared_delta.values] == [*state.shared_delta.values]  # sums over them depend on their order
    assert [*again.importance.fisher] == [*state.importance.fisher]
    assert load_state(StrategyState().to_bytes()) == StrategyState()
    with pytest.raises(BlobError, match="compare anew"):
        load_state(fresh_delta(context.backbone, "lora").to_bytes())


def test_selected_strategies_exist_and_are_unique() -> None:
    assert set(STRATEGIES) - set(select_strategies()) == {"ewc_full", "cumulative"}
    assert list(select_strategies(["ewc", "joint"])) == ["ewc", "joint"]
    with pytest.raises(InputError, match=r"strategy 'reply' is not known; did you mean 'replay'. Known: isolated, "):
        select_strategies(["ewc", "reply"])
    for names in ([], ["ewc", "ewc"]):
        with pytest.raises(InputError, match="named once each"):
            select_strategies(names)
