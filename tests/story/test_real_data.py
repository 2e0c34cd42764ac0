"""Real tasks on the real backbone, if the data lies beside the checkout."""

from pathlib import Path

import pytest

from continual import Learner, Registry, read_stream
from continual.backbones.backbone import Backbone
from continual.streams.audit import audit_stream
from tasks import Budget
from tests.helpers.paths import SHARED

STREAMS = SHARED / "streams"

pytestmark = pytest.mark.skipif(not STREAMS.is_dir(), reason=f"no measuring data: {STREAMS} is absent")


@pytest.fixture
def learner(minilm: Backbone, tmp_path: Path) -> Learner:
    return Learner(minilm, Registry.open(f"sqlite:///{tmp_path / 'registry.db'}", str(tmp_path / "blobs")))


def test_a_task_answers_after_one_pass_over_its_rows(learner: Learner) -> None:
    """77 intents without a training step; `tests.benchmarks.quality` measures all 10,000 rows."""
    few = {"train": 2000, "validation": 300, "test": 500}
    core = read_stream(STREAMS / "core.yaml")
    banking = next(task for task in core.tasks if task.name == "banking77")
    learner.learn(banking.model_copy(update={"budget": Budget(epochs=0), "rows": few}), folder=core.folder)
    (row,) = learner.registry.deltas("banking77")
    assert row["score"] >= 0.86
    curve = learner.registry.scores(delta="banking77@1", mode="curve")
    assert [(score.step, score.split) for score in curve] == [(0, "validation")]


def test_real_tasks_are_learned_routed_and_not_forgotten(learner: Learner) -> None:
    smoke = read_stream(STREAMS / "smoke.yaml")
    few = {"train": 120, "validation": 50, "test": 60}
    brief = smoke.model_copy(
        update={
            "budget": smoke.budget.model_copy(update={"epochs": 1, "max_length": 64}),
            "tasks": tuple(task.model_copy(update={"rows": few}) for task in smoke.tasks[::2]),
        }
    )
    assert learner.run(brief) == {}
    report = learner.report("smoke")
    assert report["oracle"]["forgetting"] == 0.0
    assert report["oracle"]["acc"] > 0.8
    assert report["routed"]["routing_accuracy"] > 0.9
    assert all(task["score"] >= task["frozen_score"] - 0.1 for task in report["per_task"])
    assert all(audited.identical for audited in audit_stream(learner.backbone, learner.registry, brief))
