"""A report on the terminal. Lines wrap between words, and a table that is too wide continues below itself."""

from collections.abc import Sequence

import rich.table
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from jaxslim.reporting.results import Report, Table
from jaxslim.reporting.tables import tables_of

_GAP = 2  # between two columns
_NUMBER = 16  # the longest number is "20.04 M (100.0%)"


def show(report: Report, console: Console | None = None) -> None:
    """Print the tables and notes of a report, by default on standard output, 80 columns wide when piped."""
    console = console or Console()
    console.print(Text(report.title, style="bold"))  # Text, because rich reads markup in a plain string
    for table in tables_of(report):
        console.print()
        show_table(table, console)
    if report.notes:
        console.print()
    for name, note in report.notes.items():
        lines = Text.assemble((f"{name}: ", "dim"), note).wrap(console, console.width - 2)
        console.print(Text("\n  ").join(lines))


def show_table(table: Table, console: Console | None = None) -> None:
    """Print a table under its title."""
    console = console or Console()
    console.print(Text(table.title, style="italic"))
    for number, part in enumerate(_parts(table, console.width)):
        if number:
            console.print()
        console.print(part)


def show_text(text: str) -> None:
    """Print a text, in lines that break between words."""
    Console().print(Text(text))


def _parts(table: Table, width: int) -> list[rich.table.Table]:
    """`table` in as few parts as fit into `width`, each with the first column."""
    columns = list(zip(table.header, *table.rows, strict=True))
    least = [max(_longest_word(header), *map(_least_width, cells), 1) for header, *cells in columns]
    least[0] = min(least[0], width * 2 // 3)
    parts = [[0]]
    for index in range(1, len(columns)):
        if len(parts[-1]) > 1 and sum(least[i] + _GAP for i in (*parts[-1], index)) - _GAP > width:
            parts.append([0])
        parts[-1].append(index)
    return [_grid([columns[i] for i in part], [least[i] for i in part], width, table.right) for part in parts]


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _least_width(cell: str) -> int:
    """Width that breaks neither a word of the cell nor a number with its unit and share."""
    return cell_len(cell) if cell_len(cell) <= _NUMBER else _longest_word(cell)


def _grid(columns: Sequence[Sequence[str]], least: Sequence[int], width: int, right: bool) -> rich.table.Table:
    """Columns of at least the widths `least`. What is left of `width` goes to those with the most lines."""
    most, widths = [max(map(cell_len, column)) for column in columns], list(least)
    for _ in range(width - sum(widths) - _GAP * (len(widths) - 1)):
        index = max(range(len(widths)), key=lambda index: most[index] / widths[index])
        if widths[index] < most[index]:
            widths[index] += 1
    grid = rich.table.Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, (header, *_) in enumerate(columns):
        numbers = right and index > 0
        grid.add_column(Text(header), justify="right" if numbers else "left", overflow="fold", width=widths[index])
    for row in list(zip(*columns, strict=True))[1:]:
        grid.add_row(*map(Text, row))
    return grid
