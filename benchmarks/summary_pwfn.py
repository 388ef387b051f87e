"""Tables of the benchmarks of PWFN, for summary.py."""

from __future__ import annotations

from typing import Any

from tables import table

__all__ = ["pwfn_clustering", "pwfn_resnet"]


def pwfn_resnet(record: dict[str, Any]) -> str:
    """Top-1, bytes, values and resilience by kind, mean over seeds with the range of top-1."""
    runs: dict[str, list[float]] = {}
    for run in record["runs"]:
        runs.setdefault(run["method"], []).append(run["accuracy"]["test"])
    sizes = [size for size in record["summary"][0]["noise"] if float(size)]
    rows = [
        (
            row["kind"],
            str(row["seeds"]),
            f"{row['accuracy']:.2f}",
            f"{min(runs[row['kind']]):.2f} to {max(runs[row['kind']]):.2f}",
            f"{row['file_bytes']:,.0f}",
            f"{row['values']:.0f}" if row["values"] else "float",
            f"{row['entropy']:.3f}" if row["values"] else "",
            *(f"{100 * row['noise'][size]:.1f}" for size in sizes),
        )
        for row in record["summary"]
    ]
    head = ("kind", "seeds", "top-1 %", "range", "file bytes", "values", "entropy, bits")
    head = (*head, *(f"% at noise {size}" for size in sizes))
    reference = record["float_accuracy"]["resnet20"]
    told = f"Float: {reference:.2f}%. Runs missing: {record['missing']}."
    return f"{told}\n\n{table(head, rows)}"


def pwfn_clustering(record: dict[str, Any]) -> str:
    """CPU seconds and memory of a round, by the share of weights fixed."""
    rows = [
        (
            f"{row['weights']:,}",
            row["deviations"],
            f"{row['share']:.0%}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['peak_rss_mb']:,.0f}",
            f"{row['peak_rss_mb_before']:,.0f}",
            f"{row['picks']:,}",
            f"{row['values']:,}",
        )
        for row in record["rows"]
    ]
    head = (
        "weights",
        "deviations",
        "fixed",
        "CPU s",
        "peak MB",
        "peak MB before",
        "picks",
        "values",
    )
    return table(head, rows)
