"""Tasks whose rows are in memory, through the public API: learned, learned again, reported."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from continual import Learner, Registry, RunCallbacks, Stream, TaskSpec, task_from_rows
from continual.backbones.backbone import Backbone
from continual.inference.predictions import Predictions
from continual.learning.similar_tasks import compare_through_deltas
from continual.learning.wrong_answers import find_wrong_answers
from continual.reports.tabular import ComparisonReport, StreamReport
from continual.streams.audit import audit_stream
from registry import find_damage
from registry.errors import StreamChanged
from tasks import Budget
from tasks.errors import DataError, InputError
from tests.conftest import backbone_of
from tests.helpers.tiny_tasks import rows_of

BUDGET: dict[str, Any] = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-2, "max_length": 16}
SETTINGS: dict[str, Any] = {"text": "text", "label": "label", "budget": BUDGET, "method": {"name": "lora", "rank": 2}}


@pytest.fixture
def learner(bert: Backbone, tmp_path: Path) -> Iterator[Learner]:
    with Registry.open(f"sqlite:///{tmp_path / 'registry.db'}", str(tmp_path / "blobs")) as registry:
        yield Learner(bert, registry)


def frame_of(task: str, n: int = 60, *, seed: int = 0) -> pd.DataFrame:
    rows = rows_of(task, n, seed=seed)
    return pd.DataFrame({"text": rows.texts, "label": rows.labels})


def stored_values(learner: Learner) -> str:
    from sqlalchemy import select

    from registry.schema.base import Base

    with learner.registry.read_session() as session:
        tables = Base.metadata.sorted_tables
        return "\n".join(str(tuple(row)) for table in tables for row in session.execute(select(table)))


def test_each_type_of_data_is_learned_as_a_file_is(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    frames = {split: frame_of("mood", 30, seed=seed) for seed, split in enumerate(("train", "validation", "test"))}
    for split, frame in frames.items():
        frame.to_csv(tmp_path / f"{split}.csv", index=False)
    sets = {split: datasets.Dataset.from_pandas(frame) for split, frame in frames.items()}
    data = {
        "csv": {split: Path(f"{split}.csv") for split in frames},
        "frame": frames,
        "dataset": sets,
        "list": {split: frame.to_dict("records") for split, frame in frames.items()},
    }
    settings = SETTINGS | {"budget": BUDGET | {"epochs": 0}, "warm_start": "scratch", "folder": tmp_path}
    for name, splits in data.items():
        held_out = {split: splits[split] for split in ("validation", "test")}
        assert learner.learn(name, splits["train"], **held_out, **settings) == f"{name}@1"
    assert learner.learn("dict", datasets.DatasetDict(sets), **settings) == "dict@1"
    deltas = [learner.registry.delta(f"{name}@1") for name in (*data, "dict")]
    assert len({(str(delta.data and delta.data.fingerprints), delta.values) for delta in deltas}) == 1
    assert {str(frame) for frame in frames["train"]["text"]} & set(stored_values(learner).split("'")) == set()


def test_carved_rows_are_said_and_suspicious_ones_refused(learner: Learner) -> None:
    notes: list[str] = []
    callbacks = RunCallbacks(on_note=lambda task, note: notes.append(f"{task}: {note}"))
    learner.learn("mood", frame_of("mood"), callbacks=callbacks, **SETTINGS)
    assert notes[:2] == [
        "mood: test: not given; 12 of the 60 train rows were held out for it (seed 0)",
        "mood: validation: not given; 5 of the 48 train rows were held out for it (seed 0)",
    ]
    assert any(note.startswith("mood: warning: validation: 5 rows") for note in notes)
    before = stored_values(learner)
    with pytest.raises(DataError, match=r"'mood' is strict(?s:.*)validation: 5 rows"):
        learner.learn("mood", frame_of("mood"), strict=True, **SETTINGS)
    with pytest.raises(InputError, match="unknown keyword 'lable'"):
        learner.learn("mood", frame_of("mood"), text="text", lable="label")
    with pytest.raises(InputError, match=r"task 'mood' comes with its rows and settings; leave out shots"):
        learner.learn(task_from_rows("mood", frame_of("mood"), text="text", label="label"), shots=3)
    assert stored_values(learner) == before


def test_a_version_from_grown_rows_serves_with_the_same_validation_rows(learner: Learner) -> None:
    validation, more = frame_of("mood", 40, seed=1), frame_of("mood", 60, seed=2)
    learner.learn("mood", frame_of("mood"), validation=validation, **SETTINGS)
    grown = pd.concat([frame_of("mood"), more])
    assert learner.learn("mood", grown, validation=validation, **SETTINGS) == "mood@2"
    (edge,) = learner.registry.lineage("mood@2")
    assert (edge["parent"], edge["kind"]) == ("mood@1", "retrained")
    appended = pd.concat([validation, frame_of("mood", 20, seed=3)])
    learner.learn("mood", grown, validation=appended, **SETTINGS)
    assert [row["status"] for row in learner.registry.deltas("mood")] == ["archived", "archived", "champion"]
    assert find_damage(learner.registry) == []


def test_a_version_with_other_carved_rows_waits_for_a_decision(learner: Learner) -> None:
    learner.learn("mood", frame_of("mood"), **SETTINGS)
    learner.learn("mood", frame_of("mood", 90), **SETTINGS)
    second = learner.registry.delta("mood@2")
    assert second.status == "candidate"
    assert str(second.reason).startswith("the validation rows of mood@1 are in no file, and the new ones do not begin")
    assert "`continual deltas promote` decides by hand" in str(second.reason)


def test_a_stream_of_frames_is_run_reported_and_audited(learner: Learner) -> None:
    frames = {task: frame_of(task) for task in ("mood", "place")}
    specs = tuple(task_from_rows(task, frame, text="text", label="label") for task, frame in frames.items())
    stream = Stream(name="both", tasks=specs, budget=Budget(**BUDGET))
    assert learner.run(stream) == {}
    report = learner.report("both")
    assert isinstance(report, StreamReport)
    assert report.to_frame().loc["mood", "delta"] == "mood@1"
    assert all(row.identical for row in audit_stream(learner.backbone, learner.registry, stream))
    started: list[str] = []
    assert learner.run(stream, callbacks=RunCallbacks(on_start=started.append)) == {}
    assert started == []
    frames["mood"].loc[0, "text"] = "a lovely whale"
    with pytest.raises(StreamChanged, match="mood"):
        learner.run(stream)
    html = learner._repr_html_()
    assert all(text in html for text in ("tiny-bert", "mood@1", "place@1", "registry.db"))
    predictions = learner.predict(frame_of("mood", 3), task="mood")
    assert isinstance(predictions, Predictions)
    assert list(predictions.to_frame()["input_label"]) == list(frame_of("mood", 3)["label"])


def test_a_comparison_has_the_views_of_a_report(learner: Learner) -> None:
    spec = task_from_rows("mood", frame_of("mood"), text="text", label="label")
    stream = Stream(name="one", tasks=(spec,), budget=Budget(**BUDGET))
    compared = learner.compare(stream, {"isolated": None})
    assert isinstance(compared, ComparisonReport)
    assert list(compared.to_frame().index) == ["isolated"]


def test_what_reads_rows_again_says_why_it_cannot(learner: Learner) -> None:
    learner.learn("mood", frame_of("mood"), **SETTINGS)
    learner.learn("place", frame_of("place"), **SETTINGS)
    reason = r"its rows were given from the memory of a Python process, .* learner\.learn\('mood', frame, …\), or learn"
    with pytest.raises(DataError, match=rf"^the rows of mood@1 are not stored, and cannot be read again: .*{reason}"):
        find_wrong_answers(learner.backbone, learner.registry, "mood")
    with pytest.raises(DataError, match=reason):
        compare_through_deltas(learner.registry, learner.backbone, "mood")
    with pytest.raises(InputError, match=rf"nothing to migrate:\nmood@1: task 'mood': {reason}"):
        Learner(backbone_of("roberta"), learner.registry).migrate(tasks=["mood"])
    spec = task_from_rows("mood", frame_of("mood"), text="text", label="label")
    with pytest.raises(InputError, match=r"where no watcher can read them\. Save them to a file and submit that"):
        learner.registry.submit(spec)
    stored = learner.registry.delta("mood@1").data
    assert stored is not None
    with pytest.raises(DataError, match=reason):
        learner.learn(TaskSpec.model_validate(stored.spec))
