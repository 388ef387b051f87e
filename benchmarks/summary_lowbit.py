"""Tables of the benchmarks of low-bit training, for summary.py."""

from __future__ import annotations

from typing import Any

from tables import table

__all__ = [
    "brevitas_qat",
    "lowbit_cifar100",
    "lowbit_digits",
    "lowbit_resnet",
    "lowbit_resnet8",
]


def lowbit_digits(record: dict[str, Any]) -> str:
    """Accuracy of every variant over the seeds, and which checks hold."""
    rows = [
        (
            row["variant"],
            f"{row['accuracy_mean']:.2f}",
            f"{row['accuracy_sd']:.2f}",
            f"{row['file_bytes_mean']:,.0f}" if row["file_bytes_mean"] else "float",
        )
        for row in record["summary"]
    ]
    said = ", ".join(f"{name} {verdict}" for name, verdict in record["verdicts"].items())
    head = ("training", "test %", "standard deviation over seeds", "file bytes")
    checks = f"Checks (`verdicts` in `lowbit_digits.py`): {said}."
    return f"{len(record['seeds'])} seeds. {checks}\n\n{table(head, rows)}"


def lowbit_resnet(record: dict[str, Any]) -> str:
    """Top-1 and bytes of every kind, mean over seeds."""
    rows = [
        (
            *_accuracies(row),
            f"{row['file_bytes_mean']:,.0f}",
            f"{row['nominal_bytes_mean']:,.0f}",
            *_differing(row),
            f"{row['seconds_mean']:.0f}",
        )
        for row in _sorted(record["summary"])
    ]
    head = ("bits", "training", "seeds", "test %", "range", "held out %", "file bytes")
    head = (*head, "nominal bytes", "images changed, integers vs float32", "vs float64", "s")
    floats = ", ".join(f"{name} {value:.2f}%" for name, value in record["float_accuracy"].items())
    return f"Float: {floats}. Runs missing: {record['missing']}.\n\n{table(head, rows)}"


def _differing(row: dict[str, Any]) -> tuple[str, ...]:
    """Images that integers classify differently from float32, and from float64."""
    found = (row.get(f"differs_in_{name}_mean") for name in ("integers", "float64"))
    return tuple("" if count is None else f"{count:g}" for count in found)


def lowbit_cifar100(record: dict[str, Any]) -> str:
    """Top-1 and bytes of every kind."""
    return lowbit_resnet(record)


def lowbit_resnet8(record: dict[str, Any]) -> str:
    """The same of ResNet-8."""
    return lowbit_resnet(record)


def brevitas_qat(record: dict[str, Any]) -> str:
    """Top-1 and bytes of the peer's runs, mean over seeds."""
    rows = [
        (
            *_accuracies(row),
            f"{row['state_dict_bytes_mean']:,.0f}",
            f"{row['file_bytes_mean']:,.0f}",
            f"{row['seconds_mean']:.0f}",
        )
        for row in _sorted(record["summary"])
    ]
    head = ("bits", "weight scale", "seeds", "test %", "range", "held out %", "state dict bytes")
    told = f"Brevitas {record['brevitas']}. Runs missing: {record['missing']}."
    return f"{told}\n\n{table((*head, 'fewbits file bytes', 's'), rows)}"


def _sorted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: -row["bits"])


def _accuracies(row: dict[str, Any]) -> tuple[str, ...]:
    """Bits, kind, seeds, mean top-1, its range, top-1 on held-out images."""
    low, high = min(row["accuracy"]), max(row["accuracy"])
    return (
        f"W{row['bits']}A{row['bits']}",
        row["kind"],
        str(row["seeds"]),
        f"{row['accuracy_mean']:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{row['held_out_mean']:.2f}",
    )
