"""Sections of a report: sizes, codes, curves, sensitivities, plans. Plain values in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...coded import CodedTensor, SizeReport, SizeRow, count_codes, index_of
from ..search import score_text, trace_table
from ..table import Column, Table, human_bytes
from ..views import plan_table, size_table
from .charts import Bar, Point, Series, bars, curve, dots, histogram
from .page import Chart, Folded, Part, Section

__all__ = [
    "SCORE",
    "codes_section",
    "curve_charts",
    "history_section",
    "plan_section",
    "reasons_table",
    "sensitivity_charts",
    "size_section",
    "trace_section",
]

SCORE = "score (higher is better)"

_SHOWN = 30  # rows of a chart that is not folded
_OPEN = 8  # histograms that are not folded
_HISTOGRAMS = 400
_BYTES = "bytes of the whole file"


def size_section(report: SizeReport) -> Section:
    """Return the bytes of the whole file and of each of its parts, the largest first."""
    rows = sorted(report.rows, key=lambda row: -row.bytes)
    total = max(1, report.file_bytes)
    shown = [
        Bar(row.name, row.payload, row.side, f"{row.bytes:,} ({100 * row.bytes / total:.1f}%)")
        for row in rows
    ]
    told = f"{human_bytes(report.file_bytes)} in {len(rows):,} parts"
    parts: list[Part] = [f"{told}, {report.rate}, {report.comparison}."]
    if len(shown) > _SHOWN:
        parts.append(_size_chart(shown[:_SHOWN], f"The {_SHOWN} largest parts of the file"))
        parts.append(Folded(f"All {len(shown):,} parts", [_size_chart(shown, "All parts")]))
    else:
        parts.append(_size_chart(shown, "All parts of the file"))
    parts.append(Folded("As a table, in the order of the file", [size_table(report)]))
    return Section("Bytes", parts)


def codes_section(tensors: Mapping[str, CodedTensor], report: SizeReport) -> Section:
    """Return bits per weight and histogram of codes of every tensor; tensors are made one by one.

    Of more than 400 quantized tensors, only the largest have a histogram.
    """
    rows = [row for row in report.rows if row.is_tensor and row.kind != "raw"]
    largest = sorted(rows, key=lambda row: -row.elements)[:_HISTOGRAMS]
    drawn = {row.name for row in largest}
    made = (_codes_chart(row, tensors[row.name]) for row in rows if row.name in drawn)
    charts = [chart for chart in made if chart is not None]
    if not charts:
        return Section("Codes", [])
    told = "Bits per weight count the codes and all side information of the tensor."
    if len(drawn) < len(rows):
        told += f" Drawn are the {len(drawn)} largest of {len(rows):,} quantized tensors."
    table = Table(
        (Column("tensor"), Column("weights", True), Column("bits/weight", True), Column("codec")),
        tuple(
            (row.name, f"{row.elements:,}", f"{row.bits_per_element:.3f}", row.codecs)
            for row in rows
        ),
    )
    title = f"Histograms of {len(charts):,} tensors"
    return Section("Codes", [told, table, Folded(title, charts, open=len(charts) <= _OPEN)])


def _varied(trial: Mapping[str, Any]) -> str:
    levels = trial.get("levels")
    return f"{levels} levels" if levels else f"slope {trial['slope']:.3e}"


def trace_section(trace: Mapping[str, Any], dtype: str, score: str = SCORE) -> Section:
    """Return every trial of ``Trace.to_dict()``, and their curve if they were scored."""
    trials = trace["trials"]
    scored = [one for one in trials if _finite(one["score"])]
    points = [
        Point(
            one["bytes"],
            one["score"],
            f"{_varied(one)}: {one['bytes']:,} bytes, score {score_text(one['score'])}"
            + (", chosen" if one["chosen"] else ""),
            one["chosen"],
        )
        for one in scored
    ]
    parts: list[Part] = []
    if points:
        known = trace["reference"]
        reference = (known, f"{dtype}: {score_text(known)}") if _finite(known) else None
        series = [Series("trials of the search; a ring around the chosen one", points)]
        told = f"{score} over {_BYTES}"
        picture = curve(series, _BYTES, score, told, reference=reference)
        parts.append(Chart(picture, _left_out(len(trials) - len(points), "trials")))
    return Section("Search", [*parts, trace_table(trace, dtype=dtype)])


def curve_charts(
    points: Iterable[Mapping[str, Any]], score: str, reference: tuple[float, str] | None
) -> list[Chart]:
    """Return the curve of points with "method", "bytes" and "score", one line per method."""
    given = list(points)
    kept = [one for one in given if _finite(one["score"])]
    if not kept:
        return []
    series: dict[str, list[Point]] = {}
    for one in kept:
        series.setdefault(one["method"], []).append(Point(one["bytes"], one["score"]))
    lines = [Series(name, found) for name, found in series.items()]
    if reference is not None and not _finite(reference[0]):
        reference = None
    picture = curve(lines, _BYTES, score, f"{score} over {_BYTES}", reference=reference)
    return [Chart(picture, _left_out(len(given) - len(kept), "points"))]


def sensitivity_charts(rows: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Return the divergence of every weight at every width, the most sensitive weight first."""
    found: dict[str, dict[str, float]] = {}
    widths = sorted({row["bits"] for row in rows})
    for row in rows:
        if _finite(row["kl"]) and row["kl"] >= 0:
            found.setdefault(row["name"], {})[f"{row['bits']} bits"] = row["kl"]
    if not found:
        return []
    ordered = sorted(found.items(), key=lambda one: -max(one[1].values()))
    names = [f"{width} bits" for width in widths]
    axis = "Kullback-Leibler divergence from the float network, nats per output"
    told = "Each weight quantized alone; hollow marks at the left edge are zero."
    missing = len(rows) - sum(map(len, found.values()))
    caption = f"{told} {_left_out(missing, 'rows')}".strip()
    charts: list[Part] = [Chart(dots(ordered[:_SHOWN], names, axis, axis), caption)]
    if len(ordered) > _SHOWN:
        whole = Chart(dots(ordered, names, axis, axis), caption)
        charts.append(Folded(f"All {len(ordered):,} weights", [whole]))
    return charts


def plan_section(plan: Mapping[str, Any]) -> Section:
    """Return why tensors are left in float, and what was done with each of them."""
    table = plan_table(plan)
    return Section("What was done, and why", [reasons_table(plan), table])


def reasons_table(plan: Mapping[str, Any]) -> Table:
    """Return one line per reason to leave a tensor as it is, or to deviate from the recipe."""
    tensors: dict[str, list[str]] = {}
    for entry in plan["weights"]:
        if entry["reason"]:
            tensors.setdefault(entry["reason"], []).append(entry["name"])
    for name, reason in plan["kept"].items():
        tensors.setdefault(reason, []).append(name)
    rows = tuple(
        (reason, f"{len(names):,}", names[0] if len(names) == 1 else f"{names[0]}, ...")
        for reason, names in sorted(tensors.items(), key=lambda one: -len(one[1]))
    )
    return Table((Column("reason"), Column("tensors", True), Column("such as")), rows)


def history_section(history: Sequence[Mapping[str, float]]) -> Section:
    """Return the metrics of every epoch of training."""
    if not history:
        return Section("Training", [])
    names = list(dict.fromkeys(name for epoch in history for name in epoch))
    rows = tuple(
        tuple("" if name not in epoch else f"{epoch[name]:.6g}" for name in names)
        for epoch in history
    )
    return Section("Training", [Table(tuple(Column(name, True) for name in names), rows)])


def _size_chart(rows: Sequence[Bar], about: str) -> Chart:
    picture = bars(rows, "bytes", ("codes (or raw values)", "side information"), about)
    return Chart(picture, f"{about}, sorted; with the share of the file.")


def _codes_chart(row: SizeRow, tensor: CodedTensor) -> Chart | None:
    index = index_of(tensor)
    if index is None or index.size == 0:
        return None
    counts = count_codes(index)
    axis = "code (index in the codebook)" if row.kind == "codebook" else "code"
    shape = "x".join(map(str, row.shape))
    told = f"{row.name}: {shape}, {row.kind}, {row.bits_per_element:.3f} bits per weight"
    caption = f"{told}, {len(counts):,} different codes"
    return Chart(histogram(counts, axis, f"Codes of {row.name}"), caption, small=True)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _left_out(count: int, what: str) -> str:
    return f"{count} {what} without a finite value are only in the table." if count else ""
