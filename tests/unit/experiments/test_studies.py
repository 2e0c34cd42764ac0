"""Studies' numbers against second computations, and settings that are refused before training."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from continual.backbones.backbone import Backbone
from continual.deltas import METHODS
from continual.errors import MethodError, StudyError, TrainingError
from continual.experiments.studies import (
    Study,
    StudyTrial,
    TrialResult,
    TrialRunner,
    TrialStore,
    run_study,
    study_of,
)
from continual.experiments.studies.ablation import ablate_layers
from continual.experiments.studies.aggregation import best_rates, gaps_to_full, method_label
from continual.experiments.studies.combination import combination_variants
from continual.experiments.studies.convergence import convergence_epoch
from continual.experiments.studies.transfer import rank_correlation, regret_at
from continual.experiments.studies.trial_runner import summarize
from continual.features.logistic_regression import fit_linear_head
from continual.features.pooling import encode
from continual.kinds.classification import ClassificationRows
from continual.training.method_search import SearchCandidate
from tasks import Budget, Method, Source
from tests.conftest import backbone_of
from tests.helpers.studies import LORA, SMALL, WORDS, count_measured_trials, task_data, trial_runner, writer_backbone  # noqa: F401 (fixtures)
from tests.helpers.tiny_tasks import perturbed_delta, prepared_rows, rows_of


def study_result(
    task: str, method: Mapping[str, Any], score: float, *, rate: float = 1.0, validation: float = 0.0
) -> TrialResult:
    data = replace(task_data("mood"), spec=task_data("mood").spec.model_copy(update={"name": task}))
    trial = StudyTrial(data, 0, SearchCandidate(Method.model_validate(method), rate), Budget())
    return TrialResult(trial, {"test": score, "validation": validation, "parameters": 10, "share": 0.1})


def test_percentiles_are_of_the_gaps_to_full_fine_tuning() -> None:
    scores = {"a": (0.8, 0.9), "b": (0.7, 0.6), "c": (0.5, 0.75), "d": (0.9, 0.9)}
    runs = [study_result(task, LORA, small) for task, (small, _) in scores.items()]
    runs += [study_result(task, {"name": "full"}, full) for task, (_, full) in scores.items()]
    rows = study_of("size", SMALL["size"]).result(runs).to_json["Score less that of full fine-tuning"]
    gaps = np.array([-0.1, 0.1, -0.25, 0.0])
    assert [rows[0][key] for key in ("20th", "median", "80th")] == pytest.approx(np.percentile(gaps, [20, 50, 80]))
    assert rows[0]["median"] == pytest.approx(-0.05)
    assert (rows[1]["method"], rows[1]["20th"], rows[1]["80th"]) == ("full", 0.0, 0.0)
    assert gaps_to_full({("a", "lora"): 0.5}) == {}


def test_the_best_rate_is_chosen_on_validation_rows() -> None:
    runs = [
        study_result("a", LORA, 0.9, rate=0.1, validation=0.5),
        study_result("a", LORA, 0.4, rate=1.0, validation=0.6),
    ]
    assert [best.outcome["test"] for best in best_rates([*runs, study_result("b", LORA, 0.3)])] == [0.4, 0.3]


def test_of_equal_scores_the_rate_of_lower_validation_loss_is_chosen() -> None:
    runs = []
    for test, rate, loss in ((0.1, 0.1, None), (0.2, 1.0, 0.4), (0.3, 4.0, 0.6)):
        run = study_result("a", LORA, test, rate=rate, validation=0.5)
        runs.append(replace(run, outcome={**run.outcome, "validation_loss": loss}))
    assert [best.outcome["test"] for best in best_rates(runs)] == [0.2]


def test_a_falling_or_negative_curve_has_converged() -> None:
    assert convergence_epoch([0.9, 0.5]) == 0
    assert convergence_epoch([-0.5, -0.2, -0.3]) == 1
    assert convergence_epoch([0.0, 0.0]) == 0


def test_the_gap_is_train_score_minus_test_score(trial_runner: TrialRunner, tmp_path: Path) -> None:  # noqa: F811
    studied = run_study(study_of("generalisation", SMALL["generalisation"]), trial_runner, TrialStore(tmp_path / "l"))
    assert {result.trial.rows for result in studied.results} == {8, 24}  # no task has the third number
    result = studied.results[0]
    subject = trial_runner.trial_task(result.trial)
    assert len(subject.task.train.tokens) == 8
    assert result.outcome["gap"] == pytest.approx(result.outcome["train"] - result.outcome["test"])
    assert result.outcome["train"] != result.outcome["test"]


@pytest.mark.parametrize("method", ["adapter", "lora", "prefix", "bitfit", "full"])
def test_a_delta_with_all_layers_ablated_is_the_backbone(method: str, bert: Backbone) -> None:
    delta, rows = perturbed_delta(bert, method), prepared_rows(bert, "mood", 6)
    whole = encode(bert, rows.tokens, delta=delta)
    top = encode(bert, rows.tokens, delta=ablate_layers(bert, delta, 0, 0))
    none = encode(bert, rows.tokens, delta=ablate_layers(bert, delta, 0, bert.num_layers - 1))
    remaining = {key for key in delta.values if not key.startswith("layer.")}
    assert ablate_layers(bert, delta, 0, bert.num_layers - 1).values.keys() == remaining
    assert not torch.equal(whole, top)
    assert torch.equal(none, encode(bert, rows.tokens)) == (not remaining)


def test_an_ablated_adapter_has_zero_up_projections(bert: Backbone) -> None:
    delta, rows = perturbed_delta(bert, "adapter_pfeiffer"), prepared_rows(bert, "mood", 6)
    zero = {k: v * (not (k.startswith("layer.1.") and "/up" in k)) for k, v in delta.values.items()}
    expected = encode(bert, rows.tokens, delta=replace(delta, values=zero))
    torch.testing.assert_close(encode(bert, rows.tokens, delta=ablate_layers(bert, delta, 1, 1)), expected)


def test_transfer_is_measured_as_documented(
    trial_runner: TrialRunner,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[str] = []
    train = TrialRunner.train

    def counting(self: TrialRunner, trial: StudyTrial, **options: Any) -> Any:
        trained.append(trial.task)
        return train(self, trial, **options)

    monkeypatch.setattr(TrialRunner, "train", counting)
    twice = replace(trial_runner, seeds=(0, 1))
    studied = run_study(study_of("transfer", SMALL["transfer"]), twice, TrialStore(tmp_path / "l"))
    assert sorted(trained) == ["mood", "mood", "place", "place"]  # each source once for each seed
    runs = studied.result.to_json["Every run"]
    assert {(run["target"], run["source"], run["seed"]) for run in runs} == {
        (a, b, seed) for a, b in (("mood", "place"), ("place", "mood")) for seed in (0, 1)
    }
    assert all(run[key] is not None for run in runs for key in ("scratch", "plain", "frozen", "warm"))
    gain = np.mean([run["warm"] - run["scratch"] for run in runs if run["target"] == "mood"])
    row = studied.result.to_json["Gain over training from scratch"][0]
    assert (row["mood"], row["place"]) == (None, pytest.approx(gain))

    (result,) = (f for f in studied.results if f.trial.task == "mood" and f.trial.source and f.trial.seed == 1)
    task, backbone = twice.trial_task(result.trial).task, trial_runner.backbone
    assert isinstance(task.train, ClassificationRows)
    assert isinstance(task.validation, ClassificationRows)
    assert isinstance(task.test, ClassificationRows)
    assert [len(rows.tokens) for rows in (task.train, task.validation, task.test)] == [8, 8, 12]
    assert result.trial.source is not None
    delta = twice.source_delta(result.trial.source).delta
    features = [encode(backbone, rows.tokens, delta=delta) for rows in (task.train, task.validation, task.test)]
    head = fit_linear_head(features[0], task.train.classes, features[1], task.validation.classes, count=2)
    right = (features[2] @ head.weight.T + head.bias).argmax(dim=1) == task.test.classes
    assert result.outcome["frozen"] == pytest.approx(float(right.double().mean()))
    assert result.outcome["measures"]["held_out"] == pytest.approx(float(head.correct.double().mean()))
    measures = studied.result.to_json["Measures of similarity"]
    assert {row["measure"] for row in measures} <= {*result.outcome["measures"]}
    assert all(row["regret@3"] == 0.0 for row in measures), "of one source the best is among the first three"


def test_a_measure_is_judged_by_its_three_best_sources() -> None:
    gains, values = [0.1, 0.5, 0.2, 0.0, -0.1], [5.0, 1.0, 4.0, 3.0, 2.0]
    assert regret_at(3, gains, values) == pytest.approx(0.3)
    assert regret_at(5, gains, values) == 0.0
    assert rank_correlation([1.0, 2.0, 3.0], [10.0, 30.0, 20.0]) == pytest.approx(0.5)
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) is None


def test_combination_variants_are_methods() -> None:
    combined = (Method.model_validate(LORA), Method(name="bitfit"), Method(name="ia3"))
    pair, three = (combination_variants(methods) for methods in (combined[:2], combined))
    assert {way: [method_label(method) for method in methods] for way, methods in pair.items()} == {
        "alone": ["lora rank 1", "bitfit"],
        "together": ["lora rank 1 + bitfit"],
        "in sequence": ["lora rank 1, then bitfit", "bitfit, then lora rank 1"],
    }
    assert [method_label(method) for method in three["together"]] == [
        "lora rank 1 + bitfit",
        "lora rank 1 + ia3",
        "bitfit + ia3",
        "lora rank 1 + bitfit + ia3",
    ]
    assert len({method_label(method) for method in three["in sequence"]}) == 6
    assert all(METHODS[method.name].model_validate(method.settings) for ms in three.values() for method in ms)


def test_a_combination_answers_by_head_and_by_template(trial_runner: TrialRunner) -> None:  # noqa: F811
    tasks = (task_data("mood"), task_data("place", template=False))
    study = study_of("combination", {**SMALL["combination"], "combinations": [[LORA, "bitfit", "probe"]]})
    trials = list(study.trials(replace(trial_runner, tasks=tasks)))
    assert {(trial.task, trial.extra["answer"], trial.spec.template is None) for trial in trials} == {
        ("mood", "template", False),
        ("mood", "head", True),
        ("place", "head", True),
    }
    assert len(trials) == 3 * 13

    def result_of(trial: StudyTrial) -> TrialResult:
        name = method_label(trial.candidate.method)
        test = 0.5 + 0.1 * name.count("+") + 0.01 * (name == "bitfit") - 0.2 * (trial.extra["answer"] == "head")
        return TrialResult(
            trial, {"validation": 0, "test": test, "train": 1, "gap": 1 - test, "parameters": 1, "share": 0}
        )

    tables = study.result([result_of(trial) for trial in trials]).to_json
    head, template = tables["Combinations of methods"]
    assert (head["answers"], template["answers"]) == ("head", "template")
    assert [template[way] for way in ("alone", "together", "in sequence")] == pytest.approx([0.51, 0.7, 0.5])
    assert head["gain"] == template["gain"] == pytest.approx(0.19)
    (_, gaps) = tables["Generalisation gap"]
    assert gaps["together"] == pytest.approx(1 - np.mean([0.6, 0.6, 0.6, 0.7]))


def test_a_trials_key_covers_its_settings(trial_runner: TrialRunner) -> None:  # noqa: F811
    first_trial = StudyTrial(trial_runner.tasks[0], 0, SearchCandidate(Method(name="lora"), 0.1), Budget())
    other_trials = (
        replace(first_trial, seed=1),
        replace(first_trial, rows=8),
        replace(first_trial, shots=4),
        replace(first_trial, source=first_trial),
        replace(first_trial, extra={"a": 1}),
        replace(first_trial, backbone=trial_runner.trial_backbone),
        replace(first_trial, candidate=SearchCandidate(Method(name="lora"), 0.2)),
        replace(first_trial, budget=Budget(epochs=4)),
        replace(first_trial, data=replace(first_trial.data, test=rows_of("mood", 3, seed=9))),
        replace(
            first_trial,
            data=replace(first_trial.data, spec=first_trial.data.spec.model_copy(update={"metric": "macro_f1"})),
        ),
    )
    assert len({trial.key for trial in (first_trial, *other_trials)}) == len(other_trials) + 1
    elsewhere = first_trial.data.spec.model_copy(update={"source": Source(path="hub/name")})
    assert replace(first_trial, data=replace(first_trial.data, spec=elsewhere)).key == first_trial.key


def test_a_failed_trial_is_recorded_and_excluded(
    trial_runner: TrialRunner,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study, file = study_of("size", {"methods": [LORA], "rates": [1.0]}), tmp_path / "l"

    def measure(self: Study, trial_runner: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        if trial.task == "mood" and trial.candidate.method.name == "lora":
            raise TrainingError("the training loss became nan")
        return summarize(*trial_runner.train(trial))

    monkeypatch.setattr(type(study), "measure", measure)
    studied = run_study(study, trial_runner, TrialStore(file))
    assert [result.outcome.get("failed") for result in studied.results].count("the training loss became nan") == 1
    table = studied.result.to_json["Score less that of full fine-tuning"]
    assert {row["method"]: row["tasks"] for row in table} == {"full": 2, "lora rank 1": 1}
    monkeypatch.setattr(type(study), "measure", lambda *_: pytest.fail("it was made before"))
    run_study(study, trial_runner, TrialStore(file))
    monkeypatch.setattr(type(study), "measure", lambda *_: (_ for _ in ()).throw(TrainingError("no")))
    with pytest.raises(TrainingError, match="all 4 trials failed; the first: no"):
        run_study(study, trial_runner, TrialStore(tmp_path / "other"))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sise", {}, "did you mean 'size'"),
        ("size", {"zzz": 1}, "zzz = 1.*Settings: methods .*, rates "),
        ("transfer", {"shots": 0}, "shots = 0"),
        ("size", {"rates": []}, "rates = "),
        ("size", {"rates": [-1.0]}, "rates.0 = -1.0"),
        ("size", {"rates": [float("inf")]}, "rates.0 = inf"),
        ("convergence", {"epochs": True}, "epochs = True: should be a number, not true or false"),
        ("size", {"rates": [1.0, True]}, "rates = .*: should be a number, not true or false"),
    ],
)
def test_settings_are_checked(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study_of(name, settings)


@pytest.mark.parametrize(
    ("name", "settings", "tasks", "error", "message"),
    [
        ("generalisation", {"rows": [1000]}, 2, StudyError, "leaves nothing to measure.*mood 30"),
        ("transfer", {}, 1, StudyError, "there is 1; give two or more"),
        ("transfer", {"method": "masking"}, 2, StudyError, "cannot be trained on"),
        ("transfer", {"method": "auto"}, 2, StudyError, "one method must be named"),
        ("size", {"methods": ["lorra"]}, 1, MethodError, "did you mean 'lora'"),
        ("size", {"methods": [{"name": "last_layer", "count": 99}]}, 1, MethodError, "are not there"),
        ("templates", {}, 2, StudyError, "without a template: mood, place.*roberta-base"),
    ],
)
def test_incompatible_settings_are_refused_before_training(
    trial_runner: TrialRunner,  # noqa: F811
    tmp_path: Path,
    name: str,
    settings: dict[str, Any],
    tasks: int,
    error: type[Exception],
    message: str,
) -> None:
    few = replace(trial_runner, tasks=trial_runner.tasks[:tasks])
    with pytest.raises(error, match=message):
        run_study(study_of(name, settings), few, TrialStore(tmp_path / "l"))
    assert not (tmp_path / "l").exists()


def test_a_template_needs_a_language_model(bert: Backbone, tmp_path: Path) -> None:
    trial_runner = TrialRunner(bert, (task_data("mood"),), (0,))  # noqa: F811
    with pytest.raises(MethodError, match="masked, causal or encoder-decoder language model, such as roberta-base"):
        run_study(study_of("templates", {}), trial_runner, TrialStore(tmp_path / "l"))


def test_encoder_decoder_tasks_without_a_common_start_are_refused(tmp_path: Path) -> None:
    trial_runner = TrialRunner(backbone_of("t5"), (task_data("mood"), task_data("place", template=False)), (0,))  # noqa: F811
    with pytest.raises(StudyError, match="mood answer with the decoder and the other tasks do not"):
        run_study(study_of("transfer", {}), trial_runner, TrialStore(tmp_path / "l"))


def test_invalid_lines_of_a_results_file_are_skipped(trial_runner: TrialRunner, tmp_path: Path) -> None:  # noqa: F811
    file, trial = (
        tmp_path / "deep" / "l",
        StudyTrial(trial_runner.tasks[0], 0, SearchCandidate(Method(name="lora"), 0.1), Budget()),
    )
    TrialStore(file).add(trial, {"test": 0.5})
    whole = file.read_bytes()
    file.write_bytes(b'[1]\nnull\n{"key": 1}\n\xff\xfe\n' + whole + b'{"key": "half')
    ledger = TrialStore(file)
    assert ledger.get(trial) == {"test": 0.5}
    ledger.add(replace(trial, seed=1), {"test": 0.6})
    assert TrialStore(file).get(replace(trial, seed=1)) == {"test": 0.6}
