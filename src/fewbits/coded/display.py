"""Short, safe text for display: escaped and shortened names, HTML tables for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["escaped", "html_table", "printable", "shortened"]

_WIDTH = 60
_MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"})


def printable(text: str) -> str:
    """Escape control characters in ``text``: names in a file may contain any."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, width: int = _WIDTH) -> str:
    """Return ``text`` printable and at most ``width`` long, leaving out its middle."""
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
    most: int = 500,
) -> str:
    """Return a table for a notebook. All text is escaped: names in a file may contain markup.

    Args:
        columns: headings.
        rows: one cell per column; rows beyond ``most`` are only counted.
        title: above the table.
        footer: below the table.
        numbers: indices of the right-aligned columns.
        most: largest number of rows.
    """
    listed = list(rows)
    body = "".join(_row("td", row, numbers) for row in listed[:most])
    more = len(listed) - most
    lines = [footer, f"and {more} more rows"] if more > 0 else [footer]
    below = "".join(f"<div>{escaped(line)}</div>" for line in lines if line)
    head = f"<div><b>{escaped(title)}</b></div>" if title else ""
    return f"<div>{head}<table>{_row('th', columns, numbers)}{body}</table>{below}</div>"


def _row(tag: str, cells: Sequence[str], numbers: Sequence[int]) -> str:
    sides = ("right" if place in numbers else "left" for place in range(len(cells)))
    tagged = (
        f'<{tag} style="text-align: {side}">{escaped(cell)}</{tag}>'
        for side, cell in zip(sides, cells, strict=True)
    )
    return f"<tr>{''.join(tagged)}</tr>"


def escaped(text: str) -> str:
    """Return ``text`` printable, and without a meaning of its own in HTML and XML."""
    return printable(text).translate(_MARKUP)
