"""Tables of entropies and histograms of indices, next to their coded rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..coded import SizeReport
from .table import Column, Table

__all__ = ["EntropyRow", "entropy_table", "histogram_table"]

_BAR = 40
_LONGEST = 256


@dataclass(frozen=True)
class EntropyRow:
    """Empirical entropies of the indices of one tensor.

    Attributes:
        name: name of the tensor.
        indices: number of indices.
        levels: number of distinct indices.
        entropies: bits per index of order 0, 1 and 2 (given the 0, 1 or 2 before it, row by row).
    """

    name: str
    indices: int
    levels: int
    entropies: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def entropy_table(rows: Iterable[EntropyRow], report: SizeReport) -> Table:
    """Return one line per tensor: bits per index as coded, then the entropies."""
    names = ("tensor", "codec", "levels", "coded", "order 0", "order 1", "order 2")
    coded = {row.name: row for row in report.rows if row.is_tensor}
    lines = []
    for row in rows:
        size = coded[row.name]
        bits = 8 * size.payload / row.indices if row.indices else 0.0
        values = (f"{value:.3f}" for value in (bits, *row.entropies))
        lines.append((row.name, size.codecs, f"{row.levels:,}", *values))
    columns = tuple(Column(name, place > 1) for place, name in enumerate(names))
    footer = (
        "bits per index; entropies assume known statistics, so on small tensors the higher orders "
        "are below what any coder can reach"
    )
    return Table(columns, tuple(lines), "entropies", footer)


def histogram_table(counts: Mapping[int, int], name: str) -> Table:
    """Return one line per index with its count and a bar; only the most frequent if many."""
    total = sum(counts.values())
    kept = sorted(sorted(counts, key=lambda index: -counts[index])[:_LONGEST])
    most = max(counts.values(), default=1)
    lines = tuple(
        (
            str(index),
            f"{counts[index]:,}",
            f"{100 * counts[index] / total:.2f}",
            "#" * -(-_BAR * counts[index] // most),
        )
        for index in kept
    )
    columns = (Column("index", True), Column("count", True), Column("%", True), Column(""))
    left = len(counts) - len(kept)
    return Table(columns, lines, name, f"and {left} rarer indices" if left else "")
