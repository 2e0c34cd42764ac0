"""Each part imports only what is below it, so that it can be read, tested and replaced without what is above."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = {
    2: "errors visible formats settings devices sites families backbone quantised fingerprint hub",
    3: "deltas",
    4: "similarity warmstart train evaluate forgetting routing features frozen signature head neighbours kinds metrics "
    "search course below optimiser lesson residents together stints reading",
    5: "learn checked described experts stored_router controller positions routed report predict audit estimate record "
    "replay exchange verify contest checkpoint watcher similar strategies moves moved migrate job claiming measuring "
    "engines cluster room shared arrivals comparison",
    6: "cli learner tracking plots page studies serve",
}
FLOOR = {f"continual.{module}": floor for floor, modules in FLOORS.items() for module in modules.split()}
FORBIDDEN = {
    "tasks": {"torch", "transformers", "sqlalchemy", "alembic", "mlflow", "registry", "continual"},
    "registry": {"torch", "transformers", "mlflow", "datasets", "continual"},
}
FILES = [
    file.relative_to(ROOT)
    for part in ("continual", "registry", "tasks")
    for file in sorted((ROOT / part).rglob("*.py"))
]


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it; relative ones in full."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = [*file.parent.parts][: len(file.parts) - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def part_of(module: str) -> str:
    """`continual.deltas.edit.Edit` is part of `continual.deltas`."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_module_imports_only_what_is_below_it(file: Path) -> None:
    package, own = file.parts[0], part_of(".".join(file.with_suffix("").parts))
    for module in imported(file):
        assert module.split(".")[0] not in FORBIDDEN.get(package, set()), f"{file} imports {module}"
        if own in FLOOR and part_of(module) in FLOOR:
            assert FLOOR[part_of(module)] <= FLOOR[own], f"{file} (floor {FLOOR[own]}) imports {module}"
        if own in FLOOR and module.startswith("mlflow"):
            assert FLOOR[own] == 6, f"{file} imports {module}: MLflow is told of what happened at the edges only"


def test_every_module_of_continual_has_a_floor() -> None:
    modules = {part_of(".".join(file.with_suffix("").parts)) for file in FILES if file.parts[0] == "continual"}
    assert modules - FLOOR.keys() <= {"continual.__init__", "continual.__main__"}


def test_what_asks_and_tells_starts_without_what_learns() -> None:
    """They take seconds to load: who lists tasks or tells MLflow need not wait for them."""
    heavy = ("torch", "transformers", "datasets", "sklearn", "scipy", "pandas", "mlflow")
    light = "continual.cli, continual.cli.show, continual.tracking, continual.page"
    code = f"import sys, {light}; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
