"""The notebook of the tutorial: its cells run in order, as Jupyter runs and shows them."""

import ast
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import DOCS
from tests.helpers.tiny_tasks import tiny_backbone

NOTEBOOK = json.loads((DOCS / "tutorial" / "notebook.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
PLACES = ("CONTINUAL_REGISTRY_URL", "CONTINUAL_BLOBS_URL", "MLFLOW_TRACKING_URI")


def run_cell(source: str, namespace: dict[str, Any]) -> Any:
    """Run a cell; return the value of its last expression, if it ends with one."""
    *statements, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        statements.append(last)
    exec(compile(ast.Module(statements, []), "<cell>", "exec"), namespace)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
    return None


def shown(value: Any) -> str:
    html: str | None = value._repr_html_() if hasattr(value, "_repr_html_") else None
    return html or repr(value)


def test_it_is_stored_without_outputs() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) >= (4, 5)
    assert {cell["cell_type"] for cell in NOTEBOOK["cells"]} == {"markdown", "code"}
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in NOTEBOOK["cells"])


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    # A tiny backbone and no MLflow, which would take a minute and are tested by the README.
    backbone = tiny_backbone("bert", max_position_embeddings=128)
    monkeypatch.setattr("continual.learner.load_backbone", lambda *_, **__: backbone)
    monkeypatch.setattr("continual.learner.background_sender", lambda *_: nullcontext())
    shutil.copytree(DOCS / "examples", tmp_path / "examples")
    (tmp_path / "tutorial").mkdir()
    monkeypatch.chdir(tmp_path / "tutorial")
    namespace: dict[str, Any] = {}
    outputs = [shown(run_cell(source, namespace)) for source in CODE]
    printed = capsys.readouterr().out
    assert "billing: test: not given; 7 of the 36 train rows were held out for it (seed 0)" in printed
    assert "\\toprule" in printed
    for expected in ("billing@1", "2 predictions", "Stream helpdesk", "'returns@1'", "'returns@2'", "champion"):
        assert any(expected in output for output in outputs), expected
    assert [path.name for path in Path().iterdir()] == ["notebook-home"]
