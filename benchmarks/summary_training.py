"""Tables of the benchmarks that train, for summary.py."""

from __future__ import annotations

import statistics
from typing import Any

from tables import table

__all__ = ["hemp_mnist", "hemp_resnet", "step_cost"]


def _float_errors(record: dict[str, Any]) -> str:
    """Test errors of the float networks, mean over the seeds."""
    found: dict[str, list[float]] = {}
    for name, accuracy in record["float_accuracy"].items():
        found.setdefault(name.rpartition(", seed")[0], []).append(100 - accuracy["test"])
    return ", ".join(f"{name} {statistics.mean(errors):.2f}%" for name, errors in found.items())


def hemp_mnist(record: dict[str, Any]) -> str:
    """Bytes and errors by start and entropy term: mean over seeds, with the range of errors."""
    rows = [
        (
            row["network"],
            row["start"],
            row["term"],
            str(row["seeds"]),
            f"{row['file_bytes_mean']:,.0f}",
            f"{min(row['file_bytes']):,} to {max(row['file_bytes']):,}",
            f"{row['test_error_mean']:.2f}",
            f"{min(row['test_error']):.2f} to {max(row['test_error']):.2f}",
            f"{row['held_out_error_mean']:.2f}",
            f"{row['cpu_seconds_mean']:.0f}",
            f"{row['goal']['bytes_at_most']:,} B at {row['goal']['error_at_most']}%: "
            + ("met" if row["met"] else "missed"),
        )
        for row in record["summary"]
    ]
    head = ("network", "start", "entropy", "seeds", "file bytes", "range", "test error %", "range")
    head = (*head, "held out %", "CPU s", "target")
    told = f"Float test errors: {_float_errors(record)}. Runs missing: {record['missing']}."
    return f"{told}\n\n{table(head, rows)}"


def hemp_resnet(record: dict[str, Any]) -> str:
    """Bytes and top-1 of every run and of its start."""
    rows = [
        (
            run["method"],
            str(run["seed"]),
            f"{run['settings']['epochs']:g}",
            f"{run['file_bytes']:,}",
            f"{run['accuracy']['test']:.2f}",
            f"{run['accuracy']['held out']:.2f}",
            f"{run['cpu_seconds']:.0f}",
        )
        for run in sorted(record["runs"], key=lambda run: (run["method"], -run["file_bytes"]))
    ]
    head = ("network, start", "seed", "epochs", "file bytes", "test %", "held out %", "CPU s")
    floats = ", ".join(f"{name} {value:.2f}%" for name, value in record["float_accuracy"].items())
    return f"Float top-1: {floats}.\n\n{table(head, rows)}"


def step_cost(record: dict[str, Any]) -> str:
    """Time of a training step over a plain one."""
    rows = [
        (
            row["kind"],
            row["dtype"],
            f"{row['plain_seconds']:.3f}",
            f"{row['seconds']:.3f}",
            f"{row['median_ratio']:.2f}",
            f"at most {row['goal']}" if row["goal"] else "",
        )
        for row in record["rows"]
    ]
    head = ("step", "dtype", "plain s", "s", "median ratio", "target")
    beside = f"Brevitas {record['brevitas']}. " if record["brevitas"] else ""
    return f"{beside}Batch {record['batch']}, {record['steps']} steps.\n\n{table(head, rows)}"
