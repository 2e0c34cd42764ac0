"""Packages import only what stands left of them in one line, and no modules import each other in a circle."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

ORDER = (
    "tasks < registry < errors, escaping, settings, callbacks < serialization, metrics, cluster, reports < backbones < "
    "deltas < features < kinds < training, transfer, routing < inference < learning < streams, exchange, serve < "
    "experiments < tracking < learner < cli"
)
RANK = {name: rank for rank, names in enumerate(ORDER.split(" < ")) for name in names.split(", ")}
FILES = [
    file.relative_to(ROOT)
    for package in ("continual", "registry", "tasks")
    for file in sorted((ROOT / package).rglob("*.py"))
]
MODULES = {".".join(file.with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
FORBIDDEN = {
    "tasks": {"torch", "transformers", "sqlalchemy", "alembic", "mlflow"},
    "registry": {"torch", "transformers", "mlflow", "datasets"},
}


def imports(file: Path) -> Iterator[str]:
    """Yield every absolute module or `module.name` that a file imports, wherever in it."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(module: str) -> str:
    """`continual.deltas.edit.Edit` is of `deltas`, `registry.records.Score` of `registry`."""
    first, *rest = module.split(".")
    return rest[0] if first == "continual" and rest else first


def module_of(name: str) -> str | None:
    """The module of ours that an import names, or whose member it names."""
    return name if name in MODULES else (parent if (parent := name.rpartition(".")[0]) in MODULES else None)


@pytest.mark.parametrize("file", [file for file in FILES if file != Path("continual/__init__.py")], ids=str)
def test_a_package_imports_only_what_stands_left_of_it(file: Path) -> None:
    own = package_of(".".join(file.with_suffix("").parts))
    for name in imports(file):
        if module_of(name):
            allowed = package_of(name) == own or RANK[package_of(name)] < RANK[own]
            assert allowed, f"{file} imports {name}, which does not stand left of {own}"
        assert name.split(".")[0] not in FORBIDDEN.get(own, set()), f"{file} imports {name}"
        assert not name.startswith("mlflow") or RANK[own] >= RANK["tracking"], f"{file} imports MLflow"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        module: {found for name in imports(file) if (found := module_of(name)) and found != module}
        for module, file in MODULES.items()
        if module != "continual"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' → '.join(error.args[1])}")


def test_the_order_names_every_package_and_few_loose_modules() -> None:
    below = {file.relative_to("continual") for file in FILES if file.parts[0] == "continual"}
    loose = {file.stem for file in below if len(file.parts) == 1} - {"__init__"}
    assert loose | {file.parts[0] for file in below if len(file.parts) > 1} == RANK.keys() - {"tasks", "registry"}
    assert len(loose) <= 12
    assert len(ORDER.split(" < ")) <= 16


def test_what_asks_and_tells_starts_without_what_learns() -> None:
    """They take seconds to load: who lists tasks or tells MLflow need not wait for them."""
    heavy = ("torch", "transformers", "datasets", "sklearn", "scipy", "pandas", "mlflow")
    light = "continual.cli, continual.cli.tables, continual.tracking, continual.reports.html"
    code = f"import sys, {light}; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
