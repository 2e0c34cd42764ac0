"""Reports in Python: documents that are also data frames, tables of a paper, figures and HTML for notebooks."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from continual.escaping import escape_control_characters
from continual.reports.comparison import MEASURE_PATHS
from continual.reports.report import MEASURES, Document, Matrix
from tasks.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame, Index

Mode = Literal["oracle", "routed"]
MODES: tuple[Mode, ...] = get_args(Mode)


class Report(dict[str, Any], ABC):
    """The JSON of a report, with the views of it that notebooks and papers use.

    Attributes:
        paper_columns: Columns of `to_frame` that `to_latex` takes by default, and their headings.
    """

    paper_columns: ClassVar[Mapping[str, str]]

    @property
    def document(self) -> Document:
        """The report as a plain dict, the JSON that the command line prints."""
        return dict(self)

    @abstractmethod
    def to_frame(self) -> DataFrame:
        """Return the main table as a pandas DataFrame."""

    def to_csv(self, path: Path | str) -> None:
        """Write `to_frame()` as a CSV file; lists and mappings become JSON.

        Args:
            path: The file to write.

        Raises:
            InputError: The file cannot be written.
        """
        table = self.to_frame().map(lambda cell: json.dumps(cell) if isinstance(cell, list | dict) else cell)
        try:
            table.to_csv(path)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error}. Give another place.") from error

    def to_latex(
        self, columns: Sequence[str] | None = None, *, caption: str | None = None, label: str | None = None
    ) -> str:
        r"""Return a LaTeX table of the main table, which needs `\usepackage{booktabs}`.

        Scores have three decimals, shares are percentages, and what was not measured is a dash.

        Args:
            columns: Columns of `to_frame()`; None takes `paper_columns`.
            caption: The table's caption, as LaTeX.
            label: The table's label.

        Raises:
            InputError: There is no such column.
        """
        frame = self.to_frame()
        chosen = list(self.paper_columns if columns is None else columns)
        if unknown := [name for name in chosen if name not in frame.columns] if len(frame) else []:
            raise InputError(f"the report has no column {unknown[0]!r}; allowed: {', '.join(frame.columns)}")
        table = frame.reindex(columns=chosen).reset_index().map(_escape_controls)
        headings = {name: self.paper_columns.get(name, name.replace("_", " ")) for name in chosen}
        formats = {headings[name]: _FORMATS[name] for name in chosen if name in _FORMATS}
        latex: str = table.rename(columns=headings).to_latex(
            index=False, escape=True, na_rep="--", float_format="%.3f", formatters=formats, caption=caption, label=label
        )
        return latex

    @abstractmethod
    def _repr_html_(self) -> str:
        """Return the report as HTML, as Jupyter shows it."""


class StreamReport(Report):
    """The report of a stream: `report["oracle"]["acc"]` and all other fields of `continual report --json`.

    >>> report = learner.report("helpdesk")                                              # doctest: +SKIP
    >>> report.to_frame().loc["billing", "score"], report.measures().loc["acc", "routed"]  # doctest: +SKIP
    (1.0, 0.952)
    """

    paper_columns: ClassVar[Mapping[str, str]] = {
        "method": "method",
        "parameters": "parameters",
        "share": "share",
        "final_oracle": "oracle",
        "final_routed": "routed",
    }

    def to_frame(self) -> DataFrame:
        """Return a row for each task: the fields of `per_task`, with the scores after the last task.

        Returns:
            A DataFrame with the tasks as its index. `final_oracle` and `final_routed` are the last rows of the score
            matrices, with the task known and chosen by the router.
        """
        import pandas

        last = zip(*((self[mode]["matrix"] or [[]])[-1] for mode in MODES), strict=True)
        rows = [
            task | {"final_oracle": oracle, "final_routed": routed}
            for task, (oracle, routed) in zip(self["per_task"], last, strict=True)
        ]
        return pandas.DataFrame(rows, index=_index(self["tasks"], "task")).drop(columns="task", errors="ignore")

    def measures(self) -> DataFrame:
        """Return the measures of continual learning: a row for each, with columns `oracle` and `routed`."""
        import pandas

        values = {mode: [self[mode].get(name) for name in MEASURES] for mode in MODES}
        return pandas.DataFrame(values, index=_index(MEASURES, "measure"), dtype="float64")

    def matrix(self, mode: Mode = "oracle") -> DataFrame:
        """Return the scores R[t, i] on each task (a column) after learning each task (a row).

        Args:
            mode: `oracle`, with the task known, or `routed`, with the task chosen by the router.

        Raises:
            InputError: There is no such mode.
        """
        return _matrix_frame(_part(self, mode)["matrix"], self["tasks"])

    def plot(self, mode: Mode = "oracle") -> Figure:
        """Draw `matrix(mode)` as a heat map.

        Args:
            mode: As for `matrix`.

        Raises:
            InputError: There is no such mode.
        """
        from continual.reports.plots import heatmap

        return heatmap(_part(self, mode)["matrix"], self["tasks"], title=f"{self['stream']}, {mode}")

    def _repr_html_(self) -> str:
        from continual.reports.html.notebook import stream_fragment

        return stream_fragment(self)


class ComparisonReport(Report):
    """The comparison of strategies on a stream, with all fields of `continual compare --json`."""

    paper_columns: ClassVar[Mapping[str, str]] = {
        f"{mode}_{name}": heading for heading, (mode, name) in MEASURE_PATHS.items()
    }

    def to_frame(self) -> DataFrame:
        """Return a row for each strategy, with its measures and costs.

        Returns:
            A DataFrame with the strategies as its index. Measures are named by mode, such as `oracle_acc` and
            `routed_acc`; `parameters` and `bytes` are per task, `seconds` of all tasks.
        """
        import pandas

        rows = [
            {"finished": strategy["finished"]}
            | {f"{mode}_{name}": value for mode in MODES for name, value in strategy[mode].items() if name != "matrix"}
            | {name: strategy[name] for name in ("parameters", "bytes", "seconds")}
            for strategy in self["strategies"]
        ]
        return pandas.DataFrame(rows, index=_index(self._names(), "strategy"))

    def matrix(self, strategy: str, mode: Mode = "oracle") -> DataFrame:
        """Return a strategy's scores R[t, i] on each task (a column) after learning each task (a row).

        Args:
            strategy: The name of the strategy.
            mode: `oracle` or `routed`.

        Raises:
            InputError: There is no such strategy or mode.
        """
        if strategy not in self._names():
            raise InputError(f"strategy {strategy!r} was not compared; allowed: {', '.join(self._names())}")
        document = self["strategies"][self._names().index(strategy)]
        return _matrix_frame(_part(document, mode)["matrix"], document["tasks"])

    def plot(self) -> Figure:
        """Draw the mean score of each strategy after each task, and its final score on each task."""
        from continual.reports.plots import comparison_figure

        return comparison_figure(self)

    def _names(self) -> list[str]:
        return [strategy["strategy"] for strategy in self["strategies"]]

    def _repr_html_(self) -> str:
        from continual.reports.html.notebook import comparison_fragment

        return comparison_fragment(self)


_FORMATS = {
    "share": lambda share: f"{100 * share:.2f}\\,\\%",
    "parameters": lambda count: f"{count:,.0f}",
    "bytes": lambda count: f"{count:,.0f}",
    "seconds": lambda seconds: f"{seconds:,.1f}",
}


def _part(document: Document, mode: str) -> Document:
    """Return the measures and the matrix of a mode."""
    if mode not in MODES:
        raise InputError(f"there is no mode {mode!r}; allowed: {', '.join(MODES)}")
    part: Document = document[mode]
    return part


def _matrix_frame(matrix: Matrix, tasks: Sequence[str]) -> DataFrame:
    import pandas

    rows, columns = _index(tasks, "after learning"), _index(tasks, "scored on")
    return pandas.DataFrame(matrix, index=rows, columns=columns, dtype="float64")


def _index(names: Sequence[str] | Mapping[str, str], name: str) -> Index:
    import pandas

    return pandas.Index(list(names), name=name)


def _escape_controls(cell: Any) -> Any:
    return escape_control_characters(cell) if isinstance(cell, str) else cell
