"""Every example in a docstring runs as it stands."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


def has_example(file: Path) -> bool:
    examples = re.findall(r"^\s*>>> .*", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return any("doctest: +SKIP" not in line for line in examples)


MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("continual", "registry", "tasks")
    for file in sorted((ROOT / package).rglob("*.py"))
    if has_example(file)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert attempted > 0
    assert failed == 0
