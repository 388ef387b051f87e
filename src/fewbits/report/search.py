"""Tables of searches, sweeps and sensitivities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..coded import Coverage
from .table import Column, Table

__all__ = ["failures", "sensitivity_table", "sweep_table", "trace_table"]


def trace_table(trace: Mapping[str, Any], title: str = "", dtype: str = "float32") -> Table:
    """Return one line per trial of ``Trace.to_dict()``; a star marks the chosen one.

    ``dtype`` is that of the network before it was compressed.
    """
    counted = any(trial.get("levels") for trial in trace["trials"])
    names = ("", "levels" if counted else "slope", "bytes", "bits/weight", "score", "seconds")
    rows = tuple(
        (
            "*" if trial["chosen"] else "",
            str(trial["levels"]) if counted else f"{trial['slope']:.3e}",
            f"{trial['bytes']:,}",
            f"{trial['bits_per_weight']:.3f}",
            score_text(trial["score"]),
            f"{trial['seconds']:.1f}",
        )
        for trial in trace["trials"]
    )
    columns = tuple(Column(name, bool(name)) for name in names)
    ended = f"search: {trace['ended']}"
    if trace["reference"] is not None:
        ended += f"; {dtype} scores {score_text(trace['reference'])}"
    return Table(columns, rows, title, ended)


def score_text(score: float | None) -> str:
    """Format a score to four decimals."""
    return "-" if score is None else f"{score:.4f}"


def sensitivity_table(
    rows: Sequence[Mapping[str, Any]], title: str = "", coverage: Coverage | None = None
) -> Table:
    """Return one line per weight and width of ``LayerHarm.to_dict()``, in the given order.

    ``coverage`` is that of all these weights together.
    """
    scored = any(row["score"] is not None for row in rows)
    names = ["tensor", "method", "bits", "bytes", "saved", "layer error", "output MSE", "KL"]
    names += [*(["score"] if scored else []), "KL per saved kB"]
    lines = []
    for row in rows:
        error = "-" if row["layer_error"] is None else f"{row['layer_error']:.2e}"
        line = [row["name"], row["method"], str(row["bits"]), f"{row['bytes']:,}"]
        line += [f"{row['saved']:,}", error, f"{row['mse']:.2e}", f"{row['kl']:.2e}"]
        line += [*([score_text(row["score"])] if scored else []), f"{1000 * row['harm']:.2e}"]
        lines.append(tuple(line))
    columns = tuple(Column(name, place > 1) for place, name in enumerate(names))
    footer = "each weight quantized alone; most harm per byte saved first"
    if coverage is not None:
        footer += f"; together {coverage}"
    return Table(columns, tuple(lines), title, footer)


def failures(points: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return one line per point that failed, with its settings, goal, tries and error."""
    return tuple(
        f"failed after {point['tries']} tries: {' '.join(filter(None, _asked(point)))}: "
        f"{point['error']}"
        for point in points
    )


def _asked(point: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the method, the settings and the goal of a point."""
    settings = (f"{k}={v}" for k, v in point["settings"].items() if k != "method")
    goal = point.get("goal")
    target = "" if goal is None else f"{goal['limit']:,.0f} bytes"
    if goal is not None and goal.get("kind") == "max_drop":
        target = f"drop {100 * goal['limit']:g}%"
    return point["settings"].get("method", ""), " ".join(settings), target


def sweep_table(sweep: Mapping[str, Any], title: str = "") -> Table:
    """Return one line per point of ``Sweep.to_dict()``, smallest files first."""
    names = ("method", "settings", "goal", "score", "bytes", "bits/weight", "quantized", "seconds")
    stored = ((id(p), p.get("quantized")) for p in sweep["points"])
    coverages = {key: Coverage.of_dict(values) for key, values in stored if values}
    rows = []
    for point in sorted(sweep["points"], key=lambda p: p.get("bytes") or 0):
        line = _asked(point)
        if point.get("bytes") is None:
            rows.append((*line, "missed", "", "", "", ""))
            continue
        bits, seconds = point.get("bits_per_weight"), point.get("seconds")
        size = (f"{point['bytes']:,}", "-" if bits is None else f"{bits:.3f}")
        took = "-" if seconds is None else f"{seconds:.1f}"
        coverage = coverages.get(id(point))
        share = "-" if coverage is None else coverage.percent
        rows.append((*line, score_text(point.get("score")), *size, share, took))
    columns = tuple(Column(name, place > 2) for place, name in enumerate(names))
    exact = sweep["float"]
    footer = f"{exact.get('dtype', 'float32')}: {exact['bytes']:,} bytes"
    footer += f", score {score_text(exact['score'])}"
    if coverages:
        footer += f"; {min(coverages.values(), key=lambda one: one.share)}"
    return Table(columns, tuple(rows), title, footer)
