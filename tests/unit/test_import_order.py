"""Import order of the packages: each imports only packages to the left of it, without cycles."""

import ast
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

ORDER = (
    "tasks < registry < errors, escaping, file_metadata, settings, callbacks < serialization, metrics, cluster, "
    "reports < backbones < deltas < features, generation < kinds < training, transfer, routing < inference < "
    "learning < streams, exchange, serve < experiments < tracking < learner < cli"
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
UNIX_MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
UNIX_FUNCTIONS = ("fork", "getpgid", "getuid", "geteuid", "killpg", "mkfifo", "sched_getaffinity", "setpriority")


def imports(file: Path) -> Iterator[str]:
    """Yield every absolute module or `module.name` that a file imports, wherever in it."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(module: str) -> str:
    """Return a module's package: `deltas` of `continual.deltas.edit`, `registry` of `registry.records`."""
    first, *rest = module.split(".")
    return rest[0] if first == "continual" and rest else first


def module_of(name: str) -> str | None:
    """Return the project's module that an import names or takes a member of."""
    return name if name in MODULES else (parent if (parent := name.rpartition(".")[0]) in MODULES else None)


def disallowed_imports(file: Path) -> Iterator[str]:
    """Yield what a file imports that does not stand left of its package, with the reason."""
    package = package_of(".".join(file.with_suffix("").parts))
    for name in imports(file):
        if module_of(name) and package_of(name) != package and RANK[package_of(name)] >= RANK[package]:
            yield f"{file} imports {name}, which does not stand left of {package}"
        if name.split(".")[0] in FORBIDDEN.get(package, set()):
            yield f"{file} imports {name}"
        if name.startswith("mlflow") and RANK[package] < RANK["tracking"]:
            yield f"{file} imports MLflow"


def test_a_package_imports_only_packages_to_the_left() -> None:
    checked = [file for file in FILES if file != Path("continual/__init__.py")]
    assert [line for file in checked for line in disallowed_imports(file)] == []


def test_there_are_no_import_cycles() -> None:
    graph = {
        module: {imported for name in imports(file) if (imported := module_of(name)) and imported != module}
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


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (
            "continual.cli, continual.cli.tables, continual.tracking, continual.reports.html",
            ("torch", "transformers", "datasets", "sklearn", "scipy", "pandas", "mlflow"),
        ),
        ("continual.learner", ("matplotlib", "datasets", "mlflow", "ray", "fastapi", "sklearn", "pandas", "alembic")),
    ],
)
def test_what_is_not_needed_yet_is_not_imported(modules: str, heavy: Sequence[str]) -> None:
    """Such imports take seconds: listing tasks must not need torch, nor an answer matplotlib."""
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "[]"


def mentions_unix(file: Path) -> bool:
    """Return whether a file mentions a module that only Unix has, or calls one of `os`."""
    source = (ROOT / file).read_text(encoding="utf-8")
    return bool({*imports(file)} & {*UNIX_MODULES}) or any(f"os.{name}" in source for name in UNIX_FUNCTIONS)


@pytest.mark.parametrize("file", [file for file in FILES if mentions_unix(file)], ids=str)
def test_modules_are_imported_where_unix_is_not(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in UNIX_MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    for name in UNIX_FUNCTIONS:
        monkeypatch.delattr(os, name, raising=False)
    names = runpy.run_path(str(ROOT / file))
    if limit := names.get("connection_limit"):
        assert limit() == names["MAX_CONNECTIONS"], "the limit of descriptors is unknown"


@pytest.mark.parametrize("name", ["tasks", "registry"])
def test_a_file_that_hides_a_package_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("")
    done = subprocess.run([sys.executable, "-c", "import continual"], cwd=tmp_path, capture_output=True, text=True)
    assert f"ImportError: {tmp_path / name}.py hides the package '{name}'" in done.stderr
