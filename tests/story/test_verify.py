"""`verify`: blobs, metadata, the backbone, and replayed outputs of the champions."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from sqlalchemy import update

from continual import Learner, serialization
from continual.cli import main
from continual.deltas import load_delta
from continual.learning.probes import ProbeDifference
from continual.learning.verify import VerificationReport, verify_home
from continual.reports.delta_markdown import delta_markdown
from continual.serialization import deserialize, serialize
from registry.schema.tables import Backbone, Delta, Task
from tests.helpers.registries import digest_of
from tests.helpers.tiny_tasks import head_of, perturbed_delta
from tests.story.test_stream import _own_cache, cache, open_home, write_stream  # noqa: F401 (fixtures)


@pytest.fixture(scope="module")
def learned(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verified")
    shutil.copytree(bert_folder, folder / "backbone")
    with open_home(folder / "backbone", folder / "home") as learner:
        assert learner.run(write_stream(folder, tasks=("animals", "mood"), warm_start="scratch")) == {}
    return folder


@pytest.fixture
def folder(learned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(learned, tmp_path / "copy"))


@pytest.fixture
def learner(folder: Path, learned: Path) -> Iterator[Learner]:
    with open_home(learned / "backbone", folder / "home") as opened:
        yield opened


def change(learner: Learner, delta: str, **values: Any) -> None:
    """Change a row by SQL alone, without the registry's rules."""
    task, _, version = delta.partition("@")
    with learner.registry.unit_of_work() as unit:
        row = next(d for d in unit.session.query(Delta) if d.name == f"{task}@{version}")
        unit.session.execute(update(Delta).where(Delta.id == row.id).values(**values))


def verification(learner: Learner, **options: Any) -> VerificationReport:
    return verify_home(learner.registry, device="cpu", **options)


def test_an_unchanged_home_has_no_findings(learner: Learner) -> None:
    assert verification(learner) == verification(learner, quick=True) == VerificationReport([], [])


def other_values(learner: Learner) -> dict[str, Any]:
    """Store a delta that agrees with its row but has other values."""
    delta = load_delta(learner.registry.blobs.get(digest_of(learner.registry, "mood@1")))
    data = (
        delta.map(lambda tensor: tensor + 0.1).quantise_to_float16().to_bytes()
    )  # as long as the blob that it replaces
    return {"digest": learner.registry.blobs.put(data)}


def of_the_other(learner: Learner) -> dict[str, Any]:
    return {"digest": learner.registry.delta("animals@1").digest}


def of_a_newer_format(learner: Learner) -> dict[str, Any]:
    tensors, about = deserialize(learner.registry.blobs.get(digest_of(learner.registry, "mood@1")), what="delta")
    with patch.object(serialization, "FORMAT_VERSION", 99):
        return {"digest": learner.registry.blobs.put(serialize(tensors, about))}


HARM: dict[Callable[[Learner], dict[str, Any]], str] = {
    lambda learner: {"parameters": 7}: "its parameters are",
    lambda learner: {"bytes": 7}: "its bytes are",
    lambda learner: {"method": "bitfit"}: "its method are 'lora' in the blob and 'bitfit' in the row",
    lambda learner: {"settings": {"rank": 3}}: "its settings are",
    lambda learner: {"labels": ["good", "bad"]}: "its labels are",
    of_the_other: "its labels are",
    of_a_newer_format: "format 99",
    lambda learner: {"predictions": learner.registry.blobs.put(b"nonsense")}: "not a stored answer",
}


@pytest.mark.parametrize("harm", HARM, ids=HARM.values())
def test_a_blob_that_contradicts_its_row_is_reported(learner: Learner, harm: Any) -> None:
    change(learner, "mood@1", **harm(learner))
    problems = verification(learner, quick=True).problems
    assert any(problem.startswith("mood@1: ") and HARM[harm] in problem for problem in problems)
    assert not any(problem.startswith("animals@1") for problem in problems)


def test_a_delta_of_an_older_format_is_sound(learner: Learner) -> None:
    """Its settings stand in the row as its release wrote them, and mean what they meant then."""
    delta = perturbed_delta(learner.backbone, "prefix", length=3, shift_positions=True)
    settings = {"length": 3, "reparameterise": 0, "initial_scale": 0.02}
    about = {key: value for key, value in delta.metadata().items() if key != "format"} | {"settings": settings}
    with patch.object(serialization, "FORMAT_VERSION", 2):
        digest = learner.registry.blobs.put(serialize(delta.storage_tensors(), about))
    row = {"digest": digest, "method": "prefix", "settings": settings, "labels": list(head_of(delta).labels)}
    change(learner, "mood@1", **row, parameters=delta.parameter_count, bytes=delta.size)
    assert not any("settings" in problem for problem in verification(learner, quick=True).problems)
    change(learner, "mood@1", settings={**settings, "length": 4})
    assert any("its settings are" in problem for problem in verification(learner, quick=True).problems)


def test_changed_outputs_are_reported_only_with_the_backbone(learner: Learner) -> None:
    change(learner, "mood@1", **other_values(learner))
    assert verification(learner, quick=True).problems == []
    (problem,) = verification(learner).problems
    assert problem.startswith("mood@1: it answers fixed inputs otherwise")


def test_rounding_is_a_warning(learner: Learner) -> None:
    stored = learner.registry.delta("mood@1")
    assert stored.replay is not None
    tensors, _ = deserialize(learner.registry.blobs.get(stored.replay), what="replay")
    rounded = {name: tensor * (1 + 1e-6) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    change(learner, "mood@1", replay=learner.registry.blobs.put(serialize(rounded)))
    verified = verification(learner)
    assert verified.problems == []
    assert "1 of 2 champions answer fixed inputs as when they were registered within rounding" in verified.notes[0]


def test_a_delta_of_an_older_release_has_no_stored_outputs(learner: Learner) -> None:
    change(learner, "mood@1", replay=None)
    verified = verification(learner)
    assert verified.problems == []
    assert "1 champions were registered by a release that kept no answers" in verified.notes[0]


def test_an_unavailable_backbone_is_reported(learner: Learner, folder: Path) -> None:
    with learner.registry.unit_of_work() as unit:
        unit.session.execute(update(Backbone).values(name=f"{folder}/gone"))
    (problem,) = verification(learner).problems
    assert f"backbone {folder}/gone ({learner.backbone.fingerprint[:12]}) is not what was registered" in problem
    assert "--backbone" in problem
    assert verification(learner, backbone=str(folder / "backbone")).problems == []
    assert verification(learner, quick=True).problems == []


def test_a_different_backbone_under_the_name_is_reported(learner: Learner, folder: Path, roberta_folder: Path) -> None:
    with learner.registry.unit_of_work() as unit:
        unit.session.execute(update(Backbone).values(name=str(roberta_folder)))
    (problem,) = verification(learner).problems
    assert f"{str(roberta_folder)!r} is " in problem


def test_the_command_reports_it(
    learner: Learner, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verify(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["continual", "verify", *words, "--home", str(folder / "home")])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    assert verify("--device", "cpu")[0] == 0
    change(learner, "mood@1", **other_values(learner))
    code, out, err = verify("--json", "--device", "cpu")
    assert (code, "mood@1: it answers" in out, "mood@1" in err) == (1, True, False)
    assert verify("--quick")[0] == 0


def test_a_command_that_stumbles_over_rows_names_their_damage(
    learner: Learner, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with learner.registry.unit_of_work() as unit:
        unit.session.execute(update(Task).where(Task.name == "mood").values(metric="f1"))
    monkeypatch.setattr("sys.argv", ["continual", "report", "--home", str(folder / "home")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "damaged: mood@1: no oracle score on the test split" in capsys.readouterr().err


def test_a_home_is_dumped_and_restored(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def db(*words: str, home: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["continual", "db", *words, "--json", "--home", str(folder / home)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    file = str(folder / "archive.zip")
    code, out, _ = db("dump", file, home="home")
    (row,) = json.loads(out)
    assert (code, row["tasks"], row["deltas"], row["streams"]) == (0, 2, 2, 1)
    code, _, err = db("dump", file, home="home")
    assert (code, "is there already" in err) == (2, True)
    assert db("restore", file, home="other")[:2] == (0, out)
    code, _, err = db("restore", file, home="other")
    assert (code, "not empty" in err) == (2, True)
    with open_home(folder / "backbone", folder / "other") as restored:
        assert verification(restored) == VerificationReport([], [])
        assert restored.predict(["awful dull"], task="mood")[0].label == "bad"


def test_only_champions_are_replayed(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed: list[str] = []

    def counted(backbone: Any, delta: Any, before: bytes) -> ProbeDifference:
        replayed.append(delta.digest)
        return ProbeDifference(0.0, 0.0)

    monkeypatch.setattr("continual.learning.verify.probe_difference", counted)
    change(learner, "mood@1", status="archived")
    assert verification(learner).problems == []
    assert replayed == [learner.registry.delta("animals@1").digest]


def test_a_deltas_note_says_what_its_head_reads_or_why_that_is_unknown(learner: Learner) -> None:
    assert "the mean of the tokens' states behind all layers" in delta_markdown(learner.registry, "mood@1")
    Path(learner.registry.blobs.path(digest_of(learner.registry, "mood@1"))).write_bytes(b"nothing")
    note = delta_markdown(learner.registry, "mood@1")
    assert "unknown: blob" in note
    assert "is damaged" in note
