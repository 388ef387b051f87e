"""Tables of files, plans, comparisons and methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..coded import Coverage, SizeReport
from .table import Column, Table, human_bytes

__all__ = [
    "Comparison",
    "comparison_table",
    "methods_table",
    "plan_table",
    "settings_table",
    "size_table",
]


@dataclass(frozen=True)
class Comparison:
    """One way to store a network.

    Attributes:
        method: name of the method, or "float32".
        bits: nominal index width; None if it has none.
        accuracy: top-1 on the test split, of the network as read back from the file.
        bytes: size of the file.
        bits_per_weight: all bits of the file per quantized weight.
        ratio: bytes of the network's tensors, in their own dtypes, divided by the file's bytes.
        seconds: time to compress; None if nothing was compressed.
        file: name of the file.
        quantized: quantized share of the weights; None if nothing was compressed.
    """

    method: str
    bits: int | None
    accuracy: float
    bytes: int
    bits_per_weight: float
    ratio: float
    seconds: float | None
    file: str
    quantized: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def size_table(report: SizeReport, title: str = "") -> Table:
    """Return one line per item of a file; the bytes sum to the file's size."""
    columns = (
        Column("tensor"),
        Column("kind"),
        Column("shape"),
        Column("codec"),
        Column("values", True),
        Column("bits", True),
        Column("side", True),
        Column("bytes", True),
    )
    rows = tuple(
        (
            row.name,
            row.kind,
            "x".join(map(str, row.shape)),
            row.codecs,
            f"{row.elements:,}" if row.elements else "",
            f"{row.bits_per_element:.2f}" if row.elements else "",
            f"{row.side:,}",
            f"{row.bytes:,}",
        )
        for row in report.rows
    )
    total = ("total", "", "", "", "", "", f"{sum(r.side for r in report.rows):,}")
    footer = (
        f"{human_bytes(report.file_bytes)}, {report.rate}, {report.comparison}; {report.coverage}"
    )
    return Table(columns, (*rows, (*total, f"{report.file_bytes:,}")), title, footer)


def comparison_table(rows: Iterable[Comparison], title: str = "", footer: str = "") -> Table:
    """Return one line per method: accuracy and all costs."""
    columns = (
        Column("method"),
        Column("bits", True),
        Column("accuracy", True),
        Column("bytes", True),
        Column("bits/weight", True),
        Column("quantized", True),
        Column("ratio", True),
        Column("seconds", True),
    )
    cells = tuple(
        (
            row.method,
            "" if row.bits is None else str(row.bits),
            f"{row.accuracy:.2%}",
            f"{row.bytes:,}",
            f"{row.bits_per_weight:.2f}",
            "" if row.quantized is None else f"{row.quantized:.1%}",
            f"{row.ratio:.1f}x",
            "" if row.seconds is None else f"{row.seconds:.1f}",
        )
        for row in rows
    )
    return Table(columns, cells, title, footer)


def plan_table(plan: Mapping[str, Any], title: str = "") -> Table:
    """Return one line per tensor of ``Plan.to_dict()``: its method, or why it stays in float."""
    columns = (Column("tensor"), Column("shape"), Column("method"), Column("settings or reason"))
    rows = [
        (
            str(entry["name"]),
            "x".join(map(str, entry["shape"])),
            str(method.get("method", "keep")),
            ", ".join(filter(None, (_settings(method), entry["reason"]))),
        )
        for entry in plan["weights"]
        for method in [entry.get("trained") or entry["method"] or {}]
    ]
    coded = sum(row[2] != "keep" for row in rows)
    rows += [(name, "", "keep", reason) for name, reason in plan["kept"].items()]
    rows += [(name, "", "tied", f"same tensor as {to}") for name, to in plan["aliases"].items()]
    stages = [*plan["recipe"].get("prepare", ()), *plan["recipe"].get("finish", ())]
    footer = f"{coded} of {len(rows)} tensors are quantized"
    if "quantized" in plan:
        footer += f"; {Coverage.of_dict(plan['quantized'])}"
    if stages:
        footer += f"; stages: {', '.join(stages)}"
    return Table(columns, tuple(rows), title, footer)


def methods_table(entries: Iterable[Mapping[str, Any]]) -> Table:
    """Return one line per method: the data it needs, its summary and its paper."""
    columns = (Column("method"), Column("needs"), Column("summary"), Column("paper"))
    rows = tuple(
        tuple(str(e[column.name.replace("method", "name")]) for column in columns) for e in entries
    )
    return Table(columns, rows, footer="Settings and their defaults: fewbits methods NAME")


def settings_table(settings: Mapping[str, Any], meanings: Mapping[str, str]) -> Table:
    """Return one line per setting of a method: its default and its meaning."""
    rows = tuple(
        (name, "none" if value is None else str(value), meanings.get(name, ""))
        for name, value in settings.items()
    )
    return Table((Column("setting"), Column("default"), Column("meaning")), rows)


def _settings(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items() if name != "method")
