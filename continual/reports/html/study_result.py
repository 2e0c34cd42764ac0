"""The result of a study: tables, metrics and the sections of its page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from continual.reports.html import Section, Table


@dataclass(frozen=True)
class Result:
    """What a study came to: sections of text, tables and figures, and the few numbers that sum it up, by name."""

    sections: tuple[Section, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def tables(self) -> dict[str, Table]:
        return {section.title: section.table for section in self.sections if section.table}

    @property
    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """The tables as JSON."""
        return {
            title: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
            for title, table in self.tables.items()
        }

    @property
    def figures(self) -> dict[str, Figure]:
        return {section.title: section.figure for section in self.sections if section.figure}
