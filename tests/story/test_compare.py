"""A stream learned by several strategies: measures, resumption, refusals, and their presentation."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from rich.console import Console

from continual import Learner, read_stream
from continual.backbones.backbone import Backbone
from continual.callbacks import RunCallbacks
from continual.cli.tables import print_comparison
from continual.deltas import load_delta
from continual.errors import TrainingError
from continual.experiments.strategies import STRATEGIES, select_strategies
from continual.experiments.strategies.compare import strategy_context
from continual.experiments.strategies.fine_tuning import SequentialFineTuning
from continual.experiments.strategies.joint import JointTraining
from continual.experiments.strategies.state import StrategyState
from continual.experiments.strategies.strategy import StrategyContext, StrategyStep
from continual.reports.comparison import BEST_EPOCH, ISOLATED, comparison, latest_finished_runs
from continual.reports.html import strategies_page
from continual.reports.stream_measures import continual_measures
from continual.settings import resolve_locations
from registry import Registry, collect_garbage, find_damage, purge_task
from tasks import Stream, load_stream
from tasks.errors import InputError
from tests.conftest import backbone_of
from tests.helpers.cli import CliRunner
from tests.helpers.tiny_models import WORDS
from tests.helpers.tiny_tasks import save_backbone, write_rows, write_task
from tests.story.test_kinds import BUDGET as BUDGETS
from tests.story.test_kinds import write_kinds

TASKS = ("mood", "place", "animals")
BUDGET = {"epochs": 6, "batch_size": 8, "learning_rate": 0.02, "max_length": 32}
NAMES = ("isolated", "sequential_delta", "ewc", "replay", "separate", "joint")
EVERY = select_strategies((ISOLATED, *STRATEGIES), full_rate=1e-3, ewc_strength=1000.0)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def write_stream(folder: Path, **keys: Any) -> Stream:
    entries = [write_task(folder, task, train=24, validation=40, test=40) for task in TASKS]
    content = {"name": "core", "method": {"name": "lora", "rank": 2}, "budget": BUDGET, "warm_start": "scratch"}
    (folder / "stream.yaml").write_text(yaml.safe_dump(content | {"tasks": entries} | keys))
    return read_stream(folder / "stream.yaml")


def open_home(backbone: Backbone, home: Path) -> Learner:
    """Open a learner with a registry and without MLflow."""
    places = resolve_locations(home, {})
    return Learner(backbone, Registry.open(places.registry, places.blobs))


@pytest.fixture(scope="module")
def compared(bert: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Learner, Stream, Any]]:
    """A stream learned by every strategy, shared by tests that only read."""
    folder = tmp_path_factory.mktemp("compared")
    stream = write_stream(folder)
    with open_home(bert, folder / "home") as learner:
        yield learner, stream, learner.compare(stream, {name: EVERY[name] for name in NAMES})


def by_strategy(document: Any) -> dict[str, Any]:
    return {strategy["strategy"]: strategy for strategy in document["strategies"]}


def write_opposites(folder: Path) -> Stream:
    """Write two tasks with opposite labels for the same texts, answered through one template without heads."""
    rows = [(word, label) for label, words in WORDS["mood"].items() for word in words.split()]
    write_rows(folder / "rows.jsonl", *zip(*rows, strict=True))
    entry = {
        "source": {"path": "json", "data_files": dict.fromkeys(("train", "validation", "test"), "rows.jsonl")},
        "text": "text",
        "label": "label",
    }
    words = {"yes": {"bad": "awful", "good": "superb"}, "no": {"bad": "superb", "good": "awful"}}
    tasks = [
        entry | {"name": name, "template": {"text": "{{ text }} and {{ mask }}", "words": label_words}}
        for name, label_words in words.items()
    ]
    return write_stream(folder, method={"name": "lora", "rank": 4}, budget=BUDGET | {"epochs": 20}, tasks=tasks)


def test_a_shared_body_forgets_contradicted_labels_and_isolated_deltas_do_not(tmp_path: Path) -> None:
    """Any answer of one body that is right for a task is wrong for the other."""
    stream, texts = write_opposites(tmp_path), ["lovely", "dull", "bright broken"]
    with open_home(backbone_of("gpt2"), tmp_path / "home") as learner:
        assert learner.run(stream.model_copy(update={"tasks": stream.tasks[:1]})) == {}
        alone = learner.predict(texts, task="yes")
        document = learner.compare(stream, {name: EVERY[name] for name in ("isolated", "sequential_delta")})
        assert learner.predict(texts, task="yes") == alone  # their probabilities too, to the bit
    isolated, shared = (by_strategy(document)[name]["oracle"] for name in ("isolated", "sequential_delta"))
    assert isolated["matrix"][1] == [1.0, 1.0]
    assert isolated["forgetting"] == isolated["bwt"] == 0.0
    assert shared["matrix"][0][0] == 1.0
    assert shared["matrix"][1] == [0.0, 1.0]
    assert (shared["forgetting"], shared["bwt"]) == (1.0, -1.0)


def test_measures_follow_from_the_matrix(compared: tuple[Learner, Stream, Any]) -> None:
    learner, _, document = compared
    runs = {run.strategy: run for run in learner.registry.strategies("core")}
    for name in ("sequential_delta", "ewc", "replay", "separate"):
        strategy, steps = by_strategy(document)[name], runs[name].steps
        frozen, random_init = (
            [score.value for step in steps for score in step.scores if score.mode == mode]
            for mode in ("frozen", "random_init")
        )
        assert len(frozen) == len(random_init) == 3
        assert random_init == [row["random_init_score"] for row in learner.report("core")["per_task"]]
        expected = asdict(continual_measures(strategy["oracle"]["matrix"], frozen, random_init=random_init))
        assert {key: strategy["oracle"][key] for key in expected} == expected
        routed = asdict(continual_measures(strategy["routed"]["matrix"]))
        assert {key: strategy["routed"][key] for key in routed} == routed
        assert 0 < strategy["routed"]["routing_accuracy"] <= 1
        assert strategy["routed"]["acc"] <= strategy["oracle"]["acc"]  # a row that went astray is wrong
        assert strategy["seconds"] == sum(step.seconds for step in steps)
    assert scored_before_training(by_strategy(document)["sequential_delta"]) == [True, True]
    assert scored_before_training(by_strategy(document)["separate"]) == [False, False]
    assert by_strategy(document)["separate"]["oracle"]["fwt"] is None


def test_trainings_that_kept_their_start_are_named(compared: tuple[Learner, Stream, Any]) -> None:
    learner, _, document = compared
    epochs = {name: strategy["best_epochs"] for name, strategy in by_strategy(document).items()}
    trained_once = {"joint": {TASKS[-1]}}
    assert all(set(kept) == trained_once.get(name, set(TASKS)) for name, kept in epochs.items())
    assert [warning.partition(":")[0] for warning in document["warnings"]] == [
        name for name, kept in epochs.items() if 0 in kept.values()
    ]
    run = next(run for run in learner.registry.strategies("core") if run.strategy == "ewc")
    steps = [
        replace(step, scores=tuple(replace(s, value=epoch) if s.metric == BEST_EPOCH else s for s in step.scores))
        for step, epoch in zip(run.steps, (0.0, 0.0, 2.0), strict=True)
    ]
    (warning,) = comparison(learner.registry, "core", [replace(run, steps=tuple(steps))], isolated=False)["warnings"]
    assert warning.startswith("ewc: 2 of 3 trainings never left their start (mood, place): ")


def scored_before_training(strategy: Any) -> list[bool]:
    """Return whether each task has a score before its training, in the body of the earlier tasks."""
    return [strategy["oracle"]["matrix"][i - 1][i] is not None for i in range(1, 3)]


def test_joint_training_has_a_final_row_and_no_order(compared: tuple[Learner, Stream, Any]) -> None:
    strategies = by_strategy(compared[2])
    assert tuple(strategies) == NAMES
    assert all(strategy["finished"] for strategy in strategies.values())
    joint, isolated = strategies["joint"]["oracle"], strategies["isolated"]["oracle"]
    assert joint["matrix"][:2] == [[None] * 3] * 2
    assert joint["acc"] == pytest.approx(sum(joint["matrix"][-1]) / 3)
    assert all(joint[name] is None for name in ("bwt", "fwt", "forgetting", "la", "aia", "intransigence"))
    assert isolated["intransigence"] == pytest.approx(joint["acc"] - isolated["la"])
    assert isolated["intransigence_cumulative"] is None, "nothing was trained on the tasks up to each"


def test_intransigence_against_joint_training_up_to_each_task(bert: Backbone, tmp_path: Path) -> None:
    stream = write_stream(tmp_path, budget=BUDGET | {"epochs": 2})
    with open_home(bert, tmp_path / "home") as learner:
        document = learner.compare(stream, {name: EVERY[name] for name in ("isolated", "joint", "cumulative")})
        assert document["failed"] == []
        first = learner.compare(
            stream.model_copy(update={"name": "first", "tasks": stream.tasks[:2]}), {"joint": EVERY["joint"]}
        )
    strategies = by_strategy(document)
    isolated, joint, cumulative = (strategies[name]["oracle"] for name in ("isolated", "joint", "cumulative"))
    assert cumulative["matrix"][-1] == joint["matrix"][-1], "after the last task it is joint training on all"
    assert cumulative["matrix"][1][:2] == by_strategy(first)["joint"]["oracle"]["matrix"][-1]
    assert scored_before_training(strategies["cumulative"]) == [True, True]
    references = [cumulative["matrix"][k][k] for k in range(3)]
    gaps = [reference - isolated["matrix"][k][k] for k, reference in enumerate(references)]
    assert isolated["intransigence_cumulative"] == pytest.approx(sum(gaps) / 3)
    assert cumulative["intransigence_cumulative"] == 0.0
    assert joint["intransigence_cumulative"] is None


def test_stored_parameters_and_bytes_are_counted(compared: tuple[Learner, Stream, Any], bert: Backbone) -> None:
    _, stream, document = compared
    strategies, labels = by_strategy(document), 2 + 2 + 3
    shared_delta = _first(bert, stream).state.shared_delta
    assert shared_delta is not None
    body = sum(value.numel() for value in shared_delta.values.values())
    heads = labels * (bert.hidden_size + 1)
    assert (
        strategies["sequential_delta"]["parameters"]
        == strategies["ewc"]["parameters"]
        == pytest.approx((body + heads) / 3)
    )
    assert strategies["isolated"]["parameters"] == pytest.approx(body + heads / 3)
    assert strategies["sequential_delta"]["bytes"] == pytest.approx((2 * body + 4 * heads) / 3)
    assert strategies["ewc"]["bytes"] == pytest.approx(
        (10 * body + 4 * heads) / 3
    )  # with the Fisher information and its anchor
    assert strategies["replay"]["bytes"] > strategies["sequential_delta"]["bytes"]
    assert strategies["separate"]["parameters"] > bert.parameter_count


def _first(bert: Backbone, stream: Stream, name: str = "sequential_delta") -> StrategyStep:
    strategy = EVERY[name]
    assert strategy
    return strategy.learn(strategy_context(strategy, bert, stream, load_stream(stream)), StrategyState(), 0)


@pytest.mark.parametrize("name", ["sequential_delta", "ewc", "replay"])
def test_the_first_task_is_learned_as_alone(name: str, compared: tuple[Learner, Stream, Any], bert: Backbone) -> None:
    learner, stream, _ = compared
    alone = load_delta(learner.registry.blobs.get(learner.registry.delta("mood@1").values))
    assert _first(bert, stream, name).changed_deltas[0].digest == alone.digest


def test_a_finished_comparison_is_not_repeated(
    compared: tuple[Learner, Stream, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, stream, document = compared
    monkeypatch.setattr(SequentialFineTuning, "learn", None)
    chosen = {name: EVERY[name] for name in ("sequential_delta", "isolated")}
    again = learner.compare(stream, chosen)
    assert (
        by_strategy(again)["sequential_delta"]["oracle"]["matrix"]
        == by_strategy(document)["sequential_delta"]["oracle"]["matrix"]
    )
    assert find_damage(learner.registry) == []
    assert {run.state for run in learner.registry.strategies("core")} == {None}


def test_its_page_shows_every_strategy(compared: tuple[Learner, Stream, Any]) -> None:
    html = strategies_page(compared[2])
    assert all(name in html for name in (*NAMES, "forgets", "intr.", "parameters", "strength 1000.0"))
    assert "<svg" in html


@pytest.mark.parametrize("name", ["ewc", "replay", "separate"])
def test_a_killed_comparison_resumes(
    name: str, compared: tuple[Learner, Stream, Any], bert: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy, (_, stream, document) = EVERY[name], compared
    assert strategy
    learn, steps = type(strategy).learn, []

    def dies(self: Any, context: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        steps.append(number)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return learn(self, context, state, number)

    monkeypatch.setattr(type(strategy), "learn", dies)
    with open_home(bert, tmp_path / "home") as learner:
        with pytest.raises(KeyboardInterrupt):
            learner.compare(stream, {name: strategy})
        assert collect_garbage(learner.registry, dry_run=True) == []
        assert find_damage(learner.registry) == []
        comparison = learner.compare(stream, {name: strategy})
        assert find_damage(learner.registry) == []
        assert not list(learner.registry.blobs.iterate())  # the state to resume from is lost
    assert steps == [0, 1, 2, 2]
    for mode in ("oracle", "routed"):
        assert by_strategy(comparison)[name][mode]["matrix"] == by_strategy(document)[name][mode]["matrix"]


def test_a_comparison_with_a_lost_state_starts_again(
    bert: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stream, learn = write_stream(tmp_path, budget=BUDGET | {"epochs": 0}), SequentialFineTuning.learn

    def dies(self: SequentialFineTuning, context: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        if number == 1:
            raise KeyboardInterrupt
        return learn(self, context, state, number)

    strategies = {"sequential_delta": EVERY["sequential_delta"]}
    with open_home(bert, tmp_path / "home") as learner:
        monkeypatch.setattr(SequentialFineTuning, "learn", dies)
        with pytest.raises(KeyboardInterrupt):
            learner.compare(stream, strategies)
        monkeypatch.setattr(SequentialFineTuning, "learn", learn)
        (run,) = learner.registry.strategies("core")
        Path(learner.registry.blobs.path(run.state or "")).unlink()
        (strategy,) = learner.compare(stream, strategies)["strategies"]
        assert strategy["finished"]
        assert "learns from its beginning" in caplog.text
        assert find_damage(learner.registry) == []


def test_purging_a_task_removes_its_comparisons(
    bert: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = write_stream(tmp_path, budget=BUDGET | {"epochs": 0})
    strategies = {name: EVERY[name] for name in ("isolated", "sequential_delta")}
    with open_home(bert, tmp_path / "home") as learner:
        assert learner.compare(stream, strategies)["purged"] == []
        before = learner.report("core")["oracle"]["matrix"]
        assert len(learner.registry.strategies("core")) == 1
        purge_task(learner.registry, "place")
        assert learner.registry.strategies("core") == ()
        assert find_damage(learner.registry) == []
        again = learner.compare(stream, strategies)
        assert (again["tasks"], again["purged"]) == (["mood", "animals"], ["place"])
        assert {tuple(strategy["tasks"]) for strategy in again["strategies"]} == {("mood", "animals")}
        isolated, report = by_strategy(again)["isolated"], learner.report("core")
        assert isolated["oracle"]["matrix"] == [[before[0][0], before[1][2]], [before[2][0], before[2][2]]]
        frozen, random_init = (
            [row[key] for row in report["per_task"] if row["task"] != "place"]
            for key in ("frozen_score", "random_init_score")
        )
        measured = asdict(continual_measures(isolated["oracle"]["matrix"], frozen, random_init=random_init))
        assert measured.items() <= isolated["oracle"].items(), "the measures are those of what is shown"
        assert isolated["routed"]["matrix"][1] == [report["routed"]["matrix"][2][i] for i in (0, 2)]
        assert isolated["bytes"] == sum(row["bytes"] for row in report["per_task"] if row["task"] != "place") / 2
        assert "since they were purged: place." in strategies_page(again)
        print_comparison(Console(), again)
        assert "since they were purged: place" in capsys.readouterr().out
        for task in ("mood", "animals"):
            purge_task(learner.registry, task)
        with pytest.raises(InputError, match="every task of stream 'core' was purged"):
            learner.compare(stream, {"joint": EVERY["joint"]})


def test_comparisons_of_a_shorter_stream_are_not_shown(bert: Backbone, tmp_path: Path) -> None:
    stream = write_stream(tmp_path, budget=BUDGET | {"epochs": 0})
    fewer = stream.model_copy(update={"tasks": stream.tasks[:2]})
    with open_home(bert, tmp_path / "home") as learner:
        for compared_stream, name in ((fewer, "sequential_delta"), (stream, "replay")):
            learner.compare(compared_stream, {name: EVERY[name]})
            assert [run.strategy for run in latest_finished_runs(learner.registry, "core")] == [name]


def test_a_task_may_have_a_strategys_name(bert: Backbone, tmp_path: Path) -> None:
    stream = write_stream(tmp_path, budget=BUDGET | {"epochs": 0})
    named = stream.model_copy(update={"tasks": (stream.tasks[0].model_copy(update={"name": "joint"}),)})
    started: list[str] = []
    with open_home(bert, tmp_path / "home") as learner:
        strategies = {name: EVERY[name] for name in ("isolated", "joint")}
        learner.compare(named, strategies, callbacks=RunCallbacks(on_start=started.append))
    assert started == ["strategy isolated", "joint", "strategy joint"]


@pytest.mark.parametrize(
    ("method", "problem"), [("auto", "method 'auto' chooses for each"), ("diff_pruning", "cannot be trained again")]
)
def test_a_method_without_continued_training_is_refused(
    method: str, problem: str, bert: Backbone, tmp_path: Path
) -> None:
    stream = write_stream(tmp_path, method=method)
    with open_home(bert, tmp_path / "home") as learner, pytest.raises(InputError, match=problem):
        learner.compare(stream, {name: EVERY[name] for name in ("isolated", "replay")})


def test_the_command(cli: CliRunner, bert: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal first; then one strategy fails, and the other is stored, shown and sent to MLflow."""

    def fails(self: JointTraining, context: StrategyContext, state: StrategyState, number: int) -> StrategyStep:
        raise TrainingError("the training loss became nan")

    write_stream(tmp_path, backbone=str(save_backbone(bert, tmp_path / "bert")), budget=BUDGET | {"epochs": 0})
    file, page = str(tmp_path / "stream.yaml"), tmp_path / "page.html"
    refused = cli("compare", file, "--strategies", "ewc,olds")
    assert refused.code == 2
    assert "strategy 'olds' is not known" in refused.err
    assert "sequential_full, separate, joint" in refused.err
    assert cli("compare", file, "--full-rate", "0").code == cli("compare", file, "--ewc-strength", "inf").code == 2
    assert cli("compare", file, "--html", str(tmp_path / "none" / "page.html")).code == 2
    assert not (tmp_path / "home").exists(), "nothing was learned"
    monkeypatch.setattr(JointTraining, "learn", fails)
    result = cli("compare", file, "--strategies", "isolated,joint,replay", "--json", "--html", str(page))
    assert result.code == 1
    assert [strategy["strategy"] for strategy in result.json["strategies"]] == ["isolated", "replay"]
    assert result.json["failed"] == [{"strategy": "joint", "error": "TrainingError: the training loss became nan"}]
    assert "strategy joint failed" in result.err
    assert "replay" in page.read_text(encoding="utf-8")
    mlflow = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}")
    experiment = mlflow.get_experiment_by_name("continual").experiment_id
    runs = {run.info.run_name: run for run in mlflow.search_runs([experiment])}
    assert {"core", "replay"} <= runs.keys()
    assert runs["replay"].data.tags["mlflow.parentRunId"] == runs["core"].info.run_id
    assert runs["replay"].data.params["rows"] == "20"
    assert runs["replay"].data.metrics["oracle_acc"] == result.json["strategies"][1]["oracle"]["acc"]
    assert len(mlflow.get_metric_history(runs["replay"].info.run_id, "oracle_acc_so_far")) == 3
    assert "strategies.png" in {file.path for file in mlflow.list_artifacts(runs["core"].info.run_id)}


def test_tasks_of_several_kinds_share_a_body(tmp_path: Path) -> None:
    """On an encoder-decoder, tasks without a decoder's answer still carry its edits along."""
    stream = write_kinds(tmp_path, "mood", "echo", "warmth", budget=BUDGETS | {"epochs": 1})
    backbone = backbone_of("t5")
    with open_home(backbone, tmp_path / "home") as learner:
        names = ("isolated", "sequential_delta", "ewc", "replay", "joint")
        document = learner.compare(stream, {name: EVERY[name] for name in names})
        assert document["failed"] == []
        for strategy in document["strategies"]:
            assert strategy["finished"]
            assert None not in strategy["oracle"]["matrix"][-1]
            assert strategy["routed"]["acc"] is not None
        assert find_damage(learner.registry) == []
