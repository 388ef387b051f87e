"""Tables of the benchmarks that train, for summary.py."""

from __future__ import annotations

import statistics
from typing import Any

from tables import table

__all__ = [
    "hemp_form",
    "hemp_mnist",
    "hemp_options",
    "hemp_resnet",
    "hemp_starts",
    "hemp_starts_cifar",
    "step_cost",
]


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


def hemp_starts(record: dict[str, Any]) -> str:
    """Bytes and top-1 of every start: before HEMP, after it, and of what is compared; verdicts."""
    named = dict.fromkeys(part for row in record["summary"] for part in row["means"])
    parts = ("before", *(part for part in named if part != "before"))
    rows = [
        (
            row["network"],
            row["start"],
            str(row["seeds"]),
            *(_point(row["means"].get(part)) for part in parts),
            "; ".join(said for said, found in row["verdicts"].items() if found),
        )
        for row in record["summary"]
    ]
    head = ("network", "start", "seeds", *parts, "verdicts")
    floats = ", ".join(f"{name} {value:.2f}%" for name, value in record["float_accuracy"].items())
    return f"Float: {floats}. Runs missing: {record['missing']}.\n\n{table(head, rows)}"


def hemp_starts_cifar(record: dict[str, Any]) -> str:
    """The same of networks on CIFAR-10."""
    return hemp_starts(record)


def _point(means: dict[str, Any] | None) -> str:
    """Bytes and top-1, with the deviation over the seeds where there are several."""
    if means is None:
        return ""
    found = [accuracy for _, accuracy in means["by_seed"]]
    spread = f" +- {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return f"{means['file_bytes']:,.0f} B, {means['accuracy']:.2f}%{spread}"


def hemp_form(record: dict[str, Any]) -> str:
    """Bytes, top-1 and bits of tuples of every form, order and strength."""
    rows = [
        (row["form"], str(row["order"]), f"{row['strength']:g}", *_measured(row))
        for row in record["summary"]
    ]
    head = ("form", "order", "strength", "seeds", "file bytes", "test %", "deviation")
    head = (*head, "bits per weight in singles, pairs, triples")
    told = f"Float: {record['float_accuracy']:.2f}%. Runs missing: {record['missing']}."
    return f"{told}\n\n{table(head, rows)}"


def hemp_options(record: dict[str, Any]) -> str:
    """The same of every variant, and the difference to the published form at equal bytes."""
    rows = [(row["variant"], f"{row['strength']:g}", *_measured(row)) for row in record["summary"]]
    head = ("variant", "strength", "seeds", "file bytes", "test %", "deviation")
    head = (*head, "bits per weight in singles, pairs, triples")
    gains = [
        (row["variant"], f"{row['gain']:+.2f}", f"{row['deviation']:.2f}", str(row["seeds"]))
        for row in record["at_equal_bytes"]
    ]
    beside = table(("variant", "points at equal bytes", "deviation", "seeds"), gains)
    return f"Runs missing: {record['missing']}.\n\n{table(head, rows)}\n\n{beside}"


def _measured(row: dict[str, Any]) -> tuple[str, ...]:
    found = [accuracy for _, accuracy in row["by_seed"]]
    return (
        str(row["seeds"]),
        f"{row['file_bytes']:,.0f}",
        f"{row['accuracy']:.2f}",
        f"{statistics.stdev(found) if len(found) > 1 else 0:.2f}",
        ", ".join(f"{value:.3f}" for value in row["order_bits"]),
    )


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
