"""Plugins: methods, metrics and routers of another package, found by its entry points."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from continual.routing import ROUTERS
from tests.helpers.paths import ROOT

PAGE = (ROOT / "docs" / "explanation" / "unified-view.md").read_text(encoding="utf-8")
# The method that the documentation builds, without the code that uses it there.
METHOD = re.findall(r"^```python\n(.*?)\n\n\nfrom", PAGE, flags=re.MULTILINE | re.DOTALL)[0]
EXTEND = (ROOT / "docs" / "how-to" / "extend.md").read_text(encoding="utf-8")
METRICS = "\n".join(re.findall(r"^```python\n(import numpy.*?)\n```", EXTEND, flags=re.MULTILINE | re.DOTALL))
METRIC = f"""
{METRICS}

def by_weather(truth, answers, *, weather):
    return lambda rows: 0.0

NOT_A_METHOD = 3
"""
ROUTER = """
from dataclasses import dataclass

import torch

from continual.routing.moments import max_over_classes

@dataclass(frozen=True)
class NearestMean:
    means: torch.Tensor
    task_of_class: torch.Tensor

    def scores(self, features):
        return max_over_classes(-torch.cdist(features, self.means).square(), self.task_of_class)

    def familiarity(self, features):
        return self.scores(features).amax(dim=1)

def nearest_mean(totals, rows):
    return NearestMean(totals.means, totals.task_of_class)
"""


def package(folder: Path, name: str, source: str, entries: str) -> None:
    """Write a package as an installer does: a module and its metadata."""
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(entries, encoding="utf-8")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    entries = """
    [continual.methods]
    ssf = theirs:ScaleAndShift
    number = theirs:NOT_A_METHOD
    absent = theirs:NoSuchThing
    bitfit = theirs:ScaleAndShift

    [continual.metrics.classification]
    balanced = theirs:balanced
    log_likelihood = theirs:log_likelihood
    by_weather = theirs:by_weather

    [continual.routers]
    nearest_mean = theirs:nearest_mean
    """
    package(tmp_path, "theirs", METHOD + METRIC + ROUTER, re.sub(r"^ +", "", entries, flags=re.MULTILINE))
    return tmp_path


def run(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(installed), str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


CODE = """
import numpy as np

from continual.deltas import METHODS, method_settings
from continual.errors import MethodError
from continual.metrics import metric_score
from tasks import Method, TaskSpec
from tasks.errors import InputError

print(list(METHODS)[-4:], len(METHODS) == len(set(METHODS)), "theirs" in __import__("sys").modules)
print(method_settings(Method(name="ssf")).identity, METHODS["lora"].__name__)
for name in ("number", "absent", "bitfit", "sff"):
    try:
        method_settings(Method(name=name))
    except MethodError as error:
        print(error)
print(metric_score("balanced", ["a", "b"], ["a", "a"]))
inputs = {"labels": ("a", "b"), "probabilities": np.array([[1.0, 0.0], [1 - np.e**-2, np.e**-2]])}
print(round(metric_score("log_likelihood", ["a", "b"], ["a", "a"], inputs=inputs), 6))
try:
    metric_score("by_weather", ["a", "b"], ["a", "a"])
except InputError as error:
    print(error)
spec = {"name": "t", "source": {"path": "ag_news"}, "text": "x", "label": "y"}
print(TaskSpec.model_validate({**spec, "metric": "balanced"}).metric)
"""


def test_plugins_load_on_demand_and_faults_are_reported(installed: Path) -> None:
    completed = run(installed, "-c", CODE)
    assert completed.returncode == 0, completed.stderr
    listed, used, number, absent, taken, unknown, score, declared, refused, metric = completed.stdout.splitlines()
    assert listed == "['probe', 'absent', 'number', 'ssf'] True False"
    assert used == "exact LoRA"
    assert re.search(r"'number' of continual\.methods, from theirs .* is 3, and should be a subclass", number)
    assert re.search(r"'absent' .* cannot be imported: AttributeError.*NoSuchThing", absent)
    assert re.search(r"'bitfit' .* more than once: built in, theirs \(theirs:ScaleAndShift\); uninstall", taken)
    assert "did you mean 'ssf'" in unknown
    assert (score, declared, metric) == ("0.5", "-1.0", "balanced")
    assert "no keyword-only parameters but labels, probabilities, sources" in refused


def test_a_plugins_method_and_router_pass_the_contract_suites(installed: Path) -> None:
    files = ("tests/contract/test_methods.py", "tests/contract/test_routers.py")
    words = ("-m", "pytest", *files, "-k", "(ssf and bert) or nearest_mean", "-p", "no:cacheprovider", "-rA")
    completed = run(installed, *words)
    assert completed.returncode == 0, completed.stdout[-3000:]
    for file, name in zip(files, ("bert-ssf", "nearest_mean"), strict=True):
        assert re.search(rf"PASSED {file}.*{name}", completed.stdout)
    assert "nearest_mean" not in ROUTERS
