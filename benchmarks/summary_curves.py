"""Tables of accuracy over bytes: searched budgets, and methods side by side."""

from __future__ import annotations

from statistics import mean
from typing import Any

from tables import table

__all__ = ["budgets", "rate_accuracy", "transform_arms"]


def _accuracy(row: dict[str, Any]) -> str:
    mean, low, high = (row[f"accuracy_{key}"] for key in ("mean", "min", "max"))
    return f"{mean:.2f}" if low == high else f"{mean:.2f} ({low:.2f} to {high:.2f})"


def budgets(record: dict[str, Any]) -> str:
    """Results of `smallest` at a size or a drop, and the cost of the search."""
    rows, drops = [], []
    for row in record["summary"]:
        kind, limit = row["budget"]
        taken = (f"{row['evaluations_max']}", f"{row['seconds_mean']:.0f}")
        measured = (_accuracy(row), f"{row['file_bytes_mean']:,.0f}")
        if kind == "drop":
            chosen, test = f"{row['selection_drop_max']:.2f}", f"{row['test_drop_mean']:.2f}"
            drops.append((row["network"], f"{limit:g}", *measured, chosen, test, *taken))
            continue
        wanted = ""
        if "wanted" in row:
            wanted = f"{'met' if row['met'] else 'missed'}: {row['wanted']}%"
        share = f"{100 * row['least_share_of_budget']:.1f}%"
        rows.append((row["network"], f"{limit:,}", *measured, share, *taken, wanted))
    common = ("top-1 % (range over seeds)", "file bytes")
    search = ("evaluations, max", "search seconds, mean")
    head = ("network", "budget, bytes", *common, "share of budget used, min", *search, "target")
    below = (
        "network",
        "allowed drop, points",
        *common,
        "selection drop, max",
        "test drop, mean",
        *search,
    )
    return f"{table(head, rows)}\n\n{table(below, drops)}"


def rate_accuracy(record: dict[str, Any]) -> str:
    """A table for each network: methods in rows, their settings from small to large files."""
    parts = []
    for network, accuracy in record["float_accuracy"].items():
        rows = [row for row in record["summary"] if row["network"] == network]
        lines = []
        for method in dict.fromkeys(row["method"] for row in rows):
            points = [row for row in rows if row["method"] == method]
            points.sort(key=lambda row: row["file_bytes_mean"])
            cells = [f"{p['accuracy_mean']:.2f} @ {p['file_bytes_mean']:,.0f}" for p in points]
            lines.append((method, *cells, *[""] * (8 - len(cells))))
        if network == "resnet20":
            for peer, known in record["peers"].items():
                cells = [f"{top1:.2f} @ {size:,}" for top1, size in sorted(known)]
                lines.append((f"{peer} (quoted)", *cells, *[""] * (8 - len(cells))))
        head = (f"{network}, float {accuracy:.2f}%", *["% @ bytes"] * 8)
        parts.append(table(head, lines))
    return "\n\n".join(parts)


def transform_arms(record: dict[str, Any]) -> str:
    """Bases with and without feedback and rate at equal bytes, means over the seeds."""
    rows = record["measured"]
    lines = []
    for arm, budget in sorted({(row["arm"], row["budget"]) for row in rows}, key=lambda k: k[::-1]):
        group = [row for row in rows if (row["arm"], row["budget"]) == (arm, budget)]
        tops = [row["accuracy"] for row in group]
        lines.append(
            (
                arm,
                f"{budget:,}",
                str(len(group)),
                f"{mean(tops):.2f} ({min(tops):.2f} to {max(tops):.2f})",
                f"{mean(row['file_bytes'] for row in group):,.0f}",
                f"{mean(row['drift'] for row in group):.1f}",
                f"{mean(row['transformed_layers'] for row in group):.1f}",
            )
        )
    head = ("basis, feedback, rate", "budget, bytes", "seeds", "top-1 % (range)", "file bytes")
    return table((*head, "squared change of logits", "layers in a basis"), lines)
