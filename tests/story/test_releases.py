"""Homes of earlier releases: refused until upgraded, and then with the same answers."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from continual.learning.verify import verify_home
from registry import Registry, dump_registry, find_damage, restore_registry, upgrade
from registry.errors import SchemaError
from tests.helpers.claims import claim_position
from tests.helpers.paths import FIXTURES, ROOT


@pytest.fixture(params=sorted(path.name for path in FIXTURES.glob("home-*.tar.gz")))
def release(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a release, with its backbone and its answers."""
    with tarfile.open(FIXTURES / request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)  # its backbone is registered by a relative name
    return tmp_path


def says_what_it_said(url: str, blobs: str, folder: Path) -> None:
    """Compare a home's answers with the stored ones, in sums of an order that every x86 processor has.

    The head's large weights would carry another order into the fourth digit of a score.
    """
    stored = json.loads((folder / "answers.json").read_text())
    routed, named = (
        [answer["text"] for answer in stored if answer["routed"] is is_routed] for is_routed in (True, False)
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.processes.stored_answers", url, blobs],
        input=json.dumps([[routed, None], [named, "place"]]),
        env=os.environ | {"MKL_CBWR": "COMPATIBLE", "PYTHONPATH": str(ROOT)},
        cwd=folder,  # its backbone is registered by a relative name
        capture_output=True,
        text=True,
        check=True,
    )
    for before, answer in zip(stored, json.loads(done.stdout), strict=True):
        assert (answer.pop("possible"), answer.pop("error")) == ([], None)
        # The router of a later release has its own confidence.
        assert (answer.pop("confidence") is None) == (before.pop("confidence") is None)
        assert answer.pop("score") == pytest.approx(before.pop("score"), abs=1e-4)
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
        says_what_it_said(url, blobs, release)
        check_claimable(registry)


def test_an_upgraded_home_moves_to_postgresql(release: Path, postgres_url: str) -> None:
    upgrade(f"sqlite:///{release}/home/registry.db")
    with Registry.open(f"sqlite:///{release}/home/registry.db", f"{release}/home/blobs") as registry:
        dump_registry(registry, release / "archive.zip")
    restore_registry(release / "archive.zip", postgres_url, f"{release}/other")
    with Registry.open(postgres_url, f"{release}/other") as registry:
        is_sound(registry)
        says_what_it_said(postgres_url, f"{release}/other", release)
        check_claimable(registry)
