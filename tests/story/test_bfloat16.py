"""The whole loop with frozen matrices in bfloat16, as on a GPU."""

from pathlib import Path

import pytest

from continual import Learner
from continual.learning.verify import verify_home
from continual.streams.audit import audit_stream
from tasks import Budget, Stream, TaskSpec
from tests.helpers.tiny_tasks import save_backbone, tiny_backbone, write_task

BUDGET = Budget(epochs=1, batch_size=8, learning_rate=1e-2, max_length=16)


@pytest.mark.parametrize(("family", "kinds"), [("bert", 1), ("llama", 2), ("t5", 2)])
def test_tasks_are_learned_audited_verified_and_answered(tmp_path: Path, family: str, kinds: int) -> None:
    folder = save_backbone(tiny_backbone(family), tmp_path / "backbone")
    labelled = TaskSpec.model_validate(write_task(tmp_path, "animals"))
    written = labelled.model_copy(
        update={"name": "written", "kind": "generation", "label": None, "target": "label", "metric": "chrf"}
    )
    stream = Stream(name="low", warm_start="auto", budget=BUDGET, tasks=(labelled, written)[:kinds], folder=tmp_path)
    with Learner.open(str(folder), tmp_path / "home", dtype="bfloat16") as learner:
        assert learner.run(stream) == {}
        assert all(task.identical for task in audit_stream(learner.backbone, learner.registry, stream))
        answers = learner.predict(["purr meow", "woof"])
        assert [answer.error for answer in answers] == [None, None]
        report = verify_home(learner.registry, device="cpu")
    assert report.problems == []
