"""The result of a study."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from continual.reports.html import Section, Table


@dataclass(frozen=True)
class Result:
    """The result of a study.

    Attributes:
        sections: Sections of its page, with text, tables and figures.
        metrics: The few numbers that sum it up, by name.
    """

    sections: tuple[Section, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def tables(self) -> dict[str, Table]:
        """Tables by the titles of their sections."""
        return {section.title: section.table for section in self.sections if section.table}

    @property
    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """Tables as JSON: a list of rows by the title of the section."""
        return {
            title: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
            for title, table in self.tables.items()
        }

    @property
    def figures(self) -> dict[str, Figure]:
        """Figures by the titles of their sections."""
        return {section.title: section.figure for section in self.sections if section.figure}
