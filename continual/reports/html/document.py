"""Render a page from sections of text, tables and figures, by Jinja2 templates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from continual.escaping import escape_control_characters
from continual.reports.html.figure import inline_svg

EMPTY_CELL = "–"


def _escape_controls(value: Any) -> Any:
    return escape_control_characters(value) if isinstance(value, str) and not isinstance(value, Markup) else value


TEMPLATES = Environment(
    loader=PackageLoader("continual.reports.html"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_escape_controls,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **variables: Any) -> Markup:
    """Render a template of this package to HTML that pages and other templates include unescaped."""
    return Markup(TEMPLATES.get_template(template).render(variables))


def format_cell(value: Any, spec: str | None = None) -> str:
    """Format a value as a cell shows it.

    >>> format_cell(0.5), format_cell(12345), format_cell(None), format_cell(0.5, ".0%")
    ('0.500', '12,345', '–', '50%')
    """
    if value is None:
        return EMPTY_CELL
    if not _is_number(value):
        return str(value)
    return format(value, spec or ("," if isinstance(value, Integral) else ".3f"))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class Table:
    """Rows under named columns; the first cell of a row names it.

    Columns of numbers are aligned right: floats with three decimals, integers in groups of three digits, None as an en
    dash.

    Attributes:
        columns: Names of the columns.
        rows: Rows of as many cells.
        formats: Other formats of numbers by column, such as {"share": ".2%"}.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    formats: Mapping[str, str] = field(default_factory=dict)

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column holds only numbers and None."""
        columns = range(len(self.columns))
        return tuple(all(row[i] is None or _is_number(row[i]) for row in self.rows) for i in columns)

    @property
    def texts(self) -> list[list[str]]:
        """Rows of formatted cells."""
        formats = [self.formats.get(column) for column in self.columns]
        return [[format_cell(cell, spec) for cell, spec in zip(row, formats, strict=True)] for row in self.rows]


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: Heading.
        text: Text, a paragraph per line.
        table: A table.
        figure: A figure.
        caption: Caption of the figure, also read by screen readers; of the table where there is no figure.
        html: HTML rendered by a template of this package, included unescaped.
    """

    title: str
    text: str = ""
    table: Table | None = None
    figure: Figure | None = None
    caption: str = ""
    html: Markup | None = None


def page(title: str, sections: Sequence[Section], *, summary: str = "") -> str:
    """Return a whole HTML document from its sections.

    It serves phones and wide screens, light and dark, print, keyboards and screen readers. All texts are escaped,
    control characters included.

    >>> "a &lt;b&gt;" in page("a <b>", [Section("Scores", table=Table(("task", "score"), (("mood", 0.5),)))])
    True
    """
    figures = [
        inline_svg(section.figure, label=section.caption or section.title, prefix=f"f{number}-")
        if section.figure
        else None
        for number, section in enumerate(sections)
    ]
    return str(render("page.html", title=title, summary=summary, sections=sections, figures=figures))
