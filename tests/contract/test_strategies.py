"""Every strategy, built in or of another package: it learns task after task, resumes, and answers all tasks."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
import torch

from continual.experiments.strategies import STRATEGIES
from continual.experiments.strategies.compare import strategy_context, strategy_recipe_digest
from continual.experiments.strategies.scoring import FrozenBaseline, outputs_of_test_rows, step_scores
from continual.experiments.strategies.state import StrategyState, load_state
from continual.experiments.strategies.strategy import StrategyContext, StrategyStep
from tasks import Stream, TaskData, load_stream
from tests.conftest import backbone_of
from tests.helpers.paths import DOCS
from tests.helpers.tiny_tasks import write_task

TASKS = ("animals", "mood", "place")
all_strategies = pytest.mark.parametrize("name", list(STRATEGIES))


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stream]:
    """Three tasks of a few rows."""
    folder = tmp_path_factory.mktemp("rows")
    entries = [write_task(folder, task, train=16, validation=6, test=6) for task in TASKS]
    budget = {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "max_length": 32}
    content = {"name": "core", "tasks": entries, "budget": budget, "method": {"name": "lora", "rank": 2}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Stream.model_validate(content | {"folder": str(folder)})


@pytest.fixture(scope="module")
def rows(stream: Stream) -> tuple[TaskData, ...]:
    return load_stream(stream)


@pytest.fixture
def context(name: str, stream: Stream, rows: tuple[TaskData, ...]) -> StrategyContext:
    """The tasks as the strategy learns them."""
    return strategy_context(STRATEGIES[name], backbone_of("bert"), stream, rows)


def learn(name: str, context: StrategyContext, *, reload: bool = False) -> list[tuple[StrategyStep, StrategyState]]:
    """Learn all tasks; with `reload`, from the stored bytes of the state after each."""
    state, steps = StrategyState(), []
    for number in [len(TASKS) - 1] if STRATEGIES[name].trains_jointly else range(len(TASKS)):
        step = STRATEGIES[name].learn(context, state, number)
        state = replace(step.state, outputs=outputs_of_test_rows(context, step))
        state = load_state(state.to_bytes()) if reload else state
        steps.append((step, state))
    return steps


@all_strategies
def test_every_task_so_far_has_outputs_after_each_step(name: str, context: StrategyContext) -> None:
    first = len(TASKS) if STRATEGIES[name].trains_jointly else 1
    for count, (step, state) in enumerate(learn(name, context), start=first):
        assert set(state.outputs) == set(range(count))
        assert set(step.changed_deltas) <= set(range(count))
        assert count - 1 in step.changed_deltas, "the task just learned answers anew"
        assert state.parameters > 0
        assert state.size > 0


@all_strategies
def test_it_resumes_from_its_stored_state_to_the_bit(name: str, context: StrategyContext) -> None:
    (_, whole), (_, resumed) = learn(name, context)[-1], learn(name, context, reload=True)[-1]
    assert resumed.to_bytes() == whole.to_bytes()


@all_strategies
def test_a_step_changes_no_earlier_state(name: str, context: StrategyContext) -> None:
    if STRATEGIES[name].trains_jointly:
        pytest.skip("it learns all tasks in one step")
    strategy = STRATEGIES[name]
    first = strategy.learn(context, StrategyState(), 0)
    before = replace(first.state, outputs=outputs_of_test_rows(context, first))
    stored = before.to_bytes()
    strategy.learn(context, before, 1)
    assert before.to_bytes() == stored


@all_strategies
def test_every_step_has_oracle_and_routed_scores(name: str, context: StrategyContext) -> None:
    baseline = FrozenBaseline(list(context.tasks))
    step, state = learn(name, context)[-1]
    scores = list(step_scores(context, baseline, step, state.outputs, number=len(TASKS) - 1))
    for task in TASKS:
        modes = {(score.mode, score.metric) for score in scores if score.task == task}
        assert modes >= {("oracle", "accuracy"), ("routed", "accuracy"), ("routed", "routing_accuracy")}
    assert all(0 <= score.value <= 1 for score in scores)


@all_strategies
def test_its_settings_are_json_and_part_of_the_recipe(name: str, stream: Stream, rows: tuple[TaskData, ...]) -> None:
    strategy = STRATEGIES[name]
    assert json.loads(json.dumps(asdict(strategy))) == asdict(strategy)
    for option, field in strategy.options.items():
        changed = strategy.with_options({option: 2 * getattr(strategy, field)})
        assert getattr(changed, field) == 2 * getattr(strategy, field)
        digests = {strategy_recipe_digest(stream, rows, name, each) for each in (strategy, changed)}
        assert len(digests) == 2
    assert strategy.with_options({"no_such_option": 1.0}) == strategy


@all_strategies
def test_the_backbone_is_as_it_was(name: str, context: StrategyContext) -> None:
    backbone = backbone_of("bert")
    before = {key: tensor.clone() for key, tensor in backbone.model.state_dict().items()}
    learn(name, context)
    assert all(torch.equal(before[key], tensor) for key, tensor in backbone.model.state_dict().items())


def test_the_page_has_a_row_of_each() -> None:
    page = (DOCS / "reference" / "strategies.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in STRATEGIES.built_in)
