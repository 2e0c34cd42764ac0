"""Every study, built in or of another package: trials are run once, resumed, and combined into tables."""

import json
import re
from pathlib import Path

import pytest

from continual.experiments.studies import STUDIES, TrialRunner, TrialStore, run_study, study_of
from tests.helpers.paths import DOCS
from tests.helpers.studies import SMALL, count_measured_trials, trial_runner, writer_backbone  # noqa: F401 (fixtures)


def test_every_study_has_its_section_and_its_paper() -> None:
    page = (DOCS / "reference" / "studies.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+)$", page, flags=re.MULTILINE) == list(STUDIES.built_in)
    assert all(f"continual study {name} " in page for name in STUDIES.built_in)
    for kind in STUDIES.values():
        assert len(kind.shows) < 90
        assert "arXiv:" in kind.paper


@pytest.mark.parametrize(("name", "trial_runner"), [(name, name) for name in STUDIES], indirect=["trial_runner"])
def test_a_study_resumes_where_it_stopped(
    name: str,
    trial_runner: TrialRunner,  # noqa: F811
    bert_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {**SMALL.get(name, {}), **({"backbones": [str(bert_folder)]} if name == "scale" else {})}
    study, file = study_of(name, settings), tmp_path / "ledger.jsonl"
    measured = count_measured_trials(study, monkeypatch)
    first = run_study(study, trial_runner, TrialStore(file))
    assert len(measured) == len(first.results) > 0
    assert len({result.trial.key for result in first.results}) == len(first.results)

    tables = json.loads(json.dumps(first.result.to_json, allow_nan=False))
    assert all(tables.values())
    assert first.result.figures
    assert all(axes.has_data() for figure in first.result.figures.values() for axes in figure.axes)
    assert all(isinstance(value, float) for value in first.result.metrics.values())

    measured.clear()
    assert run_study(study, trial_runner, TrialStore(file)).result.to_json == tables
    assert measured == []

    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines)[:-20])  # killed while it wrote its last line
    again = run_study(study, trial_runner, TrialStore(file))
    assert [trial.key for trial in measured] == [json.loads(lines[-1])["key"]]
    if name not in ("cost", "convergence"):  # whose numbers are times
        deterministic = [{k: v for k, v in result.outcome.items() if k != "seconds"} for result in first.results]
        assert [
            {k: v for k, v in result.outcome.items() if k != "seconds"} for result in again.results
        ] == deterministic
    measured.clear()
    run_study(study, trial_runner, TrialStore(file))
    assert measured == []
