"""Tables at the width of the terminal that never break a word or a name.

A table whose longest words fit is printed as it is, with cells folded at spaces. A wider one goes on below, in blocks
of columns that each begin with the first column. Where a word does not fit beside the first column, every row becomes a
record: one line for each column, with its heading.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from continual.escaping import escape_control_characters

GAP = 2  # characters after each column but the last, and at the left edge
Cell = str | Text  # a plain string, or a text with a style


@dataclass(frozen=True)
class TextTable:
    """A table of plain texts; control characters in them are escaped.

    Attributes:
        columns: The headings.
        rows: The cells of each row.
        numeric: For each column, whether to align it to the right.
        caption: An explanation below the table.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: Sequence[bool]
    caption: str = ""

    def texts(self, column: int) -> list[str]:
        """Return the heading and the cells of a column as they are printed."""
        return [_text(cell).plain for cell in (self.columns[column], *(row[column] for row in self.rows))]


def print_table(console: Console, table: TextTable) -> None:
    """Print a table in one of the three layouts."""
    columns = range(len(table.columns))
    least = [max(_longest_word(text) for text in table.texts(column)) for column in columns]
    if blocks := _split_columns(least, console.width):
        for block in blocks:
            console.print(_draw(table, block, least, console.width))
    else:
        for row in table.rows:
            print_record(console, [(name, _text(cell).plain) for name, cell in zip(table.columns, row, strict=True)])
    if table.caption:
        print_text(console, table.caption, style="dim italic")


def print_text(console: Console, text: str, *, style: str = "") -> None:
    """Print a text folded at spaces; a word longer than the line is left to the terminal."""
    lines = "\n".join(_fold(escape_control_characters(text), console.width))
    console.print(Text(lines, style), soft_wrap=True)


def print_record(console: Console, fields: Iterable[tuple[str, str]]) -> None:
    """Print one line for each field, its heading first, between blank lines."""
    pairs = [(escape_control_characters(name), escape_control_characters(value)) for name, value in fields]
    indent = max(cell_len(name) for name, _ in pairs) + GAP
    console.print()
    for name, value in pairs:
        lines = _fold(value, console.width - indent - 1)
        heading = f" {name}{' ' * (indent - cell_len(name))}"
        text = Text.assemble((heading, "bold"), f"\n{' ' * (indent + 1)}".join(lines))
        console.print(text, soft_wrap=True, highlight=False)
    console.print()


def _split_columns(least: Sequence[int], width: int) -> list[list[int]] | None:
    """Return the columns of the fewest even blocks that fit, each with the first column; None if none do.

    >>> _split_columns([5, 9, 9, 9], 30), _split_columns([5, 9, 40], 30)
    ([[0, 1, 2], [0, 3]], None)

    Args:
        least: The width that each column needs.
        width: The width of the terminal.
    """
    other_columns = range(1, len(least))
    for size in sorted({-(-len(other_columns) // count) for count in other_columns}, reverse=True) or [1]:
        blocks = [[0, *other_columns[start : start + size]] for start in range(0, len(other_columns), size)] or [[0]]
        if all(sum(least[column] + GAP for column in block) <= width for block in blocks):
            return blocks
    return None


def _fit_widths(least: Sequence[int], natural: Sequence[int], width: int) -> list[int]:
    """Return the widths of a block's columns: the least, and what is left shared by those whose texts are longer.

    >>> _fit_widths([5, 9], [5, 60], 40), _fit_widths([5, 9], [5, 12], 40)
    ([5, 31], [5, 12])

    Args:
        least: The width that each column needs.
        natural: The width of each column's longest text.
        width: The width of the terminal.
    """
    spare = width - sum(column + GAP for column in least)
    widths, missing = list(least), [full - short for full, short in zip(natural, least, strict=True)]
    by_need = sorted(range(len(least)), key=missing.__getitem__)
    for place, column in enumerate(by_need):
        extra = min(missing[column], spare // (len(by_need) - place))
        widths[column], spare = widths[column] + extra, spare - extra
    return widths


def _draw(table: TextTable, block: Sequence[int], least: Sequence[int], width: int) -> Table:
    """Return the columns of a block as a table of Rich."""
    natural = [max(cell_len(line) for text in table.texts(column) for line in text.split("\n")) for column in block]
    widths = _fit_widths([least[column] for column in block], natural, width)
    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column, column_width in zip(block, widths, strict=True):
        drawn.add_column(
            _text(table.columns[column]), justify="right" if table.numeric[column] else "left", width=column_width
        )
    for row in table.rows:
        drawn.add_row(*(_text(row[column]) for column in block))
    return drawn


def _fold(text: str, width: int) -> list[str]:
    """Return the lines of a text folded at spaces; Rich and `textwrap` break longer words, or count wide ones once.

    >>> _fold("a word that is longer", 6)
    ['a word', 'that', 'is', 'longer']
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        first, *words = paragraph.split(" ")
        lines.append(first)
        for word in words:
            if cell_len(lines[-1]) + 1 + cell_len(word) <= width:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
    return lines


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(escape_control_characters(cell))
