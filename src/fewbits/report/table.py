"""Tables: drawn with Rich in a terminal, aligned plain text in a pipe, never truncated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ..coded import html_table, printable

__all__ = ["Column", "Table", "human_bytes", "printable", "show"]


@dataclass(frozen=True)
class Column:
    """Heading of a column; numbers are right-aligned."""

    name: str
    right: bool = False


@dataclass(frozen=True)
class Table:
    """Text cells under headings, with a title above and a footer below."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    footer: str = ""

    def plain(self) -> str:
        """Return aligned text: two spaces between columns, one line per row."""
        heading = tuple(column.name for column in self.columns)
        rows = [tuple(map(printable, row)) for row in self.rows]
        widths = [max(map(len, cells)) for cells in zip(heading, *rows, strict=True)]
        lines = [self._line(cells, widths) for cells in (heading, *rows)]
        return "\n".join(
            line for line in (printable(self.title), *lines, printable(self.footer)) if line
        )

    def html(self, most: int = 500) -> str:
        """Return an HTML table; rows beyond ``most`` are only counted."""
        names = [column.name for column in self.columns]
        numbers = [place for place, column in enumerate(self.columns) if column.right]
        return html_table(
            names,
            self.rows,
            title=self.title,
            footer=self.footer,
            numbers=numbers,
            most=most,
        )

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        placed = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(cells, widths, self.columns, strict=True)
        )
        return "  ".join(placed).rstrip()


def show(table: Table, console: Console) -> None:
    """Print a table in the style that the console supports."""
    if not console.is_terminal:
        console.file.write(table.plain() + "\n")
        return
    # A light frame leaves the width of the terminal to the names.
    drawn = RichTable(
        title=printable(table.title) or None,
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in table.columns:
        drawn.add_column(column.name, justify="right" if column.right else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    console.print(drawn)
    if table.footer:
        console.print(Text(printable(table.footer)))


def human_bytes(count: int) -> str:
    """Format a byte count with thousands separators, adding a larger unit where that helps."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= 10 * size:
            return f"{count:,} bytes ({count / size:.1f} {unit})"
    return f"{count:,} bytes"
