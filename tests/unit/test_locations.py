"""Locations: whatever characters the home's path has, everything lies under it."""

from pathlib import Path

import pytest

from continual.settings import resolve_locations
from registry import Registry, sqlite_file
from tests.helpers.registries import BACKBONE


@pytest.mark.parametrize("name", ["what?", "a?b=c&d", "100%41", "a#b", "a b+c", "me@work:5", "Jürgen", "[x]*", "a;b"])
def test_a_home_lies_where_its_path_says(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    places = resolve_locations(home, {})
    with Registry.open(places.registry, places.blobs) as registry:
        with registry.unit_of_work() as unit:
            unit.add_backbone(BACKBONE)
        digest = registry.blobs.put(b"delta")
        again = registry.urls()
    assert list(tmp_path.iterdir()) == [home]
    assert sqlite_file(places.registry) == home / "registry.db"
    assert sqlite_file(places.mlflow) == home / "mlflow.db"
    assert (home / "registry.db").stat().st_size > 0
    assert (home / "blobs" / digest[:2] / digest[2:]).read_bytes() == b"delta"
    with Registry.open(*again) as registry:
        assert [backbone.name for backbone in registry.backbones()] == [BACKBONE.name]
        assert [blob.name for blob in registry.blobs.iterate()] == [digest]
