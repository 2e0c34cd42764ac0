"""Studies of design choices, of the ranking and of scale: equal sizes, and numbers against second computations."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from continual.backbones.backbone import Backbone
from continual.deltas import Add, Reads, method_settings
from continual.errors import BackboneError, MethodError, StudyError
from continual.experiments.studies import StudyTrial, TrialResult, TrialRunner, TrialStore, run_study, study_of
from continual.experiments.studies.aggregation import FULL, method_label, method_of_name
from continual.experiments.studies.composition import Composition
from continual.experiments.studies.design_comparison import parameter_count
from continual.experiments.studies.heads import Heads
from continual.experiments.studies.placement import Placement
from continual.experiments.studies.ranking import mean_ranks
from continual.experiments.studies.scale import Scale
from continual.experiments.studies.size import Size
from continual.experiments.studies.trial import TrialBackbone
from tests.conftest import backbone_of
from tests.helpers.studies import LORA, SMALL, task_data, trial_runner, writer_backbone  # noqa: F401 (fixtures)

FORMS, TASKS, SEEDS = ("sequential", "parallel"), ("mood", "place"), (0, 1, 2)


@pytest.fixture
def planned(writer_backbone: Backbone) -> TrialRunner:  # noqa: F811
    """A runner of three seeds whose trials are only listed."""
    return TrialRunner(writer_backbone, (task_data("mood"), task_data("place")), SEEDS)


def results_of(trials: Sequence[StudyTrial], scores: Mapping[tuple[str, str, int], float]) -> list[TrialResult]:
    """Return results with the test scores by name, task and seed; trials without one are left out."""
    keys = [
        (trial.extra.get("design", method_label(trial.candidate.method)), trial.task, trial.seed) for trial in trials
    ]
    return [
        TrialResult(trial, {"validation": 0.0, "test": scores[key], "parameters": 1, "share": 0.1, "seconds": 1.0})
        for trial, key in zip(trials, keys, strict=True)
        if key in scores
    ]


@pytest.mark.parametrize(("name", "generates"), [("bert", False), ("llama", False), ("t5", True)])
def test_placements_differ_in_form_and_block_alone(name: str, generates: bool) -> None:
    backbone = replace(backbone_of(name), generates=generates)
    designs = Placement(size=16).designs(backbone)
    counts = {parameter_count(backbone, method) for forms in designs.values() for method in forms.values()}
    sequential, parallel = (
        {block: method_settings(forms[form]).edits() for block, forms in designs.items()} for form in FORMS
    )
    assert [[edit.site for edit in edits] for edits in sequential.values()] == [["attn.out"], ["ffn.out"]]
    assert [[edit.site for edit in edits] for edits in parallel.values()] == [["attn"], ["ffn"]]
    assert {edit.reads for edits in sequential.values() for edit in edits} == {Reads.OUTPUT}
    assert {edit.reads for edits in parallel.values() for edit in edits} == {Reads.RESIDUAL_BEFORE}
    for block in designs:
        (one,), (other,) = sequential[block], parallel[block]
        assert one.form == other.form
        assert one.compose == other.compose == Add(1.0)
    if generates:  # two attentions in a decoder's layer and one feed-forward
        assert max(counts) / min(counts) < 1.1
    else:
        assert len(counts) == 1


def test_composition_scales_equal_sizes(bert: Backbone) -> None:
    designs = Composition(size=20, scales=(1.0, 4.0)).designs(bert)
    adapters, loras = ([method_settings(method) for method in designs[name].values()] for name in designs)
    assert [settings.scale for settings in adapters] == [1.0, 4.0]  # type: ignore[attr-defined]
    assert [settings.alpha / settings.rank for settings in loras] == [1.0, 4.0]  # type: ignore[attr-defined]
    counts = [parameter_count(bert, methods["1"]) for methods in designs.values()]
    one_rank = parameter_count(bert, method_of_name("lora", rank=1, sites=["ffn.in", "ffn.out"]))
    assert abs(counts[0] - counts[1]) <= one_rank / 2


def test_sizes_follow_from_the_budget(bert: Backbone) -> None:
    designs = Heads(budgets=(0.01, 0.1)).designs(bert)
    assert list(designs) == ["1 %", "10 %"]
    for budget, methods in zip((0.01, 0.1), designs.values(), strict=True):
        assert len(methods) == 4
        for method in methods.values():
            size_setting = "length" if method.name == "prefix" else "size"
            larger = method_of_name(method.name, **{**method.settings, size_setting: method.settings[size_setting] + 1})
            count, step = parameter_count(bert, method), parameter_count(bert, larger) - parameter_count(bert, method)
            assert abs(count - budget * bert.parameter_count) <= step / 2
    with pytest.raises(StudyError, match=r"parameters are too few on backbone .* of the backbone's; allow more"):
        Heads(budgets=(1e-6,)).designs(bert)


def test_gains_are_over_the_first_design_of_the_group(planned: TrialRunner) -> None:
    study = study_of("placement", {"size": 2, "rates": [1.0]})
    trials, draw = list(study.trials(planned)), np.random.default_rng(0)
    scores = {(form, task, seed): float(draw.random()) for form in FORMS for task in TASKS for seed in SEEDS}
    tables = study.result(results_of(trials, scores)).to_json
    by_seed = {
        form: np.array([np.mean([scores[form, task, seed] for task in TASKS]) for seed in SEEDS]) for form in FORMS
    }
    rows = tables["Score of each design"]
    assert [(row["block"], row["form"]) for row in rows] == [
        (block, form) for block in ("attention", "feed-forward") for form in FORMS
    ]
    for row in rows:
        assert row["test"] == pytest.approx(by_seed[row["form"]].mean())
        assert row["deviation"] == pytest.approx(by_seed[row["form"]].std(ddof=1))
        assert row["gain"] == pytest.approx((by_seed[row["form"]] - by_seed["sequential"]).mean())
    choices = {row["choice"]: row["test"] for row in tables["Each choice"]}
    assert choices["parallel"] == pytest.approx(by_seed["parallel"].mean())
    assert choices["attention"] == choices["feed-forward"] == pytest.approx(np.mean(list(by_seed.values())))


def test_a_task_on_which_a_design_failed_counts_for_none(planned: TrialRunner) -> None:
    study = study_of("placement", {"size": 2, "rates": [1.0]})
    trials = list(study.trials(planned))
    scores = {(f, t, s): 0.5 for f in FORMS for t in TASKS for s in SEEDS}
    scores |= {("parallel", "mood", seed): 0.9 for seed in SEEDS}
    del scores["sequential", "mood", 1]
    tables = study.result(results_of(trials, scores)).to_json
    assert {row["test"] for row in tables["Score of each design"]} == {0.5}
    assert [row["mood"] for row in tables["Each task"]] == pytest.approx([0.5, 0.9, 0.5, 0.9])
    of_parallel = study.result(results_of(trials, {key: s for key, s in scores.items() if key[0] == "parallel"}))
    assert {row["gain"] for row in of_parallel.to_json["Score of each design"]} == {None}
    assert of_parallel.metrics == {}


def test_methods_are_ranked_by_their_mean_over_tasks(planned: TrialRunner) -> None:
    study = study_of("ranking", {"methods": ["bitfit", "ia3", "probe"], "rates": [1.0]})
    trials, draw = list(study.trials(planned)), np.random.default_rng(1)
    values = draw.random((3, 2, 3))
    values[2] = values[1]  # (IA)³ and the probe tie everywhere
    names = ("bitfit", "ia3", "probe")
    scores = {
        (name, task, seed): float(values[i, t, s])
        for i, name in enumerate(names)
        for t, task in enumerate(TASKS)
        for s, seed in enumerate(SEEDS)
    }
    results = results_of(trials, scores)
    rows = {row["method"]: row for row in study.result(results).to_json["Ranking"]}
    means = values.mean(axis=1)
    assert [rows[name]["test"] for name in names] == pytest.approx(means.mean(axis=1))
    assert [rows[name]["deviation"] for name in names] == pytest.approx(means.std(axis=1, ddof=1))
    assert list(rows) == sorted(rows, key=lambda name: -rows[name]["test"])
    assert mean_ranks(results) == pytest.approx(mean_ranks_by_hand(values, names))


def mean_ranks_by_hand(values: Any, names: Sequence[str]) -> dict[str, float]:
    """Return 1 + how many are better + half of how many others are equal, averaged."""
    better = (values[None] > values[:, None]).sum(axis=1)
    equal = (values[None] == values[:, None]).sum(axis=1) - 1
    return dict(zip(names, (1 + better + equal / 2).mean(axis=(1, 2)).tolist(), strict=True))


def test_every_backbone_trains_every_method(trial_runner: TrialRunner, bert_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    one_task = replace(trial_runner, tasks=trial_runner.tasks[:1])
    study = study_of("scale", {**SMALL["scale"], "backbones": [str(bert_folder)]})
    run = run_study(study, one_task, TrialStore(tmp_path / "l"))
    bert = one_task.with_backbone(str(bert_folder)).backbone
    backbones = [result.trial.backbone for result in run.results]
    assert all(backbones)
    assert [b.fingerprint for b in backbones if b] == [trial_runner.backbone.fingerprint] * 2 + [bert.fingerprint] * 2
    lora = run.results[2].outcome
    assert lora["share"] == pytest.approx(lora["parameters"] / bert.parameter_count), "it was trained on its backbone"


def test_the_gap_is_to_full_fine_tuning_on_the_same_backbone(planned: TrialRunner) -> None:
    study = Scale.model_validate({"methods": [LORA], "rates": [1.0], "backbones": ["large"]})
    small, large = TrialBackbone("small", "1", 1000), TrialBackbone("large", "2", 9000)
    trials = list(Size.model_validate({"methods": [LORA], "rates": [1.0]}).trials(planned))
    scores = {small: {"lora rank 1": 0.5, "full": 0.8}, large: {"lora rank 1": 0.9, "full": 0.95}}
    results = []
    for backbone in (large, small):
        runs = {(name, t.task, t.seed): score for t in trials for name, score in scores[backbone].items()}
        results += [TrialResult(replace(r.trial, backbone=backbone), r.outcome) for r in results_of(trials, runs)]
    tables = study.result(results).to_json
    (row,) = tables["Gap to full fine-tuning"]
    assert list(row) == ["method", "small", "large", "change"]
    assert list(row.values())[1:] == pytest.approx([-0.3, -0.05, 0.25])
    ranges = tables["Difference between methods"]
    assert [(row["best"], row["worst"]) for row in ranges] == [("full", "lora rank 1")] * 2
    assert [row["range"] for row in ranges] == pytest.approx([0.3, 0.05])


def test_scale_checks_every_backbone_before_training(
    trial_runner: TrialRunner,  # noqa: F811
    bert_folder: Path,
    tmp_path: Path,
) -> None:
    folder, store = str(bert_folder), TrialStore(tmp_path / "l")
    with pytest.raises(StudyError, match="name others, as in --set 'backbones="):
        run_study(study_of("scale", {"backbones": [trial_runner.backbone.name]}), trial_runner, store)
    with pytest.raises(BackboneError, match="nowhere"):
        run_study(study_of("scale", {"backbones": ["./nowhere"]}), trial_runner, store)
    deep = {"name": "last_layer", "count": 99}
    with pytest.raises(MethodError, match=f"backbone '{folder}': task 'mood': .*are not there"):
        run_study(study_of("scale", {"backbones": [folder], "methods": [deep]}), trial_runner, store)
    assert not (tmp_path / "l").exists()


def test_norms_alone_are_a_size(planned: TrialRunner) -> None:
    labels = {method_label(trial.candidate.method) for trial in Size().trials(planned)}
    assert {"layer_norm", method_label(FULL), "lora rank 1"} <= labels
