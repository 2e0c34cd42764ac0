"""A page as sections of text, tables and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from continual.escaping import escape_control_characters
from continual.reports.html.figure import inline_svg

NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """Rows under named columns; the first cell of a row names it.

    Columns of numbers stand on the right: floats with three decimals, integers in groups of three digits, None as an
    en dash. formats: another format of a column's numbers, such as {"share": ".2%"}.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    formats: Mapping[str, str] = field(default_factory=dict)

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column holds numbers, or nothing."""
        columns = range(len(self.columns))
        return tuple(all(row[i] is None or _is_number(row[i]) for row in self.rows) for i in columns)

    @property
    def texts(self) -> list[list[str]]:
        """What each cell shows."""
        formats = [self.formats.get(column) for column in self.columns]
        return [[format_cell(cell, spec) for cell, spec in zip(row, formats, strict=True)] for row in self.rows]


@dataclass(frozen=True)
class Section:
    """A part of a page: text (a line is a paragraph), a table, a figure, and what a template of this package drew.

    caption: says what the figure shows, to those who cannot see it too; without a figure it is the table's.
    """

    title: str
    text: str = ""
    table: Table | None = None
    figure: Figure | None = None
    caption: str = ""
    html: Markup | None = None


def page(title: str, sections: Sequence[Section], *, summary: str = "") -> str:
    """The whole HTML document: readable on a phone, in light and dark, printed, by keyboard and read aloud.

    Every text is shown as it is: none is taken for HTML, and signs that would do something are escaped.

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


def format_cell(value: Any, spec: str | None = None) -> str:
    """A value as a cell shows it.

    >>> shown(0.5), shown(12345), shown(None), shown(0.5, ".0%")
    ('0.500', '12,345', '–', '50%')
    """
    if value is None:
        return NOTHING
    if not _is_number(value):
        return str(value)
    return format(value, spec or ("," if isinstance(value, Integral) else ".3f"))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _text(value: Any) -> Any:
    return escape_control_characters(value) if isinstance(value, str) and not isinstance(value, Markup) else value


TEMPLATES = Environment(
    loader=PackageLoader("continual.reports.html"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_text,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **given: Any) -> Markup:
    """What a template makes of what it is given, as HTML that others may include as it is."""
    return Markup(TEMPLATES.get_template(template).render(given))
