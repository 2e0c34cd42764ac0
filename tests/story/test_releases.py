"""Homes of earlier releases: refused until upgraded, and then with the same answers."""

import json
import tarfile
from pathlib import Path

import pytest

from continual import Learner
from continual.learning.verify import verify_home
from registry import Registry, dump_registry, find_damage, restore_registry, upgrade
from registry.errors import SchemaError
from tests.helpers.claims import claim_position
from tests.helpers.paths import FIXTURES


@pytest.fixture(params=sorted(path.name for path in FIXTURES.glob("home-*.tar.gz")))
def release(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a release, with its backbone and its answers."""
    with tarfile.open(FIXTURES / request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)  # its backbone is registered by a relative name
    return tmp_path


def says_what_it_said(registry: Registry, folder: Path) -> None:
    answers = json.loads((folder / "answers.json").read_text())
    routed, named = ([answer for answer in answers if answer["routed"] is is_routed] for is_routed in (True, False))
    learner = Learner.open("backbone", registry, device="cpu", dtype="float32")
    now = [
        *learner.predict([answer["text"] for answer in routed]),
        *learner.predict([answer["text"] for answer in named], task="place"),
    ]
    for before, answer in zip(answers, (answer.to_json() for answer in now), strict=True):
        assert (answer.pop("possible"), answer.pop("error")) == ((), None)
        # The router of a later release has its own confidence.
        assert (answer.pop("confidence") is None) == (before.pop("confidence") is None)
        # Sums in another order, as other processors have them, move these scores by up to 1.5e-4: the head's weights
        # are large.
        assert answer.pop("score") == pytest.approx(before.pop("score"), abs=5e-4)
        assert answer == before


def is_sound(registry: Registry) -> None:
    report = verify_home(registry, device="cpu")
    assert report.problems == []
    expected = ("has held food since before its lease ended", "2 champions were registered by a release that kept no")
    assert all(any(part in note for note in report.notes) for part in expected)
    assert [p.state for p in registry.stream("core").positions] == ["learned", "failed", "learned", "held", "waiting"]
    (edge,) = registry.lineage("place@1")
    assert (edge["parent"], edge["kind"]) == ("animals@1", "warm_start")
    assert [row["status"] for row in registry.deltas("animals")] == ["archived", "champion"]
    assert "learning_rate" in str(registry.stream("core").positions[1].error)


def check_claimable(registry: Registry) -> None:
    """Check that the held, failed and waiting positions can be claimed."""
    assert all(claim_position(registry, "core", number=number, holder="far:1:2") for number in (1, 3, 4))
    assert find_damage(registry) == []


def test_an_upgraded_home_has_the_same_answers(release: Path) -> None:
    url, blobs = f"sqlite:///{release}/home/registry.db", f"{release}/home/blobs"
    with pytest.raises(SchemaError, match=r"older than this code's .* Run `continual db upgrade`"):
        Registry.open(url, blobs)
    upgrade(url)
    with Registry.open(url, blobs) as registry:
        is_sound(registry)
        says_what_it_said(registry, release)
        check_claimable(registry)


def test_an_upgraded_home_moves_to_postgresql(release: Path, postgres_url: str) -> None:
    upgrade(f"sqlite:///{release}/home/registry.db")
    with Registry.open(f"sqlite:///{release}/home/registry.db", f"{release}/home/blobs") as registry:
        dump_registry(registry, release / "archive.zip")
    restore_registry(release / "archive.zip", postgres_url, f"{release}/other")
    with Registry.open(postgres_url, f"{release}/other") as registry:
        is_sound(registry)
        says_what_it_said(registry, release)
        check_claimable(registry)
