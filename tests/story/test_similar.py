"""Similarity of tasks by their rows, through deltas of other kinds and damaged ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from continual.learning.similar_tasks import compare_through_deltas
from continual.transfer.transferability import TRANSFERABILITY_MEASURES
from tests.conftest import backbone_of
from tests.story.test_compare import open_home
from tests.story.test_kinds import BUDGET, write_kinds

READ = (*TRANSFERABILITY_MEASURES, "labels")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_incompatible_deltas_have_no_similarity_measures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On an encoder-decoder a classification uses the encoder only and a generation both: no measure either way."""
    stream = write_kinds(tmp_path, "mood", "warmth", "echo", budget=BUDGET | {"epochs": 0})
    with open_home(backbone_of("t5"), tmp_path / "home") as learner:
        assert learner.run(stream) == {}
        registry, backbone = learner.registry, learner.backbone
        rows = {row["task"]: row for row in compare_through_deltas(registry, backbone, "mood")}
        assert rows["warmth"]["held_out"] is not None
        assert rows["warmth"]["leep"] is None, "a regression answers with a number"
        assert {rows["echo"][measure] for measure in READ} == {None}
        assert {row["leep"] for row in compare_through_deltas(registry, backbone, "warmth")} == {None}, (
            "all rows are of one class"
        )
        Path(registry.blobs.path(registry.delta("warmth@1").values)).unlink()
        damaged = {row["task"]: row for row in compare_through_deltas(registry, backbone, "mood")}
        assert damaged["echo"] == rows["echo"]
        assert damaged["warmth"].keys() == rows["warmth"].keys()
        assert {damaged["warmth"][measure] for measure in ("deltas", *READ)} == {None}
        assert "delta warmth@1 cannot be compared" in caplog.text
