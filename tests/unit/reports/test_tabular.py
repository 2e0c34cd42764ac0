"""Reports in Python: frames, CSV, LaTeX, figures and HTML have the values of the JSON."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from continual.escaping import escape_control_characters
from continual.inference.predictions import Predictions
from continual.inference.predictor import Prediction
from continual.reports.html.notebook import MAX_CHARS, MAX_ROWS, answers_fragment, learner_fragment
from continual.reports.report import MEASURES, stream_report
from continual.reports.tabular import MODES, ComparisonReport, StreamReport
from registry import purge_task
from tasks.errors import InputError
from tests.helpers.pages import HOSTILE, Parsed, fill_stream, leaves

TASKS = ("sst2", "trec", "mnli")


def report(folder: Path, *tasks: str, **options: Any) -> StreamReport:
    with fill_stream(folder, tasks, **options) as registry:
        return StreamReport(stream_report(registry, "core"))


def strategy(name: str, tasks: tuple[str, ...], last: float) -> dict[str, Any]:
    matrix = [[0.9, None], [0.7, last]]
    measures = {"acc": (0.7 + last) / 2, "bwt": -0.2, "forgetting": 0.2, "fwt": None, "la": 0.8, "aia": 0.8}
    return {
        "strategy": name,
        "settings": {},
        "finished": True,
        "tasks": list(tasks),
        "oracle": {"matrix": matrix, **measures, "intransigence": None},
        "routed": {"matrix": matrix, **measures, "routing_accuracy": 0.5},
        "parameters": 10.5,
        "bytes": 20.0,
        "seconds": 1.5,
    }


def comparison(*names: str, tasks: tuple[str, ...] = ("sst2", "trec")) -> ComparisonReport:
    strategies = [strategy(name, tasks, 0.5 + 0.1 * number) for number, name in enumerate(names)]
    document = {"stream": "core", "backbone": "tiny", "tasks": list(tasks), "strategies": strategies}
    return ComparisonReport(document | {"purged": [], "warnings": [], "failed": []})


def same(value: Any, expected: Any) -> bool:
    """Tell whether a cell is a JSON value: NaN for null in a column of numbers."""
    is_missing = isinstance(value, float) and math.isnan(value)
    return value == expected or (is_missing and expected is None)


def test_a_report_stays_the_json_that_scripts_read(tmp_path: Path) -> None:
    with fill_stream(tmp_path, TASKS) as registry:
        document = stream_report(registry, "core")
    view = StreamReport(document)
    assert view == document
    assert type(view.document) is dict
    assert json.dumps(view) == json.dumps(view.document) == json.dumps(document)
    assert view["oracle"]["acc"] == document["oracle"]["acc"]


def test_the_frames_have_the_values_of_the_json(tmp_path: Path) -> None:
    view = report(tmp_path, *TASKS)
    frame = view.to_frame()
    assert list(frame.index) == list(TASKS)
    assert list(frame.columns) == [
        *(key for key in view["per_task"][0] if key != "task"),
        "final_oracle",
        "final_routed",
    ]
    for i, task in enumerate(view["per_task"]):
        assert all(same(frame.loc[task["task"], key], value) for key, value in task.items() if key != "task")
        for mode in MODES:
            assert frame.loc[task["task"], f"final_{mode}"] == view[mode]["matrix"][-1][i]
    for mode in MODES:
        matrix, measures = view.matrix(mode), view.measures()[mode]
        assert list(measures.index) == list(MEASURES)
        assert all(same(measures[name], view[mode].get(name)) for name in MEASURES)
        for t, after in enumerate(TASKS):
            assert all(same(matrix.loc[after, on], view[mode]["matrix"][t][i]) for i, on in enumerate(TASKS))


def test_the_frame_of_a_comparison_has_the_values_of_the_json() -> None:
    view = comparison("isolated", "joint")
    frame = view.to_frame()
    for document in view["strategies"]:
        row = frame.loc[document["strategy"]]
        for mode in MODES:
            values = {name: value for name, value in document[mode].items() if name != "matrix"}
            assert all(same(row[f"{mode}_{name}"], value) for name, value in values.items())
            matrix = view.matrix(document["strategy"], mode)
            assert matrix.loc["trec", "trec"] == document[mode]["matrix"][1][1]
        assert [row[name] for name in ("finished", "parameters", "bytes", "seconds")] == [True, 10.5, 20.0, 1.5]


def test_csv_is_read_back_with_its_values(tmp_path: Path) -> None:
    view = report(tmp_path / "home", *TASKS)
    view.to_csv(tmp_path / "report.csv")
    read, frame = pd.read_csv(tmp_path / "report.csv", index_col="task"), view.to_frame()
    for name in ("score", "parameters", "share", "seconds", "final_oracle", "final_routed", "delta"):
        assert list(read[name]) == list(frame[name])
    assert [json.loads(cell) for cell in read["parents"]] == [task["parents"] for task in view["per_task"]]
    with pytest.raises(InputError, match=r"none/report\.csv cannot be written"):
        view.to_csv(tmp_path / "none" / "report.csv")


def test_latex_is_a_table_of_booktabs(tmp_path: Path) -> None:
    latex = report(tmp_path, "sst_2", "R&D 100%").to_latex(caption="Tasks", label="tab:tasks")
    lines = [line.strip() for line in latex.splitlines()]
    assert [line for line in lines if line.endswith("rule")] == ["\\toprule", "\\midrule", "\\bottomrule"]
    assert {"\\caption{Tasks}", "\\label{tab:tasks}", "task & method & parameters & share & oracle & routed \\\\"} <= {
        *lines
    }
    body = lines[lines.index("\\midrule") + 1 : lines.index("\\bottomrule")]
    assert [line.split(" & ")[0] for line in body] == ["sst\\_2", "R\\&D 100\\%"]
    assert [line.split(" & ")[-2:] for line in body] == [["0.900", "0.400 \\\\"], ["0.700", "0.400 \\\\"]]


def test_latex_takes_other_columns_and_strategies(tmp_path: Path) -> None:
    view = report(tmp_path, *TASKS)
    assert "sst2 & 0.900 & scratch \\\\" in view.to_latex(["score", "warm_start"])
    with pytest.raises(InputError, match="no column 'scor'; allowed: method, delta"):
        view.to_latex(["scor"])
    latex = comparison("isolated", "joint").to_latex()
    assert "strategy & ACC & BWT & forgets & FWT & LA & AIA & intr. & routed & router \\\\" in latex
    assert "joint & 0.650 & -0.200 & 0.200 & -- & 0.800 & 0.800 & -- & 0.650 & 0.500 \\\\" in latex


def test_figures_show_the_matrix(tmp_path: Path) -> None:
    view = report(tmp_path, *TASKS)
    for mode in MODES:
        figure = view.plot(mode)
        assert isinstance(figure, Figure)
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert texts == [f"{value:.2f}" for row in view[mode]["matrix"] for value in row if value is not None]
    assert len(comparison("isolated", "joint").plot().axes) == 2


def test_unknown_parts_are_refused(tmp_path: Path) -> None:
    view: Any = report(tmp_path, *TASKS)
    for method in (view.plot, view.matrix):
        with pytest.raises(InputError, match="no mode 'best'; allowed: oracle, routed"):
            method("best")
    with pytest.raises(InputError, match="strategy 'ewc' was not compared; allowed: isolated"):
        comparison("isolated").matrix("ewc")


def test_streams_without_tasks_and_with_purged_ones(tmp_path: Path) -> None:
    empty = report(tmp_path / "empty", unlearned=["sst2"])
    assert len(empty.to_frame()) == len(empty.matrix()) == 0
    assert "\\bottomrule" in empty.to_latex()
    assert "sst2 is not learned: LearnError: &lt;b&gt;the loss" in empty._repr_html_()
    with fill_stream(tmp_path / "purged", TASKS) as registry:
        purge_task(registry, "sst2")
        view = StreamReport(stream_report(registry, "core"))
    assert math.isnan(view.to_frame().loc["sst2", "score"])
    assert "sst2 & " in view.to_latex()
    assert {"sst2", "trec"} <= set(Parsed(view._repr_html_()).inside("bdi"))


def test_html_escapes_every_name(tmp_path: Path) -> None:
    plain = report(tmp_path / "plain", *(f"task{i}" for i in range(len(HOSTILE))), unlearned=["left"])
    hostile = report(tmp_path / "hostile", *HOSTILE, unlearned=["<i>left</i>"])
    names = [f"task{i}" for i in range(len(HOSTILE))]
    answers = [[{**_answer(name).to_json(), "error": name} for name in texts] for texts in (names, HOSTILE)]
    pages = [
        (plain._repr_html_(), hostile._repr_html_()),
        (comparison(*names)._repr_html_(), comparison(*HOSTILE)._repr_html_()),
        (answers_fragment(answers[0]), answers_fragment(answers[1])),
    ]
    for expected, html in pages:
        assert leaves(html) == []
        page = Parsed(html)
        assert page.tags == Parsed(expected).tags
        assert {escape_control_characters(name) for name in HOSTILE if len(name) <= MAX_CHARS} <= set(
            page.inside("bdi")
        )
    assert "<script>" not in learner_fragment("<script>", "<script>", [])


def _answer(text: str) -> Prediction:
    return Prediction(text, "mood", "good", 0.5, routed=True, confidence=0.9, abstained=False, delta="mood@1")


def test_predictions_are_a_list_a_frame_and_a_table() -> None:
    predictions = Predictions(_answer(f"text {i}") for i in range(MAX_ROWS + 1))
    assert isinstance(predictions, list)
    assert predictions.to_frame().to_dict("records") == [prediction.to_json() for prediction in predictions]
    html = predictions._repr_html_()
    assert f"Answers: the first {MAX_ROWS} of {MAX_ROWS + 1}" in html
    assert ("text 99" in html, "text 100" in html) == (True, False)
    assert "first · second" in Predictions([_answer("x" * 300), _pair()])._repr_html_()


def _pair() -> Prediction:
    return Prediction(("first", "second"), None, None, None, routed=True, confidence=None, abstained=True, delta=None)
