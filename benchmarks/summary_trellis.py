"""Tables of the trellis on networks, and of what was tried beside it."""

from __future__ import annotations

import math
from statistics import mean
from typing import Any

import numpy as np

from tables import table

__all__ = ["column_steps", "many_rates", "trellis_networks"]


def _curve(rows: list[dict[str, Any]], quantizer: str) -> dict[float, tuple[float, float, int]]:
    """Return top-1, bytes and seeds of ResNet-20 by slope, as means over the seeds."""
    own = [r for r in rows if (r["network"], r["quantizer"]) == ("resnet20", quantizer)]
    found = {}
    for slope in sorted({row["slope"] for row in own}):
        same = [row for row in own if row["slope"] == slope]
        scores = mean(row["accuracy"] for row in same)
        found[slope] = scores, mean(row["file_bytes"] for row in same), len(same)
    return found


def _bytes_at(curve: dict[float, tuple[float, float, int]], accuracy: float) -> str:
    """Return interpolated bytes; below the curve those of its smallest file."""
    scores, sizes = zip(*sorted((score, size) for score, size, _ in curve.values()), strict=True)
    if accuracy > scores[-1]:
        return ""
    return f"{math.exp(float(np.interp(accuracy, scores, np.log(sizes)))):,.0f}"


def trellis_networks(record: dict[str, Any]) -> str:
    """Bytes over those of scalar levels, points of ResNet-20, and CERWU's beside them."""
    rows = []
    for row in record["summary"]:
        ratios = [
            f"{row[f'bytes_at_equal_{key}']:.3f} +- {row[f'deviation_{key}'] or 0:.3f}"
            if row.get(f"bytes_at_equal_{key}")
            else ""
            for key in ("output_error_percent", "accuracy")
        ]
        rows.append((row["network"], row["quantizer"], *ratios, f"{row['cpu_seconds']:.0f}"))
    head = ("network", "quantizer", "equal error", "equal top-1", "CPU s")
    curves = {name: _curve(record["measured"], name) for name in ("scalar", "auto")}
    points = [
        (f"{slope:g}", name, f"{size:,.0f}", f"{score:.2f}", str(seeds))
        for name, curve in curves.items()
        for slope, (score, size, seeds) in curve.items()
    ]
    beside = [
        (f"{score:g}", f"{size:,}", *(_bytes_at(curve, score) for curve in curves.values()))
        for score, size in record["cerwu"]
    ]
    return "\n\n".join(
        (
            f"Runs missing: {record['missing']}.",
            table(head, rows),
            table(("slope of ResNet-20", "quantizer", "bytes", "test %", "seeds"), points),
            table(("test %", "CERWU, bytes", *curves), beside),
        )
    )


def column_steps(record: dict[str, Any]) -> str:
    """What one step per column could save, in bits a weight."""
    rows = [
        (row["network"], *(f"{row[key]:.3f}" for key in ("gain", *record["side_bits"])))
        for row in record["summary"]
    ]
    head = (f"less {bits} bits a column" for bits in record["side_bits"].values())
    return table(("network", "at most", *head), rows)


def many_rates(record: dict[str, Any]) -> str:
    """A base and its refinement over the finer file."""
    rows = [
        (f"{row['fine']:g}", f"{row['base']:g}", f"{row['ratio']:.3f} +- {row['deviation']:.3f}")
        for row in record["summary"]
    ]
    return table(("slope of the finer file", "of the base", "both over the finer"), rows)
