"""Settings of every study that make it as small as possible, and tiny tasks for its trials."""

from collections.abc import Mapping
from typing import Any

import pytest

from continual.backbones.backbone import Backbone, load_backbone
from continual.experiments.studies import Study, StudyTrial, TrialRunner
from continual.experiments.studies.cost import Cost
from tasks import Budget, Method, Source, TaskData, TaskSpec, Template
from tests.conftest import backbone_of
from tests.helpers.tiny_tasks import rows_of, save_backbone

LORA = {"name": "lora", "rank": 1}
WORDS = {"mood": {"bad": "awful", "good": "superb"}, "place": {"city": "street", "sea": "wave"}}
# Each study as small as it can be.
SMALL: Mapping[str, dict[str, Any]] = {
    "size": {"methods": [LORA, {"name": "lora", "rank": 4}], "rates": [0.1, 1.0]},
    "convergence": {"methods": [LORA], "rates": [1.0], "epochs": 2},
    "cost": {"methods": [LORA], "batch_sizes": [4], "steps": 2},
    "generalisation": {"methods": [LORA, "probe"], "rates": [1.0], "rows": [8, 24, 100000]},
    "transfer": {"shots": 4, "epochs": 1},
    "ablation": {"scales": [1e-3, 1.0], "method": {"name": "adapter", "size": 2}, "scaled": {"name": "adapter"}},
    "combination": {"combinations": [[LORA, "bitfit"]], "rates": [1.0]},
    "templates": {"shots": 4, "few_epochs": 1, "rates": [1.0]},
    "placement": {"size": 2, "rates": [1.0]},
    "composition": {"size": 8, "scales": [1, 4], "rates": [1.0]},
    "heads": {"budgets": [0.01], "rates": [1.0]},
    "ranking": {"methods": [LORA, "probe"], "rates": [1.0]},
    "scale": {"methods": [LORA], "rates": [1.0]},
    "answers": {"rows": [0, 8]},
}


def task_data(name: str, *, template: bool = True, train: int = 30) -> TaskData:
    words = WORDS[name]
    spec = TaskSpec(
        name=name,
        source=Source(path="json", data_files={"train": "none.jsonl"}),
        text="text",
        label="label",
        template=Template(text="{{ text }} the {{ mask }}", words=words) if template else None,
        method=Method.model_validate({"name": "lora", "rank": 2}),
        warm_start="auto",
        budget=Budget(epochs=1, batch_size=8, learning_rate=1e-2, max_length=16),
    )
    train_rows, validation, test = (rows_of(name, n, seed=seed) for seed, n in enumerate((train, 12, 12)))
    return TaskData(spec, tuple(sorted(words)), train_rows, validation, test)


@pytest.fixture(scope="module")
def writer_backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A backbone with a language model, loaded from a folder so that other processes can load it too."""
    folder = save_backbone(backbone_of("gpt2"), tmp_path_factory.mktemp("gpt2"))
    return load_backbone(str(folder), device="cpu", dtype="float32")


@pytest.fixture
def trial_runner(writer_backbone: Backbone, request: pytest.FixtureRequest) -> TrialRunner:
    template = getattr(request, "param", "") in ("templates", "combination", "answers")
    tasks = ("mood",) if getattr(request, "param", "") == "cost" else ("mood", "place")
    return TrialRunner(writer_backbone, tuple(task_data(name, template=template) for name in tasks), (0,))


def count_measured_trials(study: Study, monkeypatch: pytest.MonkeyPatch) -> list[StudyTrial]:
    """Record the trials that are measured from now on.

    A measurement of cost starts a process, which takes seconds: it is made once per trial.
    """
    measured: list[StudyTrial] = []
    costs: dict[str, Mapping[str, Any]] = {}
    kind, measure = type(study), type(study).measure

    def counting(self: Study, runner: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        measured.append(trial)
        if not isinstance(study, Cost):
            return measure(self, runner, trial)
        if trial.key not in costs:
            costs[trial.key] = measure(self, runner, trial)
        return costs[trial.key]

    monkeypatch.setattr(kind, "measure", counting)
    return measured
