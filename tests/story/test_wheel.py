"""The wheel: the three packages with their data files and migrations, and no tests."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.helpers.paths import ROOT

PARTS = ("continual", "registry", "tasks", "pyproject.toml", "README.md")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for part in PARTS:
        path = ROOT / part
        (shutil.copytree if path.is_dir() else shutil.copy)(path, source / part)
    words = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source))
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=300)
    (wheel,) = wheels.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_every_imported_module_is_in_the_wheel(names: set[str]) -> None:
    for package in ("continual", "registry", "tasks"):
        modules = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert modules <= names
        assert f"{package}/py.typed" in names
    assert "registry/schema/migrations/script.py.mako" in names
    for folder in ("continual/reports/html/templates", "continual/serve/web"):
        files = {str(path.relative_to(ROOT)) for path in (ROOT / folder).iterdir()}
        assert files
        assert files <= names


def test_nothing_else_is_in_the_wheel(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"continual", "registry", "tasks"}
    parts = {part for name in names for part in name.split("/")}
    assert not [part for part in parts if part.startswith(("test", "conftest"))]
