"""Tables of the benchmarks of PWFN, for summary.py."""

from __future__ import annotations

import statistics
from typing import Any

from tables import table

__all__ = ["pwfn_clustering", "pwfn_forms", "pwfn_resnet"]


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


def pwfn_forms(record: dict[str, Any]) -> str:
    """Accuracy over constants at equal entropy, and over the permuted, with standard errors."""
    rows = [
        (
            row["network"],
            f"{row['form']} {row['control']}".strip(),
            f"{row['size']:g}" if row["size"] else "",
            str(row["seeds"]),
            _with(row.get("accuracy"), "deviation"),
            f"{row['values']['mean']:.0f}" if "values" in row else "float",
            f"{row['entropy']['mean']:.3f}" if "entropy" in row else "",
            _with(row.get("over_constant"), "error"),
            _with(row.get("over_permuted"), "error"),
            *(f"{share:.1f}" for share in row.get("noise", {}).values()),
        )
        for row in record["summary"]
    ]
    head = ("network", "form", "size", "seeds", "top-1 %, deviation", "values", "entropy, bits")
    head = (*head, "over constant, error", "over permuted, error", "% at noise 0.03", "0.06")
    width = len(head)
    rows = [(*row, *[""] * (width - len(row))) for row in rows]
    told = ", ".join(f"{name} {top:.2f}%" for name, top in record["float_accuracy"].items())
    told = f"Float: {told}. Runs missing: {record['missing']}."
    both = "Both networks together, means with standard errors over networks and seeds:"
    return "\n\n".join([told, table(head, rows), both, _together(record["details"])])


def _together(details: list[dict[str, Any]]) -> str:
    """Each form over constants and over itself permuted, in pairs of equal network and seed."""
    found: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
    for row in details:
        job = row["job"]
        if "over_constant" in row:
            place = found.setdefault((job["form"], job["control"]), {})
            place[job["network"], job["seed"]] = row["over_constant"]
    rows = []
    for (form, control), own in found.items():
        other = found.get((form, "permuted"), {}) if not control else {}
        gains = [own[pair] - other[pair] for pair in own if pair in other]
        if form != "constant":
            name = f"{form} {control}".strip()
            rows.append((name, str(len(own)), _mean(list(own.values())), _mean(gains)))
    return table(("form", "runs", "over constant", "over permuted"), rows)


def _mean(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else ""
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.2f} ± {error:.2f}"


def _with(found: dict[str, float] | None, what: str) -> str:
    return f"{found['mean']:.2f} ± {found[what]:.2f}" if found else ""
