"""The numbers of studies against a second computation, and what is refused before anything is trained."""

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
from continual.experiments.studies.aggregation import best_rates, method_label
from continual.experiments.studies.combination import pair_variants
from continual.experiments.studies.convergence import convergence_epoch
from continual.experiments.studies.size import gaps_to_full
from continual.experiments.studies.transfer import rank_correlation, regret_at
from continual.experiments.studies.trial_runner import summarize
from continual.features.discriminant import fit_discriminant
from continual.features.pooling import encode
from continual.features.signature import compute_signature
from continual.kinds.classification import ClassificationRows
from continual.training.method_search import SearchCandidate
from tasks import Budget, Method, Source
from tests.conftest import backbone_of
from tests.helpers.studies import LORA, SMALL, WORDS, bench, count_measured_trials, task_data, writer_backbone  # noqa: F401 (fixtures)
from tests.helpers.tiny_tasks import perturbed_delta, prepared_rows, rows_of


def found(
    task: str, method: Mapping[str, Any], score: float, *, rate: float = 1.0, validation: float = 0.0
) -> TrialResult:
    data = replace(task_data("mood"), spec=task_data("mood").spec.model_copy(update={"name": task}))
    trial = StudyTrial(data, 0, SearchCandidate(Method.model_validate(method), rate), Budget())
    return TrialResult(trial, {"test": score, "validation": validation, "parameters": 10, "share": 0.1})


def test_percentiles_are_of_the_gaps_to_full_fine_tuning() -> None:
    scores = {"a": (0.8, 0.9), "b": (0.7, 0.6), "c": (0.5, 0.75), "d": (0.9, 0.9)}
    runs = [found(task, LORA, small) for task, (small, _) in scores.items()]
    runs += [found(task, {"name": "full"}, full) for task, (_, full) in scores.items()]
    rows = study_of("size", SMALL["size"]).result(runs).to_json["Score less that of full fine-tuning"]
    gaps = np.array([-0.1, 0.1, -0.25, 0.0])
    assert [rows[0][key] for key in ("20th", "median", "80th")] == pytest.approx(np.percentile(gaps, [20, 50, 80]))
    assert rows[0]["median"] == pytest.approx(-0.05)
    assert (rows[1]["method"], rows[1]["20th"], rows[1]["80th"]) == ("full", 0.0, 0.0)
    assert gaps_to_full({("a", "lora"): 0.5}) == {}


def test_the_best_rate_is_that_of_the_validation_rows() -> None:
    runs = [found("a", LORA, 0.9, rate=0.1, validation=0.5), found("a", LORA, 0.4, rate=1.0, validation=0.6)]
    assert [one.outcome["test"] for one in best_rates([*runs, found("b", LORA, 0.3)])] == [0.4, 0.3]


def test_a_curve_that_falls_or_is_negative_has_reached_its_end() -> None:
    assert convergence_epoch([0.9, 0.5]) == 0
    assert convergence_epoch([-0.5, -0.2, -0.3]) == 1
    assert convergence_epoch([0.0, 0.0]) == 0


def test_the_gap_is_train_less_test(bench: TrialRunner, tmp_path: Path) -> None:  # noqa: F811
    studied = run_study(study_of("generalisation", SMALL["generalisation"]), bench, TrialStore(tmp_path / "l"))
    assert {one.trial.rows for one in studied.results} == {8, 24}  # no task has the third number
    one = studied.results[0]
    subject = bench.trial_task(one.trial)
    assert len(subject.task.train.tokens) == 8
    assert one.outcome["gap"] == pytest.approx(one.outcome["train"] - one.outcome["test"])
    assert one.outcome["train"] != one.outcome["test"]


@pytest.mark.parametrize("method", ["adapter", "lora", "prefix", "bitfit", "full"])
def test_a_delta_without_all_its_layers_is_the_backbone(method: str, bert: Backbone) -> None:
    delta, rows = perturbed_delta(bert, method), prepared_rows(bert, "mood", 6)
    whole = encode(bert, rows.tokens, delta=delta)
    top = encode(bert, rows.tokens, delta=ablate_layers(bert, delta, 0, 0))
    none = encode(bert, rows.tokens, delta=ablate_layers(bert, delta, 0, bert.num_layers - 1))
    left = {key for key in delta.values if not key.startswith("layer.")}
    assert ablate_layers(bert, delta, 0, bert.num_layers - 1).values.keys() == left
    assert not torch.equal(whole, top)
    assert torch.equal(none, encode(bert, rows.tokens)) == (not left and method != "prefix")


def test_an_adapter_undone_is_one_whose_last_weights_are_zero(bert: Backbone) -> None:
    delta, rows = perturbed_delta(bert, "adapter_pfeiffer"), prepared_rows(bert, "mood", 6)
    zero = {k: v * (not (k.startswith("layer.1.") and "/up" in k)) for k, v in delta.values.items()}
    expected = encode(bert, rows.tokens, delta=replace(delta, values=zero))
    torch.testing.assert_close(encode(bert, rows.tokens, delta=ablate_layers(bert, delta, 1, 1)), expected)


def test_transfer_is_measured_as_said(bench: TrialRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    trained: list[str] = []
    own = TrialRunner.train

    def counting(self: TrialRunner, trial: StudyTrial, **more: Any) -> Any:
        trained.append(trial.task)
        return own(self, trial, **more)

    monkeypatch.setattr(TrialRunner, "train", counting)
    twice = replace(bench, seeds=(0, 1))
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

    (one,) = (f for f in studied.results if f.trial.task == "mood" and f.trial.source and f.trial.seed == 1)
    task, backbone = twice.trial_task(one.trial).task, bench.backbone
    assert isinstance(task.train, ClassificationRows)
    assert isinstance(task.validation, ClassificationRows)
    assert isinstance(task.test, ClassificationRows)
    assert [len(rows.tokens) for rows in (task.train, task.validation, task.test)] == [8, 8, 12]
    assert one.trial.source is not None
    delta = twice.source_delta(one.trial.source).delta
    seen = [encode(backbone, rows.tokens, delta=delta) for rows in (task.train, task.validation, task.test)]
    head = fit_discriminant(compute_signature(seen[0], task.train.classes, count=2), seen[1], task.validation.classes)
    right = (seen[2] @ head.weight.T + head.bias).argmax(dim=1) == task.test.classes
    assert one.outcome["frozen"] == pytest.approx(float(right.double().mean()))
    assert one.outcome["measures"]["held_out"] == pytest.approx(float(head.correct.double().mean()))
    judged = studied.result.to_json["Measures of similarity"]
    assert {row["measure"] for row in judged} <= {*one.outcome["measures"]}
    assert all(row["regret@3"] == 0.0 for row in judged), "of one source the best is among the first three"


def test_a_measure_is_judged_by_what_its_first_three_bring() -> None:
    gains, values = [0.1, 0.5, 0.2, 0.0, -0.1], [5.0, 1.0, 4.0, 3.0, 2.0]
    assert regret_at(3, gains, values) == pytest.approx(0.3)
    assert regret_at(5, gains, values) == 0.0
    assert rank_correlation([1.0, 2.0, 3.0], [10.0, 30.0, 20.0]) == pytest.approx(0.5)
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) is None


def test_ways_of_combining_are_methods(bench: TrialRunner) -> None:  # noqa: F811
    pair = (Method.model_validate(LORA), Method(name="bitfit"))
    assert [method_label(method) for method in pair_variants(pair).values()] == [
        "lora rank 1",
        "bitfit",
        "lora rank 1 + bitfit",
        "lora rank 1, then bitfit",
        "bitfit, then lora rank 1",
    ]
    assert all(METHODS[method.name].model_validate(method.settings) for method in pair_variants(pair).values())


def test_what_is_asked_decides_what_is_found_again(bench: TrialRunner) -> None:  # noqa: F811
    one = StudyTrial(bench.tasks[0], 0, SearchCandidate(Method(name="lora"), 0.1), Budget())
    others = (
        replace(one, seed=1),
        replace(one, rows=8),
        replace(one, shots=4),
        replace(one, source=one),
        replace(one, extra={"a": 1}),
        replace(one, candidate=SearchCandidate(Method(name="lora"), 0.2)),
        replace(one, budget=Budget(epochs=4)),
        replace(one, data=replace(one.data, test=rows_of("mood", 3, seed=9))),
        replace(one, data=replace(one.data, spec=one.data.spec.model_copy(update={"metric": "macro_f1"}))),
    )
    assert len({trial.key for trial in (one, *others)}) == len(others) + 1
    elsewhere = one.data.spec.model_copy(update={"source": Source(path="hub/name")})
    assert replace(one, data=replace(one.data, spec=elsewhere)).key == one.key


def test_a_trial_that_fails_is_kept_and_left_out(
    bench: TrialRunner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,  # noqa: F811
) -> None:
    study, file = study_of("size", {"methods": [LORA], "rates": [1.0]}), tmp_path / "l"

    def measure(self: Study, bench: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:  # noqa: F811
        if trial.task == "mood" and trial.candidate.method.name == "lora":
            raise TrainingError("the training loss became nan")
        return summarize(*bench.train(trial))

    monkeypatch.setattr(type(study), "measure", measure)
    studied = run_study(study, bench, TrialStore(file))
    assert [one.outcome.get("failed") for one in studied.results].count("the training loss became nan") == 1
    table = studied.result.to_json["Score less that of full fine-tuning"]
    assert {row["method"]: row["tasks"] for row in table} == {"full": 2, "lora rank 1": 1}
    monkeypatch.setattr(type(study), "measure", lambda *_: pytest.fail("it was made before"))
    run_study(study, bench, TrialStore(file))
    monkeypatch.setattr(type(study), "measure", lambda *_: (_ for _ in ()).throw(TrainingError("no")))
    with pytest.raises(TrainingError, match="all 4 trials failed; the first: no"):
        run_study(study, bench, TrialStore(tmp_path / "other"))


@pytest.mark.parametrize(
    ("name", "settings", "said"),
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
def test_settings_are_checked(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        study_of(name, settings)


@pytest.mark.parametrize(
    ("name", "settings", "tasks", "error", "said"),
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
def test_what_does_not_fit_is_said_before_anything_is_trained(
    bench: TrialRunner,  # noqa: F811
    tmp_path: Path,
    name: str,
    settings: dict[str, Any],
    tasks: int,
    error: type[Exception],
    said: str,
) -> None:
    few = replace(bench, tasks=bench.tasks[:tasks])
    with pytest.raises(error, match=said):
        run_study(study_of(name, settings), few, TrialStore(tmp_path / "l"))
    assert not (tmp_path / "l").exists()


def test_a_template_needs_a_language_model(bert: Backbone, tmp_path: Path) -> None:
    bench = TrialRunner(bert, (task_data("mood"),), (0,))
    with pytest.raises(MethodError, match="masked, causal or encoder-decoder language model, such as roberta-base"):
        run_study(study_of("templates", {}), bench, TrialStore(tmp_path / "l"))


def test_tasks_of_an_encoder_decoder_that_cannot_start_from_each_other_are_refused(tmp_path: Path) -> None:
    bench = TrialRunner(backbone_of("t5"), (task_data("mood"), task_data("place", template=False)), (0,))
    with pytest.raises(StudyError, match="mood answer with the decoder and the other tasks do not"):
        run_study(study_of("transfer", {}), bench, TrialStore(tmp_path / "l"))


def test_lines_that_are_no_trials_are_passed_over(bench: TrialRunner, tmp_path: Path) -> None:  # noqa: F811
    file, trial = (
        tmp_path / "deep" / "l",
        StudyTrial(bench.tasks[0], 0, SearchCandidate(Method(name="lora"), 0.1), Budget()),
    )
    TrialStore(file).add(trial, {"test": 0.5})
    whole = file.read_bytes()
    file.write_bytes(b'[1]\nnull\n{"key": 1}\n\xff\xfe\n' + whole + b'{"key": "half')
    ledger = TrialStore(file)
    assert ledger.get(trial) == {"test": 0.5}
    ledger.add(replace(trial, seed=1), {"test": 0.6})
    assert TrialStore(file).get(replace(trial, seed=1)) == {"test": 0.6}
