"""How values show themselves: short text of whatever length of names, and tables for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["html_table", "printable", "shortened"]

_WIDTH = 60
_ROWS = 500
_MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"})


def printable(text: str) -> str:
    """Return ``text`` with control characters escaped: names in a file may hold any."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, width: int = _WIDTH) -> str:
    """Return ``text`` printable and at most ``width`` long, its middle left out."""
    half = (width - 3) // 2
    if len(text) > width:
        text = f"{text[: width - 3 - half]}...{text[len(text) - half :]}"
    text = printable(text)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def html_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str = "",
    footer: str = "",
    numbers: Sequence[int] = (),
) -> str:
    """Return a table for a notebook. Every text is escaped: names in a file may hold markup.

    Args:
        columns: headings.
        rows: as many cells each; those beyond 500 are counted only.
        title: above the table, as ``footer`` below it.
        numbers: places of the columns that go to the right.
    """
    listed = list(rows)
    body = "".join(_row("td", row, numbers) for row in listed[:_ROWS])
    more = len(listed) - _ROWS
    lines = [footer, f"and {more} more rows"] if more > 0 else [footer]
    told = "".join(f"<div>{_text(line)}</div>" for line in lines if line)
    head = f"<div><b>{_text(title)}</b></div>" if title else ""
    return f"<div>{head}<table>{_row('th', columns, numbers)}{body}</table>{told}</div>"


def _row(tag: str, cells: Sequence[str], numbers: Sequence[int]) -> str:
    sides = ("right" if place in numbers else "left" for place in range(len(cells)))
    made = (
        f'<{tag} style="text-align: {side}">{_text(cell)}</{tag}>'
        for side, cell in zip(sides, cells, strict=True)
    )
    return f"<tr>{''.join(made)}</tr>"


def _text(text: str) -> str:
    return printable(text).translate(_MARKUP)
